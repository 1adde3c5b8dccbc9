"""The demo from the checks to the files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from hyperkern.files import write_files
from hyperkern.metrics import uniformity_limit

from .config import FILES, DemoConfig, check_backend, check_ranges, check_writable, resolve_device
from .data import Digits, load
from .encoder import new_encoder
from .evaluate import encode, evaluate, held_out_views
from .huge_batch import HugeBatch, default_rows, describe_huge_batch, measure_huge_batch
from .objectives import OBJECTIVES, UNTRAINED, Objective, T
from .picture import draw
from .progress import track
from .report import Results, markdown, print_table, table_rows, table_title, to_json
from .results import CircleRun, Run, judge, summarize
from .train import train_encoder

CIRCLE_DIM = 2
CIRCLE_SEED = 0


class _Job(NamedTuple):
    objective: Objective
    seed: int
    dim: int
    for_circle: bool = False

    def __str__(self) -> str:
        return f"{self.objective.label}, {self.dim} dimensions, seed {self.seed}"


def run(config: DemoConfig) -> Results:
    """Run the whole demo; see `examples.digits.run_demo`."""
    start = time.perf_counter()
    device = resolve_device(config.device)
    digits = load(device)
    check_ranges(config, len(digits.train_labels))
    check_backend(config.backend, device, config.dim)
    check_writable(config.out)

    # Progress goes to the standard error output, so that what is printed can be piped.
    on_the_way = Console(stderr=True)
    tell = on_the_way.print if on_the_way.is_terminal else partial(print, file=sys.stderr)
    tell(
        f"{len(digits.train_labels)} training and {len(digits.held_out_labels)} held-out images of "
        f"handwritten digits, {config.epochs} epochs, batch {config.batch}, on {device}"
    )
    runs, circle = _train_all(config, digits, on_the_way)
    summary = summarize(runs)
    limit = uniformity_limit(config.dim, T)
    huge = _huge_batch(config, device, on_the_way)
    results = Results(
        config=config,
        device=_device_name(device),
        train_size=len(digits.train_labels),
        held_out_size=len(digits.held_out_labels),
        runs=runs,
        summary=summary,
        circle=circle,
        limit=limit,
        huge=huge,
        finding=judge(summary, len(digits.held_out_labels)),
        seconds=time.perf_counter() - start,
    )
    write_files(_contents(results, digits))  # before anything is printed, which may find that nobody listens
    _print(results)
    return results


def _contents(results: Results, digits: Digits) -> dict[Path, bytes]:
    title, rows = table_title(results.config, results.held_out_size), table_rows(results.summary, results.limit)
    pictures = draw(results.runs, results.circle, digits.held_out_labels, results.limit)
    contents = {
        "table.md": markdown(title, rows, results.finding).encode(),
        "results.json": to_json(results).encode(),
        **{f"picture.{kind}": content for kind, content in pictures.items()},
    }
    return {results.config.out / name: contents[name] for name in FILES}


def _print(results: Results) -> None:
    console = Console()
    say = console.print if console.is_terminal else print
    title, rows = table_title(results.config, results.held_out_size), table_rows(results.summary, results.limit)
    print_table(console, title, rows)
    say("")
    for line in describe_huge_batch(results.huge):
        say(line)
    say("")
    for line in results.finding.lines:
        say(line)
    say("")
    say(f"{results.seconds:.0f} s in all; wrote {', '.join(FILES)} in {results.config.out}")


def _train_all(config: DemoConfig, digits: Digits, console: Console) -> tuple[list[Run], list[CircleRun]]:
    device = digits.train_images.device
    runs = []
    for seed in range(config.seeds):
        evaluation = evaluate(new_encoder(config.dim, seed, device).eval(), digits, backend=config.backend)
        runs.append(Run(UNTRAINED, seed, config.dim, evaluation, seconds=0.0))
    circle = []
    jobs = [_Job(objective, seed, config.dim) for seed in range(config.seeds) for objective in OBJECTIVES]
    jobs += [_Job(objective, CIRCLE_SEED, CIRCLE_DIM, for_circle=True) for objective in OBJECTIVES]
    with _one_thread(), closing(track(console, jobs, str)) as tracked:
        for job in tracked:
            start = time.perf_counter()
            encoder = train_encoder(
                job.objective,
                digits.train_images,
                dim=job.dim,
                epochs=config.epochs,
                batch=config.batch,
                seed=job.seed,
                backend=config.backend,
            )
            evaluation = evaluate(encoder, digits, backend=config.backend)
            run = Run(job.objective.name, job.seed, job.dim, evaluation, time.perf_counter() - start)
            if job.for_circle:
                features = encode(encoder, held_out_views(digits)[0])
                circle.append(CircleRun(run, np.arctan2(features[:, 1], features[:, 0])))
            else:
                runs.append(run)
    return runs, circle


@contextmanager
def _one_thread() -> Iterator[None]:
    # The encoder's layers are so small that threads wait for each other more than they compute, above all on
    # a busy machine; and the figures come out the same whatever the number of cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _huge_batch(config: DemoConfig, device: torch.device, console: Console) -> HugeBatch:
    rows = default_rows(device) if config.huge_rows is None else config.huge_rows
    with console.status(f"one batch of {rows:,} rows"):  # shows nothing where there is no terminal
        return measure_huge_batch(device, rows, backend=config.backend)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"
