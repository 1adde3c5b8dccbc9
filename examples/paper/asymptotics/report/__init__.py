"""What was found, in claims and tables. The files here are no part of a job's fingerprint."""

from __future__ import annotations

from ...claim import Claim
from ...part import Summary
from .estimators import entropy, self_pairs
from .limit import bound, draw, limit
from .minimisers import convergence, minimiser, second_term, zero_mean
from .single import single
from .tables import blocks

__all__ = ["blocks", "claims"]

CLAIMS = (limit, bound, draw, second_term, minimiser, convergence, zero_mean, single, entropy, self_pairs)


def claims(summary: Summary) -> list[Claim]:
    """The paper's statements of Section 4 and its appendix, and two that its proof and its code make."""
    return [claim(summary) for claim in CLAIMS]
