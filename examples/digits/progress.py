"""Progress over the training runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import rich.progress
from rich.console import Console

Job = TypeVar("Job")


def track(console: Console, jobs: Sequence[Job], describe: Callable[[Job], str]) -> Generator[Job, None, None]:
    """Hand out the jobs one by one, with a bar on a terminal and one plain line for each job elsewhere.

    Args:
        console: of the standard error output.
        jobs: what is to be done.
        describe: names a job.
    """
    if console.is_terminal:
        columns = (
            rich.progress.SpinnerColumn(),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.description}"),
        )
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=len(jobs))
            for job in jobs:
                bar.update(task, description=describe(job))
                yield job
                bar.advance(task)
        return
    for number, job in enumerate(jobs, 1):
        start = time.perf_counter()
        yield job
        seconds = time.perf_counter() - start
        line = f"[{number:{len(str(len(jobs)))}}/{len(jobs)}] {describe(job)}: {seconds:.1f} s"
        print(line, file=sys.stderr, flush=True)
