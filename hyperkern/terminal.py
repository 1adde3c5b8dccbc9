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
    lines = aligned(heads, rows, words)
    # A figure that is cut off says nothing: lines that wrap do.
    fits = max(map(len, lines)) + 2 * len(heads or rows[0]) <= shutil.get_terminal_size().columns
    if not fits or not _can_draw(sys.stdout):
        print("\n".join([title, *lines] if title else lines))
        return
    import rich.box
    import rich.table
    from rich.console import Console
    from rich.text import Text

    drawn = rich.table.Table(title=Text(title) if title else None, box=rich.box.SIMPLE, show_header=bool(heads))
    for i, top in enumerate(heads or rows[0]):
        drawn.add_column(top if heads else "", justify="left" if _of_words(top, i, words) else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(cell, style="bold red" if cell == "FAILED" else "") for cell in row))
    Console().print(drawn)


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """The lines of a table, see `print_table`."""
    lines = [heads, *rows] if heads else list(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = [_of_words(top, i, words) for i, top in enumerate(lines[0])]
    return [
        "  ".join(
            cell.ljust(width) if of_words else cell.rjust(width)
            for cell, width, of_words in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    ]


def _of_words(top: str, place: int, words: int) -> bool:
    return place < words and top not in ("N", "D")


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and find_spec("rich") is not None
