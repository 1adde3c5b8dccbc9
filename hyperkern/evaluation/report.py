"""The figures of an evaluation as lines of a table."""

from __future__ import annotations

import math

from .result import Evaluation, Side


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
