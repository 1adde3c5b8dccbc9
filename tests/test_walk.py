"""The walk in docs/design.md is the way that a training step takes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from ranks import Ranks

import hyperkern

PACKAGE = Path(hyperkern.__file__).parent
DESIGN = (Path(__file__).parent.parent / "docs" / "design.md").read_text(encoding="utf-8")
WALK = DESIGN.split("### A walk\n")[1].split("\n## ")[0]
# Of each numbered list the files that its lines begin with.
LISTS = [
    re.findall(r"^\d+\. `(.+?)`", part, re.MULTILINE) for part in re.split(r"^\*\*`", WALK, flags=re.MULTILINE)[1:]
]


def files_of(step: Callable[[], Any]) -> list[str]:
    """The files of the package that a step runs through, in the order in which they are first met."""
    step()  # the first one imports, and finds out what the others know
    met: dict[str, None] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            met[path.relative_to(PACKAGE).as_posix()] = None

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return list(met)


def uniformity() -> list[str]:
    x = torch.randn(300, 32, requires_grad=True)
    return files_of(lambda: hyperkern.uniformity(x).backward())


def clip_loss(rank: int) -> list[str]:
    x, y = torch.randn(2, 300, 32).unbind()
    x.requires_grad_(), y.requires_grad_()
    group = hyperkern.Group()
    return files_of(lambda: hyperkern.clip_loss(x, y, logit_scale=10.0, group=group).backward())


def test_the_walk_of_a_loss() -> None:
    assert uniformity() == LISTS[0]


def test_the_walk_across_ranks_meets_what_it_says_beside_the_first(ranks: Ranks) -> None:
    common = [
        file for file in LISTS[0] if file.split("/")[-1] in ("agreement.py", "arguments.py", "ranks.py", "spec.py")
    ]
    for found in ranks(2).run(clip_loss):
        assert [file for file in found if file not in LISTS[0]] == LISTS[1]
        assert {file for file in found if file in LISTS[0]} == {*common, "backends/__init__.py"}


def test_it_is_short_and_names_each_file_once() -> None:
    assert len(LISTS) == 2
    assert max(map(len, LISTS)) <= 11
    named = [file for files in LISTS for file in files]
    assert len(set(named)) == len(named)
