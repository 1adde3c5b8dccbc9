"""Intervals and correlations, by SciPy's bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

RESAMPLES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]".replace("-", "−")


def bootstrap(statistic: Callable[..., float], *samples: ArrayLike, seed: int = 0) -> Estimate:
    """A statistic of observations that belong together, with the percentile interval of resampled observations.

    Args:
        statistic: of as many sequences as there are samples, all of one length.
        samples: the observations; the i-th of each are one observation.
        seed: of the resampling.

    Returns:
        The statistic and its interval at the level of 95 %.

    Raises:
        ValueError: the statistic is not finite for any that are drawn.
    """
    arrays = [np.asarray(sample) for sample in samples]
    generator = np.random.default_rng(seed)
    rows = len(arrays[0])
    resampled = (generator.integers(rows, size=rows) for _ in range(RESAMPLES))
    draws = np.array([statistic(*(array[index] for array in arrays)) for index in resampled])
    draws = draws[np.isfinite(draws)]  # a correlation has no value where all that was drawn is equal
    if not len(draws):
        raise ValueError("the statistic has no value for any of the resampled observations")
    return interval(statistic(*arrays), draws)


def interval(value: float, draws: ArrayLike) -> Estimate:
    """A value with the percentile interval of what resampled observations gave."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation; nan where all of ``x`` or ``y`` is equal."""
    ranks = scipy.stats.rankdata([x, y], axis=1)
    with np.errstate(invalid="ignore"):
        return float(
            np.corrcoef(ranks)[0, 1]
        )  # spearmanr's value, in a tenth of its time: it is called by the thousand


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (``None`` for one value) and number of values."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": deviation, "n": len(values)}
