"""What a run would take, without running it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch

from .. import format
from . import clock, gate
from .machine import H200, SIDE, Rates
from .matrix import Matrix, Point, groups, rounds_with_rates
from .registry import CASES
from .result import Limit
from .table import aligned

# Seconds: of a compilation, of a process for the memory of one implementation, of all that a run begins with.
COMPILE, PROCESS, START = 5.0, 4.0, 10.0
HEADS = ("case", "dtype", "mode", "N", "D", "FLOPs", "bytes", "floor ms", "implementations", "seconds")


class Planned(NamedTuple):
    """A point of a plan.

    Attributes:
        point: the row.
        floor_ms: the least time of a call.
        seconds: a guess of what its row takes in all, 0 where it is left out.
        refusal: why it is left out, or ``None``.
    """

    point: Point
    floor_ms: float
    seconds: float
    refusal: str | None


class Plan(NamedTuple):
    """A plan.

    Attributes:
        planned: the points.
        limits: the rates that it assumes, by dtype.
        source: where those come from.
        seconds: of the whole run.
    """

    planned: list[Planned]
    limits: dict[str, Limit]
    source: str
    seconds: float


def plan(matrix: Matrix) -> Plan:
    """Plans a run, for a GPU that is not there with the rates of one H200, and all peers counted as installed."""
    here = matrix.device == "cpu" or torch.cuda.is_available()
    if here:
        limits = {dtype: Rates(matrix.device, dtype).limit() for dtype in matrix.dtypes}
        source = "measured on this machine"
    else:
        limits, source = {dtype: H200[dtype] for dtype in matrix.dtypes}, "assumed, of one H200, which is not here"
    planned, gated, prepared = [], set(), set()
    for group in groups(matrix):
        for point in group:
            limit = limits[point.setup.dtype]
            refusal = point.refusal(limit, matrix.longest, here=here)
            seen = (point.implementation, point.setup._replace(n=min(gate.ROWS, point.setup.n)), point.execution)
            compiles = (seen not in gated) + 1
            seconds = 0.0 if refusal is not None else _seconds(point, limit, matrix, compiles)
            if refusal is None:
                gated.add(seen)
                if (dimension := (point.implementation, point.setup.d)) not in prepared:
                    prepared.add(dimension)
                    seconds += point.implementation.first_s
            planned.append(Planned(point, point.floor_ms(limit), seconds, refusal))
    processes = {(p.point.implementation.name, p.point.execution) for p in planned if p.refusal is None}
    total = sum(p.seconds for p in planned)
    if matrix.device == "cpu" and matrix.memory:
        total += PROCESS * len(processes)
    of_rates = sum(
        _rates_seconds(limits[setup.dtype], matrix) for setup in {p.point.setup for p in planned if not p.refusal}
    )
    total += START + of_rates
    return Plan(planned, limits, source, total)


def _seconds(point: Point, limit: Limit, matrix: Matrix, compiles: int) -> float:
    guess = point.guess_ms(limit) / 1e3
    compiled = point.implementation.compiled or point.execution == "compile"
    fixed = compiles * COMPILE if compiled else 0.02
    if matrix.device == "cpu":
        alone = guess * (1 + compiled)  # for its memory, and for the time of one that is measured once
        if guess > matrix.seconds:
            return fixed + alone
        return fixed + alone * matrix.memory + 2 * guess + _rounds(point, limit, matrix) * max(guess, 0.002)
    # The timer calls once, five times to guess, once to warm up and once to measure, at least; each with a full cache.
    of_round = max(8 * guess, (clock.WARMUP_MS + clock.SAMPLE_MS) / 1e3 + 6 * guess)
    return fixed + 4 * guess + _rounds(point, limit, matrix) * of_round


def _rounds(point: Point, limit: Limit, matrix: Matrix) -> int:
    guess = point.guess_ms(limit)
    if matrix.device == "cpu" and guess > 1e3 * matrix.seconds:
        return 0  # the first call is the sample
    return clock.rounds(guess, matrix.seconds, matrix.rounds, matrix.device)


def _rates_seconds(limit: Limit, matrix: Matrix) -> float:
    """Of the machine's own rates in each round of a group."""
    once = 2 * SIDE["cpu"] ** 3 / limit.flops if matrix.device == "cpu" else 0.06
    return len(rounds_with_rates(matrix.rounds, matrix.rates)) * once


def lines(found: Plan, matrix: Matrix) -> list[str]:
    """The plan as text."""
    text = [f"rates {found.source}:"]
    for dtype, limit in found.limits.items():
        text.append(f"  {dtype}: {format.rate(limit.flops, 'FLOP/s')}, {format.rate(limit.bytes, 'B/s')}")
    rows = []
    for setup in dict.fromkeys(p.point.setup for p in found.planned):
        case, limit = CASES[setup.case], found.limits[setup.dtype]
        flops, size = case.flops(setup.n, setup.d, setup.mode), case.least_bytes(setup)
        runs = [p for p in found.planned if p.point.setup == setup and p.refusal is None]
        figures = [format.rate(flops, ""), format.rate(size, ""), f"{limit.floor_ms(flops, size):.4g}", str(len(runs))]
        seconds = f"{sum(p.seconds for p in runs):.1f}"
        rows.append([setup.case, setup.dtype, setup.mode, str(setup.n), str(setup.d), *figures, seconds])
    text += ["", *aligned(HEADS, rows, words=3), ""]
    text += [f"{case}: counted {CASES[case].counted}" for case in dict.fromkeys(row[0] for row in rows)]
    left_out = Counter((p.point.setup.case, p.point.implementation.name, p.refusal) for p in found.planned if p.refusal)
    if left_out:
        text.append("\nleft out:")
        text += [f"  {case}, {name}: {why} ({count} rows)" for (case, name, why), count in left_out.items()]
    count = sum(p.refusal is None for p in found.planned)
    text.append(f"\n{count} rows, about {found.seconds / 60:.1f} minutes on this plan")
    return text
