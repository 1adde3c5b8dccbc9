"""Every loss at ordinary batch sizes on a CPU, beside the usual code, eager and compiled, in one run.

``python -m benchmarks.short_path [--json FILE] [--cases ...] [--sizes ...] [--dims ...]``: `hyperkern bench` with a
matrix of its own and a summary. Loss and gradient in float32, once each held against float64, then timed in turns; peak
memory in a process of its own. What the file has of other rows stays, so that a run may measure some cases or sizes
only: each row says when and where it was measured. A run begins no further case after ``--minutes``.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hyperkern.bench.machine import busy
from hyperkern.bench.matrix import Matrix, check
from hyperkern.bench.registry import CASES, BenchError, load_all
from hyperkern.bench.result import COLUMNS, Result, Row, quantile, read_as
from hyperkern.bench.run import run
from hyperkern.bench.table import print_table
from hyperkern.files import OutputError, check_outputs

from .measure import in_words, write

OWN, EAGER, COMPILED = NAMES = ("hyperkern", "dense", "compiled")
SIZES, DIMS = (128, 256, 512, 1024, 2048, 4096), (128, 512)
# Many rounds where calls are short, three at least of what takes up to so many seconds.
ROUNDS, RATES, SECONDS = 31, 5, 2.0
# What each row says of the machine, since rows of several runs stand in one file.
OF_RUN = ("processor", "threads", "clocks", "torch", "hyperkern", "commit", "date")
HEADS = (
    *("case", "N", "D", *(f"{name}, ms" for name in NAMES)),
    *("eager ÷ own", "compiled ÷ own", "of product", "peaks, MB"),
)


def cases() -> tuple[str, ...]:
    """All but yardsticks."""
    load_all()
    return tuple(name for name, case in CASES.items() if case.truth is not None)


@dataclass(frozen=True, kw_only=True)
class Summary(Row):
    """A row with its spread, its time over that of hyperkern, the share of the library's product, and its run."""

    iqr_ms: float | None
    fastest_ms: float | None
    over_hyperkern: float | None
    of_product: float | None
    run: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Summaries(Result):
    """The rows of several runs; the machine is that of the last."""

    rows: Sequence[Summary]


def with_summaries(result: Result) -> list[Summary]:
    """The rows with their summaries.

    The share of the product is of the fastest times: the least arithmetic in the fastest call, over its best rate.
    """
    of_run = {name: getattr(result.machine, name) for name in OF_RUN}
    own = {_place(row): row.median_ms for row in result.rows if row.implementation == OWN}
    found = []
    for row in result.rows:
        limit = result.limits[row.dtype]
        summary: dict[str, Any] = dict.fromkeys(("iqr_ms", "fastest_ms", "over_hyperkern", "of_product"))
        if row.status == "ok":
            low, high = (quantile(row.samples_ms, q) for q in (0.25, 0.75))
            fastest = min(row.samples_ms)
            assert limit.best_flops is not None
            summary |= {"iqr_ms": high - low, "fastest_ms": fastest}
            summary["of_product"] = row.flops / (1e-3 * fastest) / limit.best_flops
            if row.median_ms and (by := own.get(_place(row))):
                summary["over_hyperkern"] = row.median_ms / by
        values = {name: getattr(row, name) for name in COLUMNS} | summary
        values["samples_ms"] = tuple(float(f"{ms:.4g}") for ms in row.samples_ms)
        found.append(Summary(**values, run=of_run | {"product": limit}))
    return found


def merged(saved: Summaries | None, new: Result) -> Summaries:
    """A result with the rows of another in place of those of the same points; what was left out replaces nothing."""
    rows = {row.key: row for row in (saved.rows if saved else [])}
    for row in with_summaries(new):
        if row.status != "skipped" or row.key not in rows:
            rows[row.key] = row
    order = {name: i for i, name in enumerate(CASES)}
    in_order = sorted(rows.values(), key=lambda row: (order.get(row.case, len(order)), row.d, row.n))
    return Summaries(schema=new.schema, machine=new.machine, limits=new.limits, rows=in_order)


def lines(rows: Sequence[Summary]) -> list[list[str]]:
    """The table: one line for each case, N and D."""
    places: dict[tuple[str, int, int], dict[str, Summary]] = {}
    for row in rows:
        places.setdefault(_place(row), {})[row.implementation] = row
    found = []
    for (case, n, d), by_name in places.items():
        at = [by_name.get(name) for name in NAMES]
        timed = [row if row is not None and row.status == "ok" else None for row in at]
        times = [_time(row) if row else "" for row in at]
        ratios = [f"{row.over_hyperkern:.2f}" if row and row.over_hyperkern else "" for row in timed[1:]]
        share = f"{timed[0].of_product:.2f}" if timed[0] else ""
        peaks = " / ".join(f"{row.peak_bytes / 1e6:.0f}" if row and row.peak_bytes else "–" for row in timed)
        found.append([case, str(n), str(d), *times, *ratios, share, peaks])
    return found


def _time(row: Summary) -> str:
    return in_words(vars(row)) if row.status == "ok" else row.status.upper()


def _place(row: Row) -> tuple[str, int, int]:
    return row.case, row.n, row.d


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, case by case; 1 where something is wrong or has failed."""
    args, matrix = _asked(arguments)
    if (warning := busy()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    saved = read_as(args.json, Summaries) if args.json and args.json.exists() else None
    started, failed = time.monotonic(), False
    for i, case in enumerate(matrix.cases):
        if time.monotonic() - started > 60 * args.minutes:
            print(f"left out after {args.minutes:g} minutes: --cases {' '.join(matrix.cases[i:])}")
            break
        new = run(replace(matrix, cases=(case,)))
        saved = merged(saved, new)
        if args.json:
            write(args.json, saved)
        print_table(HEADS, lines(with_summaries(new)), 1)
        rate = new.limits["float32"]
        print(f"product: {rate.flops / 1e9:.0f} GFLOP/s, at best {(rate.best_flops or 0.0) / 1e9:.0f}\n", flush=True)
        for row in new.rows:
            if row.status == "failed":
                failed = True
                print(f"failed: {case}, N {row.n}, D {row.d}, {row.implementation}: {row.reason}")
    print(
        "ms: median ± half of the interquartile range (fastest). of product: the least arithmetic over hyperkern's "
        "fastest time, over the best rate of the library's product in the same run. peaks: extra memory, as ordered."
    )
    return int(failed)


def _asked(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Matrix]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the results; what it has of other rows stays")
    parser.add_argument("--cases", nargs="+", default=cases(), metavar="CASE")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="N")
    parser.add_argument("--dims", nargs="+", type=int, default=DIMS, metavar="D")
    parser.add_argument("--implementations", nargs="+", default=NAMES, choices=NAMES, help="dense is always among them")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of short calls")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the samples of one row")
    parser.add_argument("--longest", type=float, default=10.0, help="leave out calls that by the plan take longer")
    parser.add_argument("--minutes", type=float, default=15.0, help="after which no further case is begun")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    args = parser.parse_args(arguments)
    matrix = Matrix(
        *("cpu", tuple(args.cases), tuple(args.sizes), tuple(args.dims), ("float32",)),
        names=tuple(args.implementations),
        rounds=args.rounds,
        rates=RATES,
        seconds=args.seconds,
        longest=args.longest,
        memory=not args.no_memory,
    )
    try:
        check(matrix)
        check_outputs({"json": args.json})
    except (BenchError, OutputError) as error:
        parser.error(str(error))
    return args, matrix


if __name__ == "__main__":
    raise SystemExit(main())
