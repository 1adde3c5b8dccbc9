"""Results and comparisons as tables on a terminal."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec

from .compare import Change
from .result import Result, Row

HEADS = (
    *("case", "N", "D", "dtype", "mode", "implementation"),
    *("median ms", "20-80 %", "TFLOP/s", "GB/s", "of limit", "× baseline", "peak MB"),
)
WORDS = 6  # columns that are no figures, N and D among them


def cells(row: Row) -> list[str]:
    """A measured or failed row."""
    name = row.implementation if row.execution == "eager" else f"{row.implementation} ({row.execution})"
    head = [*_place(row), name]
    if row.status != "ok":
        return [*head, row.status.upper(), *[""] * (len(HEADS) - WORDS - 1)]
    return [
        *head,
        f"{row.median_ms:.4g}",
        f"{row.p20_ms:.4g}–{row.p80_ms:.4g}" if len(row.samples_ms) > 1 else "once",
        f"{row.tflops:.3g}",
        f"{row.gbs:.3g}",
        f"{row.of_limit:.2f}",
        "" if row.vs_baseline is None else f"{row.vs_baseline:.2f}",
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
    ]


def print_result(result: Result) -> None:
    """The rows, then what failed and what was skipped, with the reasons."""
    machine = asdict(result.machine)
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "triton", "cuda", "driver") if machine[name])
    print(
        f"{machine['device']}, {machine['processor']}, {machine['threads']} threads, clocks {machine['clocks']}; "
        f"{versions}; hyperkern {machine['hyperkern']}, commit {machine['commit']}, {machine['date']}"
    )
    for dtype, limit in result.limits.items():
        print(f"{dtype}: matrix product {limit.flops / 1e12:.4g} TFLOP/s, copy {limit.bytes / 1e9:.4g} GB/s")
    rows = [row for row in result.rows if row.status != "skipped"]
    print_table(HEADS, [cells(row) for row in rows], WORDS)
    for status in ("failed", "skipped"):
        found = Counter((row.case, row.implementation, row.reason) for row in result.rows if row.status == status)
        for (case, name, reason), count in found.items():
            print(f"{status}: {case}, {name}: {reason}" + (f" ({count} rows)" if count > 1 else ""))
    print(
        "of limit: the least time, by the machine's own product and copy measured in the same rounds, over the median; "
        "× baseline: times faster than it."
    )


def print_changes(changes: Sequence[Change], threshold: float) -> None:
    """A comparison, the regressions last."""
    lines = []
    for change in sorted(changes, key=lambda each: each.regression):
        ratio = "" if change.ratio is None else f"{change.ratio:.3f}"
        interval = "" if change.low is None or change.high is None else f"{change.low:.3f}–{change.high:.3f}"
        lines.append(
            [*_place(change.row), change.row.implementation, ratio, interval, change.corrected, change.verdict]
        )
    print_table((*HEADS[:WORDS], "new / old", "interval", "drift removed", "verdict"), lines, WORDS)
    slower = sum(change.regression for change in changes)
    print(f"{len(changes)} rows compared, {slower} slower by more than {100 * threshold:g} % or failing")


def _place(row: Row) -> list[str]:
    return [row.case, str(row.n), str(row.d), row.dtype, row.mode]


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> None:
    """Drawn on a terminal that is wide enough, where `rich` is installed; aligned lines elsewhere.

    Args:
        heads: of the columns.
        rows: of cells.
        words: how many of the first columns may be words; the others are figures.
    """
    lines = aligned(heads, rows, words)
    # A figure that is cut off says nothing: lines that wrap do.
    fits = max(map(len, lines)) + 2 * len(heads) <= shutil.get_terminal_size().columns
    if not fits or not sys.stdout.isatty() or find_spec("rich") is None:
        print("\n".join(lines))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE)
    for i, head in enumerate(heads):
        drawn.add_column(head, justify="left" if _of_words(head, i, words) else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell, style="bold red" if cell == "FAILED" else "") for cell in row))
    Console().print(drawn)


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """The lines of a table, see `print_table`."""
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(widths[i]) if _of_words(heads[i], i, words) else cell.rjust(widths[i])
            for i, cell in enumerate(line)
        ).rstrip()
        for line in (heads, *rows)
    ]


def _of_words(head: str, place: int, words: int) -> bool:
    return place < words and head not in ("N", "D")
