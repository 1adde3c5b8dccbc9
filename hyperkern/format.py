"""Numbers for readers: three digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

_NO_BREAK = "\u00a0"  # between a number and its unit
_TIMES = ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms"), (1e3, "s"))
_BYTES = tuple((1024.0**power, unit) for power, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB")))
_RATES = tuple((1000.0**power, unit) for power, unit in enumerate(("", "k", "M", "G", "T", "P")))


def milliseconds(value: float) -> str:
    """A time given in milliseconds."""
    return _scaled(value, _TIMES)


def memory(value: float) -> str:
    """Bytes, in binary units."""
    return _scaled(value, _BYTES)


def rate(value: float, unit: str) -> str:
    """A rate, such as FLOP/s, in decimal units."""
    return _scaled(value, _RATES) + unit


def times(value: float) -> str:
    """A ratio."""
    return f"{value:.{_places(value)}f}×"


def digits(value: float) -> str:
    """Three significant digits, without an exponent; whole numbers keep all of theirs."""
    if value == 0:
        return "0"
    text = f"{value:,.{_places(value)}f}".replace(",", "\u202f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _places(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(abs(value))))


def sizes(values: Sequence[int]) -> str:
    """``512``, ``512 and 1024``, or ``512 … 16384``."""
    if len(values) <= 2:
        return " and ".join(str(value) for value in values)
    return f"{values[0]} … {values[-1]}"


def _scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    # 999.9 of one unit would be written as 1000 of it: it is 1 of the next.
    size, unit = next(((s, u) for s, u in reversed(units) if value >= s * 0.9995), units[0])
    return f"{digits(value / size)}{_NO_BREAK}{unit}"
