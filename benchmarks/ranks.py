"""A loss over ranks beside the same batch in one process: time and memory of loss + gradient.

``torchrun --nproc_per_node=2 -m benchmarks.ranks [--json FILE]``; every rank has one thread, and the one process has
one: perfect scaling is a factor of the number of ranks. Before the clock the gradients are compared with those of one
process.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import hyperkern as hk
from hyperkern.bench import clock, gate
from hyperkern.bench.machine import describe
from hyperkern.memory import PeakMemory

from .measured import Measured, Measurements, write

LOSSES: dict[str, Callable[..., Tensor]] = {
    "uniformity": lambda x, y, **k: hk.uniformity(x, **k),
    "align_uniform": lambda x, y, **k: hk.align_uniform(x, y, **k).loss,
    "clip_loss": lambda x, y, **k: hk.clip_loss(x, y, logit_scale=1 / 0.07, **k),
    "nt_xent": hk.nt_xent,
}
TRANSPORTS = ("gather", "ring")


@dataclass(frozen=True, kw_only=True)
class Ranked(Measurements):
    """A result file, and the number of ranks."""

    ranks: int


def own_rows(views: list[Tensor]) -> list[Tensor]:
    """This rank's part of every view."""
    parts = (view.detach().tensor_split(dist.get_world_size())[dist.get_rank()] for view in views)
    return [part.clone().requires_grad_() for part in parts]


def samples(run: Callable[[], Any], rounds: int) -> list[float]:
    """Milliseconds of several runs that all ranks start together; the first one warms up."""
    return [(dist.barrier(), clock.once(run, "cpu"))[1] for _ in range(rounds + 1)][1:]


def peak(run: Callable[[], Any]) -> float:
    """Extra resident bytes of a run, the most of all ranks; the gradients are counted."""
    dist.barrier()
    with PeakMemory(torch.device("cpu")) as memory:
        kept = run()
    del kept
    found = torch.tensor(float(memory.rise or 0))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.item()


def check(loss: Callable[..., Tensor], views: list[Tensor], options: dict[str, Any]) -> None:
    """The gate before the clock, in float64: every rank against one process with the whole batch."""
    views = [view.detach().double().requires_grad_() for view in views]
    value, *gradients = gate.step(loss, views)
    found = gate.step(partial(loss, **options), own_rows(views))
    error = gate.largest_error(found, [value, *own_rows(gradients)])
    assert error <= 1e-12, error


def measure(name: str, rows: int, dim: int, rounds: int) -> list[Measured]:
    """The rows of a loss."""
    loss, draw = LOSSES[name], torch.Generator().manual_seed(0)
    views = [view.clone().requires_grad_() for view in torch.randn(2, rows, dim, generator=draw)]
    own = own_rows(views)

    def row(implementation: str, run: Callable[[], Any], timed: Callable[[], Any]) -> Measured:
        times = samples(timed, rounds)  # before the peak: what a library keeps of its first call is no part of it
        return Measured.of(times, case=name, implementation=implementation, n=rows, d=dim, peak_bytes=peak(run))

    # The first rank alone; the others wait.
    alone = (lambda: gate.step(loss, views)) if dist.get_rank() == 0 else (lambda: [])
    found = [row("one process", alone, lambda: (alone(), dist.barrier()))]
    for transport in TRANSPORTS:
        options = {"group": hk.Group(grad_scale="sum", transport=transport)}
        check(loss, [view[:257] for view in views], options)
        run = partial(gate.step, partial(loss, **options), own)
        found.append(row(transport, run, run))
    return found


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
    first, ranks = dist.get_rank() == 0, dist.get_world_size()
    rows: list[Measured] = []
    for name in LOSSES:
        found = measure(name, args.rows, args.dim, args.rounds)
        rows += found
        if first:
            print(f"{name}, N {args.rows}, one process, {ranks} ranks gathered, {ranks} ranks in a ring:", flush=True)
            print("  " + "; ".join(row.time_and_memory for row in found), flush=True)
    if first and args.json:
        write(args.json, Ranked(machine=describe("cpu"), ranks=ranks, rows=rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
