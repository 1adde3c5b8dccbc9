"""docs/paper.md and its figures, from a file of results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from tools.blocks import filled

from .claim import Claim
from .part import Part
from .parts import PARTS
from .style import STYLE, svg

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"


def blocks(results: Mapping[str, Any]) -> dict[str, str]:
    """What stands between the marks of the page, by name: the claims, and the blocks of each part."""
    found = {"run": _run(results)}
    every: list[tuple[Part, Claim]] = []
    for part in PARTS:
        if part.name in results["parts"]:
            summary = results["parts"][part.name]
            claims = part.claims(summary)
            every += [(part, claim) for claim in claims]
            found[f"verdicts {part.name}"] = _verdicts(claims)
            found[f"claims {part.name}"] = "\n\n".join(map(_claim, claims))
            found |= part.blocks(summary)
    return found | {"contradictions": contradictions(every)}


def images(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The figures by the names of their files."""
    with matplotlib.rc_context(STYLE):
        return {
            f"{stem}.svg": svg(figure)
            for part in PARTS
            if part.name in results["parts"]
            for stem, figure in part.figures(results["parts"][part.name]).items()
        }


def files(results: Mapping[str, Any], docs: Path) -> dict[Path, bytes]:
    """The page and its figures, as they are to be below ``docs``; the text is that of `PAGE`."""
    text = PAGE.read_text(encoding="utf-8")
    text = filled(text, _left_out(text, results) | blocks(results))
    figures = {docs / "images" / "paper" / name: image for name, image in images(results).items()}
    return {docs / "paper.md": text.encode()} | figures


def _left_out(text: str, results: Mapping[str, Any]) -> dict[str, str]:
    """The blocks of parts that were not run, where the page has what another run found."""
    missing = {part.name for part in PARTS if part.name not in results["parts"]}
    return {name: "Not run." for name in re.findall("<!-- (.+) -->", text) if missing & set(name.split())}


def _run(results: Mapping[str, Any]) -> str:
    minutes, processor = results["core_seconds"] / 60, results["machine"]["processor"]
    torch = results["versions"]["torch"].split("+")[0]
    quick = "**A quick run, whose figures mean nothing.** " if results["quick"] else ""
    return f"{quick}{results['jobs']} jobs, {minutes:.0f} minutes of one core: {processor}, PyTorch {torch}."


def contradictions(claims: Sequence[tuple[Part, Claim]]) -> str:
    """How many statements hold, and those that do not."""
    numbers = Counter(claim.verdict for _, claim in claims)
    counts = f"hold: {numbers['holds']}, do not: {numbers['does not hold']}, undecided: {numbers['undecided']}"
    text = f"{len(claims)} statements of the paper were tried. Those that {counts}."
    against = [
        f"- {claim.statement.rstrip('.')} ({claim.source}){'; in a smoke test' if part.is_smoke_test else ''}."
        for part, claim in claims
        if claim.verdict == "does not hold"
    ]
    return "\n".join([f"{text} What does not:", "", *against]) if against else text


def _verdicts(claims: list[Claim]) -> str:
    rows = [f"| {one.statement} | {one.source} | **{one.verdict}** |" for one in claims]
    return "\n".join(["| the paper says | where | here |", "| --- | --- | --- |", *rows])


def _claim(one: Claim) -> str:
    lines = [f"**{one.statement}** ({one.source})", f"Tried by: {one.tested}", f"Found: {one.result}"]
    return "\\\n".join([*lines, f"Verdict: **{one.verdict}**; what decides: {one.margin}"])
