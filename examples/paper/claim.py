"""A statement of the paper, and what was found of it here."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["holds", "does not hold", "undecided"]


class Claim(NamedTuple):
    """A statement of the paper and its verdict, which is computed from results.

    Attributes:
        statement: the paper's, in our words.
        source: where the paper has it, "Theorem 1" for instance.
        tested: what is computed here to try it.
        result: the figures that were found, with their spread or interval.
        margin: what makes the verdict: the comparison and its margin.
        verdict: whether it holds here.
    """

    statement: str
    source: str
    tested: str
    result: str
    margin: str
    verdict: Verdict


def verdict(holds: bool | None) -> Verdict:
    """In words; ``None`` is undecided: the margin is larger than what was found."""
    return "undecided" if holds is None else "holds" if holds else "does not hold"
