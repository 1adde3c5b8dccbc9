"""What a result file holds, and how it is written and read: the one model of it."""

from __future__ import annotations

import csv
import io
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from .registry import BenchError

SCHEMA: Literal[1] = 1
Status = Literal["ok", "failed", "skipped"]
T = TypeVar("T")
_TIMES = ("median_ms", "p20_ms", "p80_ms")
_RATES = ("flops", "bytes", "floor_ms", "tflops", "gbs", "of_limit", "vs_baseline")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What the figures of a file belong to: the machine, its clocks and versions, the commit and the date.

    `hyperkern.bench.machine.describe` makes it. Every result file has it, under ``machine``; text that cannot be found
    out is ``None``.
    """

    device: str | None
    processor: str | None
    threads: int | None
    clocks: str | None
    torch: str | None
    triton: str | None
    cuda: str | None
    driver: str | None
    python: str | None
    hyperkern: str | None
    commit: str | None
    date: str | None


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Rates of a machine in one dtype.

    Attributes:
        flops: FLOP/s of a large matrix product of the library, above 0.
        bytes: bytes/s of a large copy, read and write counted, above 0.
        best_flops: the most that the product reached in a run; older files lack it.
    """

    flops: float
    bytes: float
    best_flops: float | None = None

    def __post_init__(self) -> None:
        """Refuses rates that are none."""
        _require(self, ("flops", "bytes"), lambda value: value > 0, "above 0")

    def floor_ms(self, flops: float, size: float) -> float:
        """The least time, of arithmetic and traffic that overlap perfectly."""
        return 1e3 * max(flops / self.flops, size / self.bytes)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One implementation at one point.

    Times are in milliseconds, ``None`` where the status is not ``ok``; ``flops`` and ``bytes`` the least of the work,
    ``floor_ms`` the time that they take at the machine's rates, ``of_limit`` the floor over the median, ``error``
    relative to float64, ``vs_baseline`` the baseline's median over the own.
    """

    case: str
    implementation: str
    package: str
    version: str | None
    mode: str
    execution: str
    dtype: str
    n: int
    d: int
    status: Status
    reason: str | None
    error: float | None
    samples_ms: tuple[float, ...]
    median_ms: float | None
    p20_ms: float | None
    p80_ms: float | None
    peak_bytes: int | None
    flops: float
    bytes: float
    floor_ms: float
    tflops: float | None
    gbs: float | None
    of_limit: float | None
    baseline: str
    vs_baseline: float | None

    def __post_init__(self) -> None:
        """Refuses values that no run gives: an axis has no place for them."""
        _require(self, ("n", "d"), lambda value: value >= 1, "at least 1")
        _require(self, ("error", "peak_bytes", *_RATES), lambda value: value >= 0, "at least 0")
        _require(self, _TIMES, lambda value: value > 0, "above 0")
        _require(self, ("samples_ms",), lambda samples: all(sample > 0 for sample in samples), "above 0")
        for name in ("samples_ms", *_TIMES) if self.status == "ok" else ():
            if not getattr(self, name):
                raise ValueError(f"{name} must be there where status is ok, got {getattr(self, name)!r}")

    @property
    def key(self) -> tuple[str, str, str, str, str, int, int]:
        """What a row is of."""
        return self.case, self.implementation, self.mode, self.execution, self.dtype, self.n, self.d

    def baseline_in(self, rows: Mapping[tuple[Any, ...], Row]) -> Row | None:
        """The row that this is set against: in the same execution, else in the eager one."""
        for execution in (self.execution, "eager"):
            found = rows.get(replace(self, implementation=self.baseline, execution=execution).key)
            if found is not None and found.status == "ok":
                return found
        return None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A run: where, the machine's own rates in it by dtype, and its rows."""

    schema: Literal[1]
    machine: Provenance
    limits: Mapping[str, Limit]
    rows: Sequence[Row]


COLUMNS = tuple(field.name for field in fields(Row))
MACHINE = tuple(field.name for field in fields(Provenance))


def _require(of: Limit | Row, names: Iterable[str], holds: Callable[[Any], bool], what: str) -> None:
    for name in names:
        value = getattr(of, name)
        if value is not None and not holds(value):
            raise ValueError(f"{name} must be {what}, got {value!r}")


def quantile(samples: Sequence[float], q: float) -> float:
    """Of some numbers."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def with_baselines(rows: Sequence[Row]) -> list[Row]:
    """The rows with the number of times that each is faster than its baseline."""
    by_key = {row.key: row for row in rows}
    found = []
    for row in rows:
        base = row.baseline_in(by_key) if row.status == "ok" else None
        ratio = base.median_ms / row.median_ms if base and base.median_ms and row.median_ms else None
        found.append(replace(row, vs_baseline=ratio))
    return found


def as_csv(result: Result) -> bytes:
    """A line for each row, with its machine; the samples in one field, a space between them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *MACHINE], lineterminator="\n")
    writer.writeheader()
    for row in result.rows:
        samples = " ".join(f"{sample:.6g}" for sample in row.samples_ms)
        writer.writerow(asdict(row) | {"samples_ms": samples} | asdict(result.machine))
    return text.getvalue().encode(errors="backslashreplace")


def read(path: Path) -> Result:
    """A result file of the benchmark; see `read_as`."""
    return read_as(path, Result)


def read_as(path: Path, kind: type[T]) -> T:
    """A result file.

    Args:
        path: a file that `hyperkern.files.as_json` made.
        kind: a dataclass that says what it holds. What a file has beyond that is left out.

    Returns:
        The content, every value of the type that the dataclass gives it.

    Raises:
        BenchError: it cannot be read, or is not of that kind; the text names the file, the place in it and the value.
        ImportError: msgspec, which checks it, is not installed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        # Python's own reader and writer know numbers that JSON does not: an error that is none has no value.
        content = json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{str(path)!r} is no JSON: {error}") from error
    import msgspec  # here: a result is made and written without it

    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise BenchError(f"{str(path)!r} is no result of hyperkern bench: {_problem(str(error), content)}") from error


def _problem(error: str, content: Any) -> str:
    """The error with the place and the value in it: msgspec says where, but not what."""
    what, _, place = error.partition(" - at `$")
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", place.partition("[...]")[0]):  # keys of mappings it leaves out
        content = content[key or int(index)]
    place = place.strip(".`")
    return f"{place}{': ' if place else ''}{what} ({reprlib.repr(content)})"
