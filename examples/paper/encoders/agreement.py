"""How well the two metrics agree with accuracy, in ranks, with bootstrap intervals over the encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from ..statistics import RESAMPLES, Estimate, bootstrap, interval, spearman

# The weights of the uniformity beside the alignment among which one is chosen, on other encoders than it is judged on.
WEIGHTS = tuple(2.0**power for power in range(-5, 6))
FEWEST = 5  # encoders of which a mean is compared

Column = NDArray[np.float64]


class Columns(NamedTuple):
    """Measures of encoders, each `(N,)`; of all but the accuracy lower is better."""

    accuracy: Column
    alignment: Column
    uniformity: Column
    contrastive: Column


def combined(columns: Columns, weight: float) -> Column:
    """Alignment plus weighted uniformity."""
    return columns.alignment + weight * columns.uniformity


def best_weight(columns: Columns) -> float:
    """The weight among `WEIGHTS` with which the combination agrees best; the first of equals."""
    return max(WEIGHTS, key=lambda weight: spearman(columns.accuracy, -combined(columns, weight)))


def agreement(columns: Columns, weight: float, seed: int = 0) -> dict[str, Estimate | None]:
    """Rank correlations of accuracy with the negated metrics: 1 is perfect agreement.

    Args:
        columns: of encoders that were trained independently of each other.
        weight: of the uniformity in a combination whose weight was chosen on others.
        seed: of the resampling of encoders.

    Returns:
        By name, Spearman's correlation with each metric and combination, the partial correlation with each of the two
        metrics given the other, the share of the ranks' variance that a regression on one or on both explains, and by
        how much 1·A + 1·U agrees better than the better of the two; ``None`` for one that has no value, as a partial
        correlation has none where the two metrics have the same ranks.
    """
    metrics = (
        columns.alignment,
        columns.uniformity,
        columns.contrastive,
        combined(columns, 1),
        combined(columns, weight),
    )
    table = np.stack([columns.accuracy, *(-metric for metric in metrics)], axis=1)
    generator = np.random.default_rng(seed)
    index = generator.integers(len(table), size=(RESAMPLES, len(table)))
    every = np.concatenate([table[None], table[index]])
    correlation = _correlations(scipy.stats.rankdata(every, axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = _quantities(correlation)
    return {name: _estimate(values) for name, values in found.items()}


def _correlations(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the columns of each table, `(B, N, K)` to `(B, K, K)`."""
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    product: NDArray[np.float64] = unit.transpose(0, 2, 1) @ unit
    return product


def _quantities(correlation: NDArray[np.float64]) -> dict[str, Column]:
    align, uniform, contrastive, fixed, chosen = correlation[:, 0, 1:].T
    between = correlation[:, 1, 2]
    return {
        "alignment": align,
        "uniformity": uniform,
        "contrastive": contrastive,
        "combination": fixed,
        "chosen": chosen,
        "gain": fixed - np.maximum(align, uniform),
        "alignment given uniformity": _partial(align, uniform, between),
        "uniformity given alignment": _partial(uniform, align, between),
        "explained by alignment": align**2,
        "explained by uniformity": uniform**2,
        "explained by both": (align**2 + uniform**2 - 2 * align * uniform * between) / (1 - between**2),
    }


def _partial(one: Column, other: Column, between: Column) -> Column:
    found: Column = (one - other * between) / np.sqrt((1 - other**2) * (1 - between**2))
    return found


def _estimate(values: Column) -> Estimate | None:
    """Of the value, which comes first, and those of the resamples; what has none, as constants have, is left out."""
    if not np.isfinite(values[0]):
        return None
    return interval(values[0], values[1:][np.isfinite(values[1:])])


def best_of(columns: Columns, parts: int = 2) -> Mapping[str, NDArray[np.bool_]]:
    """Which encoders are in the best half, or third…, of both metrics, of one only, of neither; each `(N,)`."""
    align, uniform = (
        scipy.stats.rankdata(metric) <= len(metric) / parts for metric in (columns.alignment, columns.uniformity)
    )
    return {
        "both": align & uniform,
        "alignment only": align & ~uniform,
        "uniformity only": uniform & ~align,
        "neither": ~align & ~uniform,
    }


def gain_of_both(columns: Columns) -> Estimate | None:
    """By how much encoders that are good at both are more accurate, on average, than those good at one.

    Returns:
        The mean accuracy of those in the better half of both metrics minus the larger mean of the two groups that are
        in that of one only; ``None`` where one of the three has fewer than `FEWEST` encoders.
    """
    groups = best_of(columns)
    if min(groups[name].sum() for name in ("both", "alignment only", "uniformity only")) < FEWEST:
        return None

    def gain(accuracy: Column, alignment: Column, uniformity: Column) -> float:
        groups = best_of(Columns(accuracy, alignment, uniformity, alignment))
        means = [
            accuracy[groups[name]].mean() if groups[name].any() else np.nan
            for name in ("both", "alignment only", "uniformity only")
        ]
        return float(means[0] - np.maximum(means[1], means[2]))

    return bootstrap(gain, columns.accuracy, columns.alignment, columns.uniformity)
