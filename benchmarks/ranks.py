"""A loss over ranks beside the same batch in one process: time and memory of loss + gradient.

``torchrun --nproc_per_node=2 -m benchmarks.ranks [--json FILE]``; every rank has one thread, and the one process has
one: perfect scaling is a factor of the number of ranks. Before the clock the gradients are compared with those of one
process.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import hyperkern as hk
from hyperkern.memory import PeakMemory

LOSSES: dict[str, Callable[..., Tensor]] = {
    "uniformity": lambda x, y, **k: hk.uniformity(x, **k),
    "align_uniform": lambda x, y, **k: hk.align_uniform(x, y, **k).loss,
    "clip_loss": lambda x, y, **k: hk.clip_loss(x, y, logit_scale=1 / 0.07, **k),
    "nt_xent": hk.nt_xent,
}
TRANSPORTS = ("gather", "ring")


def step(loss: Callable[..., Tensor], views: list[Tensor], **options: Any) -> list[Tensor]:
    """Loss and gradients."""
    leaves = [view.detach().requires_grad_() for view in views]
    value = loss(*leaves, **options)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def own_rows(views: list[Tensor]) -> list[Tensor]:
    """This rank's part of every view."""
    return [view.tensor_split(dist.get_world_size())[dist.get_rank()] for view in views]


def seconds(run: Callable[[], Any], rounds: int) -> list[float]:
    """The times of several runs that all ranks start together."""
    times = []
    for i in range(rounds + 1):
        dist.barrier()
        start = time.perf_counter()
        run()
        if i > 0:  # the first one warms up
            times.append(time.perf_counter() - start)
    return times


def peak(run: Callable[[], Any]) -> float:
    """Extra resident MiB of a run, the most of all ranks; the gradients are counted."""
    dist.barrier()
    with PeakMemory(torch.device("cpu")) as memory:
        kept = run()
    del kept
    found = torch.tensor(float(memory.rise))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item() / (1 << 20)


def check(loss: Callable[..., Tensor], views: list[Tensor], options: dict[str, Any]) -> None:
    """The gate before the clock, in float64: every rank against one process with the whole batch."""
    views = [view.double() for view in views]
    expected, found = step(loss, views), step(loss, own_rows(views), **options)
    for got, want in zip(found, [expected[0], *own_rows(expected[1:])], strict=True):
        assert (got - want).abs().max() <= 1e-12 * want.abs().max()


def measure(name: str, rows: int, dim: int, rounds: int) -> dict[str, Any]:
    """A line of the table."""
    loss, draw = LOSSES[name], torch.Generator().manual_seed(0)
    views = list(torch.randn(2, rows, dim, generator=draw).unbind())
    own, ranks = own_rows(views), dist.get_world_size()
    row: dict[str, Any] = {"loss": name, "n": rows, "d": dim, "ranks": ranks, "rounds": rounds}

    # The first rank alone; the others wait.
    alone = (lambda: step(loss, views)) if dist.get_rank() == 0 else (lambda: None)
    times = {"one_process": seconds(lambda: (alone(), dist.barrier()), rounds)}
    row["one_process"] = {"peak_mib": peak(alone)}
    for transport in TRANSPORTS:
        options = {"group": hk.Group(grad_scale="sum", transport=transport)}
        check(loss, [view[:257] for view in views], options)
        run = lambda options=options: step(loss, own, **options)  # noqa: E731
        times[transport] = seconds(run, rounds)
        row[transport] = {"peak_mib": peak(run)}
    for which, found in times.items():
        low, median, high = statistics.quantiles(found, n=4)
        row[which] |= {"median_ms": 1e3 * median, "iqr_ms": 1e3 * (high - low)}
    return row


def as_line(row: dict[str, Any]) -> str:
    """A row of the table in Markdown."""
    cells = [
        f"{row[which]['median_ms']:.0f} ± {row[which]['iqr_ms'] / 2:.0f} ms, {row[which]['peak_mib']:.0f} MiB"
        for which in ("one_process", *TRANSPORTS)
    ]
    return f"| {row['loss']} | {row['n']} | {' | '.join(cells)} |"


def main() -> None:
    """Measures everything, on all ranks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--rows", type=int, default=8192, help="of all ranks (%(default)s)")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    ranks = dist.get_world_size()
    if first:
        print(f"| loss | N | one process | {ranks} ranks, gathered | {ranks} ranks, ring |")
        print("|---|---:|---:|---:|---:|")
    rows = []
    for name in LOSSES:
        rows.append(measure(name, args.rows, args.dim, args.rounds))
        if first:
            print(as_line(rows[-1]), flush=True)
    if first and args.json:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        content = {**machine, "hyperkern": hk.__version__, "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
