"""Pages whose figures stand between ``<!-- NAME -->`` and ``<!-- end -->`` and are made, not typed."""

import re
from collections.abc import Mapping


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A page with its blocks made anew.

    Args:
        text: of the page.
        blocks: what stands in each, by name; those that the page has not are left out.
    """
    for name, made in blocks.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text, flags=re.DOTALL)
    return text
