"""Claims about the uniform distribution as the minimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from ...claim import Claim, verdict
from ...part import Summary
from .margins import AT_LIMIT, DESCENT, HALF, IDENTITY, ROUNDING
from .select import flows
from .text import number, span


def _runs(summary: Summary, objective: str) -> list[tuple[float, Mapping[str, Any]]]:
    return [(limit, run) for _, limit, _, runs in flows(summary) for run in runs if run["objective"] == objective]


def second_term(summary: Summary) -> Claim:
    """Of the second term of the limit."""
    runs = _runs(summary, "second term")
    excess = [run["second_term"] - limit for limit, run in runs]
    others = {(limit, run["points"]): run["second_term"] for limit, run in _runs(summary, "uniformity")}
    apart = [abs(run["second_term"] - others[limit, run["points"]]) for limit, run in runs]
    return Claim(
        "Perfectly uniform features minimise the second term of the limit, as they do L_uniform at t = 1/(2τ).",
        "Theorem 1, result 2; Section 4.2",
        "points on the sphere that minimise the second term itself, beside its value for the uniform distribution, "
        "and beside points that minimise uniformity",
        f"{sum(value < -ROUNDING for value in excess)} of {len(runs)} minimisations end below the uniform "
        f"distribution's value; they exceed it by {span(excess, '.1e')}; points that minimise uniformity have a "
        f"second term at most {number(max(apart), '.1e')} away",
        f"no value more than {number(ROUNDING, '.0e')} below, and the two objectives at most {AT_LIMIT} apart",
        verdict(min(excess) >= -ROUNDING and max(apart) <= AT_LIMIT),
    )


def minimiser(summary: Summary) -> Claim:
    """Of the mean potential."""
    runs = _runs(summary, "uniformity")
    excess = [run["with_self"] - limit for limit, run in runs]
    below = [run["distinct"] - limit for limit, run in runs]
    collapsed = [run for _, run in runs if run["start"] == "collapsed"]
    others = [
        row["uniformity"] - found["rows"]["uniform"]["uniformity"]
        for found in summary["distributions"].values()
        for name, row in found["rows"].items()
        if name != "uniform"
    ]
    return Claim(
        "The uniform distribution alone minimises the mean Gaussian potential.",
        "Proposition 1",
        "points that minimise `uniformity` by L-BFGS from independent uniform ones and from points within 10^−3 of "
        "one, for several t, D and N, as distributions (pairs of a point with itself count), and other "
        "distributions, beside `metrics.uniformity_limit`",
        f"{sum(value < -ROUNDING for value in excess)} of {len(runs)} minimisations, {len(collapsed)} of them from "
        f"collapse, end below the limit; they exceed it by {span(excess, '.1e')}; other distributions are "
        f"{span(others, '.2f')} above. The mean over distinct pairs alone, which is what the loss of a batch is, "
        f"differs from the limit by {span(below, '.1e')}",
        f"no run more than {number(ROUNDING, '.0e')} below the limit, every other distribution above it by more than "
        f"{AT_LIMIT}",
        verdict(min(excess) >= -ROUNDING and min(others) > AT_LIMIT),
    )


def _by_size(found: Mapping[str, Any], key: str) -> dict[int, float]:
    """The mean over the runs of uniformity by the number of points."""
    values: dict[int, list[float]] = {}
    for run in found["runs"]:
        if run["objective"] == "uniformity":
            values.setdefault(run["points"], []).append(run[key])
    return {points: sum(many) / len(many) for points, many in values.items()}


def convergence(summary: Summary) -> Claim:
    """Of finitely many points."""
    falls, shares, moments, cramped = [], [], [], []
    for label, limit, found, runs in flows(summary):
        most = runs[-1]["points"]
        reached = [value - limit for value in _by_size(found, "with_self").values()]
        falls.append(all(after < before or after < DESCENT for before, after in pairwise(reached)))
        if -math.log(most) < limit:
            shares.append(reached[-1] / (found["independent"][-1] - limit))
        else:
            cramped.append(label)
        last = [run for run in runs if run["points"] == most]
        moments += [max(run["first_moment"], run["second_moment"]) for run in last]
    others = [
        (run["others"][0], run["points"])
        for _, _, _, runs in flows(summary)
        for run in runs
        if run["start"] == "random"
    ]
    sizes = sorted({points for _, points in others})
    told = ", ".join(number(max(value for value, points in others if points == size), ".0e") for size in sizes)
    return Claim(
        "Points that minimise the mean potential of their pairs tend to the uniform distribution as there are more "
        "of them.",
        "Proposition 2",
        "the excess of N minimising points over the limit, beside that of N independent uniform points; their first "
        "two moments; their excess under another potential, t = 0.5",
        f"the excess falls with N, or is below {number(DESCENT, '.0e')}, in {sum(falls)} of {len(falls)} settings, "
        f"and at the largest N is {span(shares, '.1e')} of independent points'; the deviations of the first two "
        f"moments are at most {number(max(moments), '.1e')} of theirs, and the largest excess at t = 0.5 is {told} "
        f"for N = {', '.join(map(str, sizes))}. Left out of the share: {', '.join(cramped) or 'nothing'}, where the "
        "pairs of a point with itself alone, −log N, are above the limit",
        f"falls down to what a descent stops at in every setting, and at the largest N below {HALF} of independent "
        "points' in every setting that leaves room for it",
        verdict(all(falls) and max(shares) < HALF if shares else None),
    )


def zero_mean(summary: Summary) -> Claim:
    """Not of the mean inner product."""
    zero = [
        (name, row, found["rows"]["uniform"])
        for found in summary["distributions"].values()
        for name, row in found["rows"].items()
        if name not in ("uniform", "one point")
    ]
    inner = max(abs(row["inner_product"]) for _, row, _ in zero)
    gaps = [row["uniformity"] - uniform["uniformity"] for _, row, uniform in zero]
    nearer = [uniform["distance"] - row["distance"] for _, row, uniform in zero]
    unsquared = (
        f"**Of the distance itself, which the paper's words name, this is not so**: its mean is {span(nearer)} below "
        "the uniform distribution's. "
        if min(nearer) > AT_LIMIT
        else ""
    )
    runs = [(found["limit"], run) for found in summary["descents"].values() for run in found["runs"]]
    after = {
        objective: [run["uniformity"] - limit for limit, run in runs if run["objective"] == objective]
        for objective in ("inner product", "uniformity")
    }
    return Claim(
        "Mean inner product and mean (squared) distance are optimal wherever the mean is zero, the Gaussian potential "
        "is not.",
        "Section 4.1.2; Appendix A",
        "two antipodal points, a great circle, simplex and cross-polytope exactly; points minimised for either from "
        "the same concentrated start",
        f"mean inner products are at most {number(inner, '.0e')}, where the uniform distribution has 0, and "
        f"uniformity is {span(gaps, '.2f')} above it. {unsquared}Minimising the inner product stops "
        f"{span(after['inner product'], '.3f')} above the limit of uniformity, minimising uniformity "
        f"{span(after['uniformity'], '.1e')} above",
        f"mean inner products below {number(IDENTITY, '.0e')}, uniformity more than {AT_LIMIT} above, in every case",
        verdict(inner < IDENTITY and min(gaps) > AT_LIMIT and min(after["inner product"]) > AT_LIMIT),
    )
