"""What a training step takes in the trainers that people have, with a library's loss and with its drop-in.

``python -m benchmarks trainers [--json FILE] [--cases ...] [--sizes ...]``: the fits of `benchmarks.fits` with AdamW.
First two fits from the same weights, one with each loss, must have the same curve. Then in one fit the losses take
turns from step to step, in an order drawn anew each round: the same loop, model and samples. A step lasts from one call
of a loss to the next, so it has everything that the trainer does between them. A third loss only sums the embeddings:
what a step takes more with another is that one's share.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hyperkern.bench import clock, gate
from hyperkern.bench.machine import busy, describe
from hyperkern.files import OutputError, check_outputs
from hyperkern.terminal import print_table

from .fit_cases import CASES, Case
from .fits import Plan
from .measured import Measured, Measurements, write

NAMES = ("original", "hyperkern", "none")
SIZES = (32, 128, 512)
DIM, WIDTH = 256, 64
SECONDS, ROUNDS = 5.0, 101
GATE_STEPS = 3
# Of AdamW: what changes is nothing to the time, but weights that a sum of embeddings drives away would be.
RATE = 1e-6
# One process, without what shards a model over several.
MEASURED = tuple(name for name in CASES if not name.startswith("fully_shard"))
HEADS = ("case", "N", "original, ms", "hyperkern, ms", "own ÷ original", "share of the original", "own")


@dataclass(frozen=True, kw_only=True)
class Step(Measured):
    """Times of a step; how far the curve of this loss was from the original's."""

    error: float | None = None


@dataclass(frozen=True, kw_only=True)
class Steps(Measurements):
    """A result file."""

    rows: Sequence[Step]


class Turns(nn.Module):
    """Losses that take turns from call to call.

    Attributes:
        calls: name and beginning, in seconds, of each call, and the value.
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.calls: list[tuple[str, float, float]] = []
        self._next: list[str] = []
        self._random = random.Random(0)

    def forward(self, *args: Any, **options: Any) -> Any:
        """What the loss says whose turn it is."""
        if not self._next:
            self._next = self._random.sample(list(self.losses), len(self.losses))
        name, began = self._next.pop(), time.perf_counter()
        value = self.losses[name](*args, **options)
        number = value["contrastive_loss"] if isinstance(value, Mapping) else value
        self.calls.append((name, began, number.item()))
        return value

    def samples(self) -> dict[str, list[float]]:
        """Milliseconds from call to call of each; the first round warms up, the last call has no end."""
        found: dict[str, list[float]] = {name: [] for name in self.losses}
        calls = self.calls[len(self.losses) :]
        for (name, began, _), (_, ended, _) in pairwise(calls):
            found[name].append(1e3 * (ended - began))
        return found


def fitted(case: Case, plan: Plan, *names: str) -> Turns:
    """A fit with one of the losses, or with several in turns."""
    turns: list[Turns] = []

    def loss_of(model: nn.Module) -> nn.Module:
        turns.append(Turns({name: case.losses[name](model) for name in names}))
        return turns[0]

    torch.manual_seed(0)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # the libraries' own, as what they print
        case.fit(loss_of, plan)
    return turns[0]


def measure(name: str, n: int, seconds: float, rounds: int) -> list[Step]:
    """The rows of a trainer and its loss at a batch size.

    Raises:
        GateFailure: the drop-in's curve is another.
    """
    case, plan = CASES[name], Plan(batch=n, steps=GATE_STEPS, dim=DIM, width=WIDTH, optimizer="sgd")
    found = {each: fitted(case, plan, each) for each in NAMES[:2]}
    curves = (torch.tensor([value for *_, value in turns.calls], dtype=torch.float64) for turns in found.values())
    original, own = ([value] for value in curves)
    error = gate.largest_error(own, original)
    if not error <= gate.TOLERANCES["float32"]:
        raise gate.GateFailure(f"{name} at N {n}: its curve is {error:.2g} off that of the original", error)
    ms = sum(min(times) for turns in found.values() for times in turns.samples().values())
    steps = len(NAMES) * (1 + clock.rounds(ms, seconds, rounds, "cpu")) + 1
    plan = Plan(batch=n, steps=steps, dim=DIM, width=WIDTH, optimizer="adamw", rate=RATE)
    rows = []
    for each, times in fitted(case, plan, *NAMES).samples().items():
        fields = {"case": name, "implementation": each, "n": n, "d": DIM}
        if each == "original":
            fields |= {"package": case.package, "version": version(case.package)}
        rows.append(Step.of(times, **fields, error=error if each == "hyperkern" else None))
    return rows


def beside(rows: Sequence[Step]) -> list[list[Step]]:
    """The rows of each case and size, in the order of `NAMES`."""
    places = {(row.case, row.n, row.implementation): row for row in rows}
    return [[places[case, n, name] for name in NAMES] for case, n in dict.fromkeys((row.case, row.n) for row in rows)]


def share(row: Step, without: Step) -> float:
    """Of the loss and its gradient in a step."""
    return max(0.0, 1 - without.ms / row.ms)


def lines(rows: Sequence[Step]) -> list[list[str]]:
    """The table."""
    found = []
    for original, own, without in beside(rows):
        shares = [f"{100 * share(row, without):.0f} %" for row in (original, own)]
        times = [f"{row.ms:.3g} ± {row.half_ms:.2g}" for row in (original, own)]
        found.append([own.case, str(own.n), *times, f"{own.ms / original.ms:.2f}", *shares])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks trainers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the results")
    parser.add_argument("--cases", nargs="+", default=list(MEASURED), choices=list(CASES), metavar="CASE")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="N", help="samples of a step")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most for a row (default {ROUNDS})")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for the rows of a size (default {SECONDS:g})")
    args = parser.parse_args(arguments)
    try:
        check_outputs({"json": args.json})
    except OutputError as error:
        parser.error(str(error))
    if (warning := busy()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    rows = []
    for case in args.cases:
        for n in args.sizes:
            rows += measure(case, n, args.seconds, args.rounds)
            print(*lines(rows[-len(NAMES) :])[0], sep="  ", file=sys.stderr, flush=True)
    if args.json:
        write(args.json, Steps(machine=describe("cpu"), rows=rows))
    print_table(HEADS, lines(rows), 1)
    return 0
