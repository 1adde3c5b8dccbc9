"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def number(value: float, form: str = ".3f") -> str:
    """A number with a true minus sign, and without one for what is rounded to zero."""
    text = f"{value:{form}}"
    if not float(text):
        text = text.removeprefix("-")
    return text.replace("-", "−")


def span(values: Iterable[float], form: str = ".3f") -> str:
    """Smallest and largest."""
    many = list(values)
    return f"{number(min(many), form)} to {number(max(many), form)}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
