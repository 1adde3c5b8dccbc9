"""Progress for a command: a bar on a terminal, where `rich` is installed, and plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def progress_bar(command: str) -> Iterator[Callable[[int, int], None]]:
    """Hand out a function to be called with the steps done and the steps of all.

    It writes to the standard error output, so that what a command prints can be piped.
    """
    if sys.stderr.isatty() and find_spec("rich") is not None:
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
