"""What an evaluation found, and its figures as lines of a table."""

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


def title(result: Evaluation) -> str:
    """What was evaluated, and how."""
    kind = f"{result.rows:,} × {result.dim} {result.dtype}"
    how = "every pair" if result.columns is None else f"{result.columns:,} columns drawn"
    return f"{result.sides[0].name}: {kind}, {how}, t = {result.t:g}, on {result.device}, {result.seconds:.1f} s"


def table(result: Evaluation) -> list[tuple[str, str]]:
    """Names and values."""
    digits = _digits(result.standard_error)
    lines = [("uniformity", _value(result.uniformity, result.standard_error, digits))]
    if result.interval is not None:
        low, high = (_number(bound, digits) for bound in result.interval)
        lines.append((f"  {100 * result.confidence:g} % interval", f"{low} to {high}"))
    if len(result.sides) > 1:
        lines += [(f"  of {side.name}", _value(side.uniformity, side.standard_error, digits)) for side in result.sides]
    if result.floor is not None and result.gap is not None:
        lines.append(("uniform distribution", _number(result.floor, digits)))
        lines.append(("gap to it", _number(result.gap, digits, sign="+")))
    if result.alignment is not None:
        lines.append((f"alignment, alpha = {result.alpha:g}", _number(result.alignment, 6)))
    for side in result.sides:
        name = f"norms of {side.name}" if len(result.sides) > 1 else "norms"
        lines.append((name, _norms(side)))
    return lines


def _norms(side: Side) -> str:
    smallest, mean, largest = side.norms
    counts = [(side.zero_rows, "zero"), (side.bad_rows, "with nan or inf")]
    parts = [f"{smallest:.4g} to {largest:.4g}, mean {mean:.4g}"]
    return "; ".join(parts + [f"{count:,} {'row' if count == 1 else 'rows'} {kind}" for count, kind in counts if count])


def _digits(error: float | None) -> int:
    """Six, and for an estimate so many that its standard error has two."""
    if error is None or not 0 < error < math.inf:
        return 6
    return min(9, max(2, 1 - math.floor(math.log10(error))))


def _value(value: float, error: float | None, digits: int) -> str:
    return _number(value, digits) + ("" if error is None else f" ± {_number(error, digits)}")


def _number(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"  # the sum makes -0.0 a plain zero
