"""What an evaluation found."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Side:
    """One set of features.

    Attributes:
        name: what it was called.
        uniformity: logarithm of the mean potential of its distinct pairs; nan with a row that is not finite.
        standard_error: of ``uniformity``; ``None`` where it is exact.
        interval: confidence interval of ``uniformity``; ``None`` where it is exact.
        norms: smallest, mean and largest norm of its finite rows, before they are normalised.
        zero_rows: how many rows are zero.
        bad_rows: how many rows hold nan or inf.
    """

    name: str
    uniformity: float
    standard_error: float | None
    interval: tuple[float, float] | None
    norms: tuple[float, float, float]
    zero_rows: int
    bad_rows: int


@dataclass(frozen=True)
class Evaluation:
    """The result of `hyperkern.evaluate`.

    Attributes:
        uniformity: of the features, or with positives the mean of both sides.
        standard_error: of ``uniformity``; ``None`` where it is exact.
        interval: confidence interval of ``uniformity``; ``None`` where it is exact.
        confidence: probability that the interval covers the exact value.
        floor: `hyperkern.metrics.uniformity_limit`, the expectation of the uniform distribution, which no distribution
            is below; ``None`` for rows that are not on the sphere.
        gap: ``uniformity - floor``.
        alignment: mean distance of positive pairs to the power ``alpha``; ``None`` without positives.
        sides: the features and, if given, the positives, each for itself.
        rows: number of rows N.
        dim: feature dimension D.
        dtype: of the features.
        t: inverse width of the potential.
        alpha: exponent of the alignment.
        normalize: whether rows were scaled to unit length.
        weighted: whether pairs had weights.
        method: ``"exact"`` or ``"estimate"``.
        columns: number of columns drawn; ``None`` where it is exact.
        seed: of the draws.
        device: where it was computed.
        seconds: how long it took.
        warnings: what should be known beside the figures.
    """

    uniformity: float
    standard_error: float | None
    interval: tuple[float, float] | None
    confidence: float
    floor: float | None
    gap: float | None
    alignment: float | None
    sides: tuple[Side, ...]
    rows: int
    dim: int
    dtype: str
    t: float
    alpha: float
    normalize: bool
    weighted: bool
    method: str
    columns: int | None
    seed: int
    device: str
    seconds: float
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dictionaries; ``None`` for what is not finite."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        return content


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
