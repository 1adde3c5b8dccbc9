"""Exponents fitted to deviations, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from examples.paper.statistics import Estimate, bootstrap


def slope(values: ArrayLike, counts: Sequence[float]) -> float:
    """The exponent of a power law: least squares of log |value| on log count."""
    logs = np.log(np.asarray(counts, float))
    centred = logs - logs.mean()
    return float(centred @ np.log(np.abs(values)) / (centred @ centred))


def exponent(
    rows: NDArray[np.float64], counts: Sequence[float], reduce: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Estimate:
    """The exponent of what `reduce` makes of observations, with the interval of resampled observations.

    Args:
        rows: ``(R, len(counts))``, an observation each.
        counts: at which they were taken.
        reduce: maps rows to one value for each count.

    Raises:
        FloatingPointError: a value is zero or not finite, so that it has no logarithm.
    """
    values = reduce(rows)
    if not (np.isfinite(values) & (values != 0)).all():
        raise FloatingPointError(f"deviations must be finite and not zero, got {values.tolist()}")
    return bootstrap(lambda chosen: slope(reduce(chosen), counts), rows)


def mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the rows."""
    found: NDArray[np.float64] = rows.mean(0)
    return found


def root_mean(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root of the mean of squares."""
    found: NDArray[np.float64] = np.sqrt(squares.mean(0))
    return found
