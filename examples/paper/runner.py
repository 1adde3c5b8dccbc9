"""Runs jobs in processes, keeps each result in a file as soon as it is there, and goes on from those that are."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress
from rich.console import Console

from hyperkern.files import as_json, write_files

from . import worker
from .job import Job


class JobError(RuntimeError):
    """A job failed; the message names it and the reason."""


class Done(NamedTuple):
    """What a job returned, and the seconds of a core that it took, whatever else ran beside it."""

    result: dict[str, Any]
    seconds: float


def run_jobs(
    jobs: Mapping[str, Sequence[Job]], out: Path, executor: Executor, console: Console
) -> dict[str, dict[str, Done]]:
    """Run what is not there yet.

    Args:
        jobs: of each part.
        out: the results are kept in ``out/cells/PART/JOB.json``.
        executor: that runs them, see `processes`.
        console: for the progress.

    Returns:
        The results by part and job.

    Raises:
        JobError: a job failed. Those that had ended are kept.
    """
    cells = {(part, job.name): out / "cells" / part / f"{job.name}.json" for part, many in jobs.items() for job in many}
    every = {(part, job.name): job for part, many in jobs.items() for job in many}
    if len(every) != sum(map(len, jobs.values())):
        raise ValueError("two jobs of a part have the same name")
    # Before any runs: a file that is edited meanwhile is not what a job ran.
    fingerprints = {key: job.fingerprint() for key, job in every.items()}
    results = {key: found for key in every if (found := _kept(cells[key], fingerprints[key])) is not None}
    for folder in {cell.parent for cell in cells.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    todo = sorted((key for key in every if key not in results), key=lambda key: -every[key].seconds)
    if results:
        console.print(f"{len(results)} of {len(every)} jobs are done already, in {out / 'cells'}")
    for key, done in _completed(every, todo, executor, console):
        results[key] = done
        try:
            cell = as_json({"fingerprint": fingerprints[key], **done._asdict()})
        except ValueError as error:
            raise JobError(f"{'/'.join(key)} failed: what it returned cannot be kept: {error}") from error
        write_files({cells[key]: cell})
    return {part: {job.name: results[part, job.name] for job in many} for part, many in jobs.items()}


def _kept(path: Path, fingerprint: str) -> Done | None:
    """The result of an earlier run, if it is of the job as it is now."""
    try:
        cell = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(cell, dict) or cell.get("fingerprint") != fingerprint:
        return None
    return Done(cell["result"], cell["seconds"])


Key = tuple[str, str]


def _completed(
    jobs: Mapping[Key, Job], todo: Sequence[Key], executor: Executor, console: Console
) -> Iterator[tuple[Key, Done]]:
    futures = {executor.submit(_timed, jobs[key]): key for key in todo}
    with _Progress(console, sum(jobs[key].seconds for key in todo), len(todo)) as progress:
        for future in as_completed(futures):
            part, name = key = futures[future]
            try:
                done = future.result()
            except BrokenProcessPool as error:  # of every job that is left: which one it ran is not known
                raise JobError(
                    "a process that runs jobs was killed; if by the system, for want of memory, try --processes 1"
                ) from error
            except Exception as error:
                raise JobError(f"{part}/{name} failed: {type(error).__name__}: {error}") from error
            progress.advance(f"{part}/{name}", jobs[key].seconds, done.seconds)
            yield key, done


@contextmanager
def processes(number: int) -> Iterator[Executor]:
    """Run jobs in as many processes, each of one thread; those that run at the end, after an error, are ended."""
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    with theirs, ours:
        executor = ProcessPoolExecutor(number, context, worker.start, (theirs,))
        try:
            yield executor
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _timed(job: Job) -> Done:
    start = time.process_time()
    return Done(job.run(), time.process_time() - start)


class _Progress:
    """A bar by the jobs' expected seconds on a terminal, a line for each job elsewhere."""

    def __init__(self, console: Console, seconds: float, jobs: int) -> None:
        self._console, self._jobs, self._done = console, jobs, 0
        columns = (
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[done]}"),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
            rich.progress.TextColumn("{task.description}"),
        )
        self._bar = rich.progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=seconds, done=f"0/{jobs}")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, name: str, expected: float, took: float) -> None:
        """A job has ended."""
        self._done += 1
        self._bar.update(self._task, advance=expected, description=name, done=f"{self._done}/{self._jobs}")
        if not self._console.is_terminal:
            line = f"[{self._done:{len(str(self._jobs))}}/{self._jobs}] {name}: {took:.1f} s"
            self._console.print(line, highlight=False, soft_wrap=True)
