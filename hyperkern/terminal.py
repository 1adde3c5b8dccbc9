"""Progress and tables of a command: drawn on a terminal, where `rich` is installed, and plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TextIO


@contextmanager
def progress_bar(command: str) -> Iterator[Callable[[int, int], None]]:
    """Hand out a function to be called with the steps done and the steps of all.

    It writes to the standard error output, so that what a command prints can be piped.
    """
    if _can_draw(sys.stderr):
        import rich.progress
        from rich.console import Console

        columns = (
            rich.progress.SpinnerColumn(),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return

    start, tenths = time.perf_counter(), 0

    def print_tenths(done: int, total: int) -> None:
        nonlocal tenths
        if 10 * done // total > tenths:
            tenths = 10 * done // total
            print(f"{command}: {10 * tenths} %, {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)

    yield print_tenths


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int, title: str = "") -> None:
    """Drawn on a terminal that is wide enough, where `rich` is installed; aligned lines elsewhere.

    Args:
        heads: of the columns; none for a table without.
        rows: of cells.
        words: how many of the first columns may be words; the others are figures.
        title: above it.
    """
    lines = [heads, *rows] if heads else list(rows)
    columns = range(len(lines[0]))
    left = [i < words and lines[0][i] not in ("N", "D") for i in columns]
    widths = [max(len(line[i]) for line in lines) for i in columns]
    # A figure that is cut off says nothing: lines that wrap do.
    fits = sum(widths) + 4 * len(widths) <= shutil.get_terminal_size().columns
    if fits and _can_draw(sys.stdout):
        import rich.box
        import rich.table
        from rich.console import Console
        from rich.text import Text

        drawn = rich.table.Table(title=Text(title) if title else None, box=rich.box.SIMPLE, show_header=bool(heads))
        for i in columns:
            drawn.add_column(heads[i] if heads else "", justify="left" if left[i] else "right", no_wrap=True)
        for row in rows:
            drawn.add_row(*(Text(cell, style="bold red" if cell == "FAILED" else "") for cell in row))
        Console().print(drawn)
        return
    if title:
        print(title)
    for line in lines:
        aligned = (
            cell.ljust(width) if of_words else cell.rjust(width)
            for cell, width, of_words in zip(line, widths, left, strict=True)
        )
        print("  ".join(aligned).rstrip())


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and find_spec("rich") is not None
