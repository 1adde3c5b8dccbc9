"""The result of a run: its rows, and its files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import append as append
from .machine import Limit
from .matrix import Point
from .registry import CASES, BenchError

SCHEMA = 1
MACHINE = (
    *("device", "processor", "threads", "clocks", "torch", "triton", "cuda"),
    *("driver", "python", "hyperkern", "commit", "date"),
)
COLUMNS = (
    *("case", "implementation", "package", "version", "mode", "execution", "dtype", "n", "d"),
    *("status", "reason", "error", "samples_ms", "median_ms", "p20_ms", "p80_ms", "peak_bytes"),
    *("flops", "bytes", "floor_ms", "tflops", "gbs", "of_limit", "baseline", "vs_baseline"),
)
STATUSES = ("ok", "failed", "skipped")
KEY = ("case", "implementation", "mode", "execution", "dtype", "n", "d")
Row = dict[str, Any]
Result = dict[str, Any]


def quantile(samples: Sequence[float], q: float) -> float:
    """Of some numbers."""
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def row(point: Point, limit: Limit | None, status: str, reason: str | None = None, error: float | None = None) -> Row:
    """A row without a time."""
    setup, implementation = point.setup, point.implementation
    return {
        "case": setup.case,
        "implementation": implementation.name,
        "package": implementation.package,
        "version": implementation.version,
        "mode": setup.mode,
        "execution": point.execution,
        "dtype": setup.dtype,
        "n": setup.n,
        "d": setup.d,
        "status": status,
        "reason": reason,
        "error": error if error is None or math.isfinite(error) else None,  # JSON knows no infinity
        "samples_ms": [],
        **dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "peak_bytes")),
        "flops": point.flops,
        "bytes": point.bytes,
        "floor_ms": None if limit is None else point.floor_ms(limit),
        **dict.fromkeys(("tflops", "gbs", "of_limit")),
        "baseline": CASES[setup.case].baseline,
        "vs_baseline": None,
    }


def timed(found: Row, samples: Sequence[float], peak: int | None) -> Row:
    """The row with its times."""
    median = quantile(samples, 0.5)
    return found | {
        "samples_ms": list(samples),
        "median_ms": median,
        "p20_ms": quantile(samples, 0.2),
        "p80_ms": quantile(samples, 0.8),
        "peak_bytes": peak,
        "tflops": found["flops"] / median / 1e9,
        "gbs": found["bytes"] / median / 1e6,
        "of_limit": found["floor_ms"] / median,
    }


def baseline_of(row: Row, rows: dict[tuple[Any, ...], Row]) -> Row | None:
    """The row that another is set against: in the same execution, else in the eager one."""
    for execution in (row["execution"], "eager"):
        wanted = row | {"implementation": row["baseline"], "execution": execution}
        found = rows.get(key(wanted))
        if found is not None and found["status"] == "ok":
            return found
    return None


def key(row: Row) -> tuple[Any, ...]:
    """What a row is of."""
    return tuple(row[name] for name in KEY)


def with_baselines(rows: list[Row]) -> list[Row]:
    """The rows with the number of times that each is faster than its baseline."""
    by_key = {key(row): row for row in rows}
    found = []
    for row in rows:
        base = baseline_of(row, by_key) if row["status"] == "ok" else None
        found.append(row | {"vs_baseline": None if base is None else base["median_ms"] / row["median_ms"]})
    return found


def as_json(result: Result) -> bytes:
    """The file that `read` reads."""
    return (json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(errors="backslashreplace")


def as_csv(result: Result) -> bytes:
    """A line for each row, with its machine; the samples in one field, a space between them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *MACHINE], lineterminator="\n")
    writer.writeheader()
    for row in result["rows"]:
        samples = " ".join(f"{sample:.6g}" for sample in row["samples_ms"])
        writer.writerow({**row, "samples_ms": samples, **result["machine"]})
    return text.getvalue().encode(errors="backslashreplace")


def read(path: Path) -> Result:
    """A result file.

    Raises:
        BenchError: it cannot be read, is no result, or one of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error
    try:
        result = json.loads(text)
    except ValueError as error:
        raise BenchError(f"{str(path)!r} is no JSON: {error}") from error
    problem = _problem(result)
    if problem is not None:
        raise BenchError(f"{str(path)!r} is no result of hyperkern bench: {problem}")
    found: Result = result
    return found


def _problem(result: Any) -> str | None:
    if not isinstance(result, dict) or "schema" not in result:
        return "it has no schema"
    if result["schema"] != SCHEMA:
        return f"its schema is {result['schema']!r}, expected {SCHEMA}"
    if not isinstance(result.get("machine"), dict) or not set(MACHINE) <= set(result["machine"]):
        return "its machine is incomplete"
    if not isinstance(result.get("limits"), dict) or not isinstance(result.get("rows"), list):
        return "it has no limits or no rows"
    for i, row in enumerate(result["rows"]):
        if not isinstance(row, dict) or not set(COLUMNS) <= set(row):
            missing = sorted(set(COLUMNS) - set(row)) if isinstance(row, dict) else ["everything"]
            return f"row {i} lacks {', '.join(missing)}"
        if row["status"] not in STATUSES:
            return f"row {i} has the status {row['status']!r}, expected one of {', '.join(STATUSES)}"
        samples = row["samples_ms"]
        if not isinstance(samples, list) or not all(isinstance(s, float | int) and s > 0 for s in samples):
            return f"row {i} has samples that are no positive numbers"
        if row["status"] == "ok" and not samples:
            return f"row {i} is ok and has no samples"
    return None
