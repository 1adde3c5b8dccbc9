"""The demo from the checks to the files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from ..metrics import uniformity_limit
from .config import DemoConfig, check_backend, check_ranges, check_writable, resolve_device
from .data import Digits, load
from .encoder import new_encoder
from .evaluate import encode, evaluate, held_out_views
from .files import write_files
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
    """Run the whole demo; see `hyperkern.demo.run_demo`."""
    start = time.perf_counter()
    device = resolve_device(config.device)
    digits = load(device)
    check_ranges(config, len(digits.train_labels))
    check_backend(config.backend, device, config.dim)
    check_writable(config.out)

    console = Console()
    say = console.print if console.is_terminal else print
    say(
        f"{len(digits.train_labels)} training and {len(digits.held_out_labels)} held-out images of "
        f"handwritten digits, {config.epochs} epochs, batch {config.batch}, on {device}"
    )
    runs, circle = _train_all(config, digits, console)
    summary = summarize(runs)
    limit = uniformity_limit(config.dim, T)
    title, rows = table_title(config, len(digits.held_out_labels)), table_rows(summary, limit)
    say("")
    print_table(console, title, rows)

    say("")
    huge = _huge_batch(config, device, console)
    for line in describe_huge_batch(huge):
        say(line)

    finding = judge(summary, len(digits.held_out_labels))
    say("")
    for line in finding.lines:
        say(line)

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
        finding=finding,
        seconds=time.perf_counter() - start,
    )
    pictures = draw(runs, circle, digits.held_out_labels, limit)
    files = {
        "table.md": markdown(title, rows, finding).encode(),
        "results.json": to_json(results).encode(),
        **{f"picture.{kind}": content for kind, content in pictures.items()},
    }
    write_files(config.out, files)
    say("")
    say(f"{time.perf_counter() - start:.0f} s in all; wrote {', '.join(files)} in {config.out}")
    return results


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
