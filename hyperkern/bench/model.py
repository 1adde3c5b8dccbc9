"""A benchmark result from a file, checked: what the page may rely on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from .result import MACHINE, SCHEMA, STATUSES

_TEXTS = ("case", "implementation", "mode", "execution", "dtype")
_TIMES = ("median_ms", "p20_ms", "p80_ms")
_NUMBERS = (*_TIMES, "error", "peak_bytes", "flops", "bytes", "floor_ms", "tflops", "gbs", "of_limit", "vs_baseline")


class Setting(NamedTuple):
    """How the work was run; times of one setting stand in one figure."""

    mode: str
    execution: str
    dtype: str

    def __str__(self) -> str:
        """For a heading."""
        mode = "forward and backward" if self.mode == "both" else self.mode
        return f"{mode}, {self.execution}, {self.dtype}"


@dataclass(frozen=True)
class Row:
    """One implementation at one size."""

    case: str
    implementation: str
    package: str | None
    version: str | None
    mode: str
    execution: str
    dtype: str
    n: int
    d: int
    status: str
    reason: str | None
    error: float | None
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    peak_bytes: float | None
    flops: float | None
    bytes: float | None
    floor_ms: float | None
    tflops: float | None
    gbs: float | None
    of_limit: float | None
    baseline: str | None
    vs_baseline: float | None

    @property
    def setting(self) -> Setting:
        """Mode, execution and dtype."""
        return Setting(self.mode, self.execution, self.dtype)

    @property
    def timed(self) -> bool:
        """Whether there is a time to show: a failed implementation has none, whatever the file says."""
        return self.status == "ok" and self.median_ms is not None

    @property
    def speedup(self) -> float | None:
        """The baseline's time over the own one, above 1 where this is faster."""
        return self.vs_baseline if self.timed and self.vs_baseline else None


class Limit(NamedTuple):
    """What the machine was measured to reach in one dtype."""

    flops: float | None
    bytes: float | None


class Panel(NamedTuple):
    """The rows of one case, one setting and one feature dimension: what a group of figures shows."""

    case: str
    setting: Setting
    d: int
    rows: list[Row]

    @property
    def sizes(self) -> list[int]:
        """Every N, in order."""
        return sorted({row.n for row in self.rows})


@dataclass(frozen=True)
class Result:
    """A checked benchmark result."""

    machine: Mapping[str, Any]
    limits: Mapping[str, Limit]
    rows: list[Row]

    @property
    def cases(self) -> list[str]:
        """The cases, in the order of the file."""
        return unique(row.case for row in self.rows)

    @property
    def settings(self) -> list[Setting]:
        """The settings, in the order of the file."""
        return unique(row.setting for row in self.rows)

    @property
    def implementations(self) -> list[str]:
        """Our own first, then the peers in the order of the file."""
        own = unique(row.implementation for row in self.rows if row.package == "hyperkern")
        return unique([*own, *(row.implementation for row in self.rows)])

    def panels(self, case: str) -> list[Panel]:
        """The panels of one case, by setting and D."""
        rows = [row for row in self.rows if row.case == case]
        keys = unique((row.setting, row.d) for row in rows)
        keys.sort(key=lambda key: (self.settings.index(key[0]), key[1]))
        return [
            Panel(case, setting, d, [row for row in rows if (row.setting, row.d) == (setting, d)])
            for setting, d in keys
        ]


def unique(values: Iterable[Any]) -> list[Any]:
    """Every value once, in the order of first appearance."""
    return list(dict.fromkeys(values))


def check(result: Any) -> Result:
    """Check a result as read from JSON.

    Args:
        result: the dictionary.

    Returns:
        The result.

    Raises:
        ValueError: another schema, a missing key, or a value of the wrong kind; the text names the key.
    """
    if not isinstance(result, Mapping):
        raise ValueError(f"a benchmark result is an object, got {type(result).__name__}")
    if _of(result, "schema", "") != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, got {result['schema']!r}")
    machine, limits, rows = (_of(result, key, "") for key in ("machine", "limits", "rows"))
    for key, value, kind in (("machine", machine, Mapping), ("limits", limits, Mapping), ("rows", rows, list)):
        if not isinstance(value, kind):
            raise ValueError(f"{key} must be {'a list' if kind is list else 'an object'}, got {type(value).__name__}")
    for key in MACHINE:
        _of(machine, key, "machine.")
    return Result(
        {key: machine[key] for key in MACHINE},
        {str(dtype): _limit(limit, f"limits.{dtype}") for dtype, limit in limits.items()},
        [_row(row, f"rows[{index}]") for index, row in enumerate(rows)],
    )


def _of(mapping: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in mapping:
        raise ValueError(f"the benchmark result has no key {where}{key}")
    return mapping[key]


def _limit(limit: Any, where: str) -> Limit:
    if not isinstance(limit, Mapping):
        raise ValueError(f"{where} must be an object, got {type(limit).__name__}")
    return Limit(*(_number(_of(limit, key, f"{where}."), f"{where}.{key}") for key in Limit._fields))


def _row(row: Any, where: str) -> Row:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object, got {type(row).__name__}")
    values = {field.name: _of(row, field.name, f"{where}.") for field in fields(Row)}
    for key in _TEXTS:
        if not isinstance(values[key], str):
            raise ValueError(f"{where}.{key} must be a string, got {values[key]!r}")
    for key in ("package", "version", "reason", "baseline"):
        values[key] = None if values[key] is None else str(values[key])
    for key in ("n", "d"):
        if isinstance(values[key], bool) or not isinstance(values[key], int) or values[key] < 1:
            raise ValueError(f"{where}.{key} must be an integer of at least 1, got {values[key]!r}")
    if values["status"] not in STATUSES:
        raise ValueError(f"{where}.status must be one of {', '.join(STATUSES)}, got {values['status']!r}")
    for key in _NUMBERS:
        values[key] = _number(values[key], f"{where}.{key}")
    for key in _TIMES:
        # A logarithmic axis has no place for it, and no clock gives it.
        if values["status"] == "ok" and not values[key]:
            raise ValueError(f"{where}.{key} must be above 0 where status is ok, got {row[key]!r}")
    return Row(**values)


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"{where} must be a number of at least 0 or null, got {value!r}")
    # JSON as Python writes it knows NaN and Infinity: an error that is no number stays one without a value.
    return float(value) if math.isfinite(value) else None
