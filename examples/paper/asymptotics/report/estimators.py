"""Claims about what a batch estimates."""

from __future__ import annotations

from ...claim import Claim, verdict
from ...part import Summary
from .margins import IDENTITY, SELF_PAIRS, STANDARD_ERRORS
from .text import number, span


def entropy(summary: Summary) -> Claim:
    """The entropy of the features."""
    gaps, ordered = [], []
    errors: dict[float, list[float]] = {}
    for found in summary["entropy"].values():
        rows = found["rows"]
        gaps += [row["largest_gap"] for row in rows]
        for tau in {row["temperature"] for row in rows}:
            for points in {row["points"] for row in rows}:
                some = [row for row in rows if row["temperature"] == tau and row["points"] == points]
                by_truth = sorted(some, key=lambda row: row["truth"])
                means = [sum(row["estimates"]) / len(row["estimates"]) for row in by_truth]
                ordered.append(means == sorted(means))
        for row in rows:
            errors.setdefault(row["temperature"], []).append(
                sum(row["estimates"]) / len(row["estimates"]) - row["truth"]
            )
    told = "; ".join(f"τ = {tau:g}: {span(many, '.2f')}" for tau, many in sorted(errors.items()))
    return Claim(
        "The second term over N features is minus a resubstitution estimate of their entropy by a von Mises-Fisher "
        "kernel of concentration 1/τ, plus log Z.",
        "Section 4.2",
        "the identity with SciPy's density; the estimate on uniform and von Mises-Fisher samples, whose entropy is "
        "known",
        f"the identity is exact to {number(max(gaps), '.0e')}, and in {sum(ordered)} of {len(ordered)} settings the "
        "estimate puts the distributions in the order of their entropies. As a value it is biased upward by the "
        f"kernel's width and downward by the pair of a point with itself; estimate minus truth, in nats: {told}",
        f"the identity to {number(IDENTITY, '.0e')}, and the order right in every setting",
        verdict(max(gaps) <= IDENTITY and all(ordered)),
    )


def self_pairs(summary: Summary) -> Claim:
    """The mean over all pairs, by that over distinct ones."""
    rows = [row for found in summary["self-pairs"].values() for row in found["rows"]]
    gap = max(row["largest_gap"] for row in rows)
    # The mean potential is unbiased; its logarithm is lower by half the variance.
    away = [abs(row["distinct_bias"] + row["distinct_std"] ** 2 / 2) / row["distinct_bias_error"] for row in rows]
    own = [abs(row["with_self_bias"] - row["predicted_bias"]) for row in rows]
    return Claim(
        "The mean over the distinct pairs of a batch, as in the paper's code, estimates the expectation that "
        "defines L_uniform.",
        "Section 4.1.2, Figure 6; Appendix A.1.1",
        "batches of B independent uniform points, with the pairs of a point with itself (L₁) and without (L₂)",
        f"L₂ = log((B e^L₁ − 1)/(B − 1)) to {number(gap, '.0e')}, for a batch and for each point. L₂ is off by at "
        f"most {number(max(away), '.1f')} standard errors of "
        f"{span((row['distinct_bias_error'] for row in rows), '.0e')} after the logarithm's −variance/2. L₁ is "
        f"larger, by {span((row['with_self_bias'] for row in rows), '.4f')} where log(1 + (e^−U − 1)/B), U the "
        f"limit, says the same to {number(max(own), '.4f')}",
        f"the relation to {number(SELF_PAIRS, '.0e')}, every bias of L₂ within {STANDARD_ERRORS:g} standard errors",
        verdict(gap <= SELF_PAIRS and max(away) <= STANDARD_ERRORS),
    )
