"""A run: each call alone, for its memory; the gate; the clock, in turns with the baseline and the machine's rates."""

from __future__ import annotations

import gc
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..memory import PeakMemory
from . import clock, gate
from .child import Alone, each_alone
from .machine import Rates, describe
from .matrix import Matrix, Point, groups, rounds_with_rates
from .registry import CASES, Setup
from .result import SCHEMA, Result, Row, with_baselines

Progress = Callable[[int, int], None]
Finished = Callable[[Sequence[Row]], None]
# The error that the gate found, or how an implementation failed there.
Gated = dict[tuple[Setup, str, str], "float | gate.GateFailure | None"]
# The value at full size may be further from the baseline's than few rows are from the truth: longer sums.
MORE_AT_FULL_SIZE = 4.0
# Rows on which an implementation builds what it has to build for a dimension.
FEW_ROWS = 64
# A call of so many times `Matrix.seconds` is not run again where its time is known from the process of its own. One a
# little longer than those may have been disturbed there.
LONG = 4.0
# Samples of the machine's rates for a group of which nothing is measured in turns.
FEWEST_RATES = 5


def run(
    matrix: Matrix, progress: Progress = lambda done, total: None, finished: Finished = lambda rows: None
) -> Result:
    """Measures a matrix.

    Args:
        matrix: what is asked for, checked.
        progress: called with the rows done and the rows of all.
        finished: called with the rows of each group as soon as it is measured: they are complete, baselines included,
            since a row and its baseline are in one group.
    """
    machine = describe(matrix.device)
    points = list(groups(matrix))
    rates = {dtype: Rates(matrix.device, dtype) for dtype in matrix.dtypes}
    limits = {dtype: measured.limit() for dtype, measured in rates.items()}
    refusals = {p: p.refusal(limits[p.setup.dtype], matrix.longest) for group in points for p in group}
    wanted = [point for point, reason in refusals.items() if reason is None]
    gated = _gated(matrix, wanted)
    # Before anything is timed: there it may die of too little memory.
    in_children = _by_process(wanted) if matrix.memory and matrix.device == "cpu" else []
    done, total = 0, sum(map(len, points)) + sum(map(len, in_children))
    progress(done, total)
    alone: dict[Point, Alone | str] = {}
    for those in in_children:
        alone |= dict(zip(those, _alone(those, matrix), strict=True))
        done += len(those)
        progress(done, total)
    rows: list[Row] = []
    for group in points:
        measured = with_baselines(_measure(matrix, group, rates[group[0].setup.dtype], refusals, alone, gated))
        finished(measured)
        rows += measured
        done += len(group)
        progress(done, total)
    limits = {dtype: measured.limit() for dtype, measured in rates.items()}
    return Result(schema=SCHEMA, machine=machine, limits=limits, rows=rows)


def _by_process(points: Iterable[Point]) -> list[list[Point]]:
    """The points by what runs in one process, one after the other."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        found.setdefault((point.implementation.name, point.execution), []).append(point)
    return list(found.values())


def _alone(points: Sequence[Point], matrix: Matrix, most_rows: int = 1 << 40) -> list[Alone | str]:
    setups = [point.setup._replace(n=min(point.setup.n, most_rows)) for point in points]
    return each_alone(points[0].implementation.name, points[0].execution, setups, matrix.files)


def _gated(matrix: Matrix, wanted: Iterable[Point]) -> Gated:
    """The gate of all points; few rows are the same for all sizes, and are looked at once.

    What has to be built first, for minutes, is built in a process of its own meanwhile: nothing is timed yet.
    """
    points = {_of_gate(point): point for point in wanted}
    slow = {key: point for key, point in points.items() if point.implementation.first_s > 0}
    building = threading.Thread(target=_built, args=(_by_process(slow.values()), matrix))
    building.start()
    found = {key: _gate(point) for key, point in points.items() if key not in slow}
    building.join()
    return found | {key: _gate(point) for key, point in slow.items()}


def _built(processes: Iterable[Sequence[Point]], matrix: Matrix) -> None:
    for points in processes:
        _alone(points, matrix, FEW_ROWS)


def _of_gate(point: Point) -> tuple[Setup, str, str]:
    """What of a point the gate looks at."""
    setup = point.setup
    mode = "forward" if setup.mode == "forward" else "both"
    return setup._replace(n=min(setup.n, gate.ROWS), mode=mode), point.implementation.name, point.execution


def _gate(point: Point) -> float | gate.GateFailure | None:
    """The error of a point, or how it fails."""
    _forget_graphs()
    make = partial(point.implementation.loss, point.execution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, of every call anew
        try:
            return gate.check(CASES[point.setup.case], point.implementation, make, point.setup)
        except gate.GateFailure as failure:
            return failure
        except Exception as failure:  # the case itself: a formula of one's own
            return gate.GateFailure(_reason(failure))


def _forget_graphs() -> None:
    """What was compiled for other shapes counts against how often a function may be compiled."""
    if "torch._dynamo" in sys.modules:  # else nothing was, and importing it takes longer than many a measurement
        torch.compiler.reset()


def _measure(
    matrix: Matrix,
    group: list[Point],
    rates: Rates,
    refusals: dict[Point, str | None],
    alone: dict[Point, Alone | str],
    gated: Gated,
) -> list[Row]:
    """The rows of a group."""
    _forget_graphs()
    limit, since = rates.limit(), len(rates.found["flops"])
    rows: dict[Point, Row] = {}
    errors: dict[Point, float | None] = {}
    ready: dict[Point, clock.Runner] = {}
    samples: dict[Point, list[float]] = {}
    values: dict[str, float] = {}
    inputs: list[Tensor] = []
    for point in group:
        reason = refusals[point]
        if reason is not None:
            rows[point] = point.row(limit, "skipped", reason)
            continue
        error: float | None = None
        setup = point.setup
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' own, of every call anew
                found = gated[_of_gate(point)]
                if isinstance(found, gate.GateFailure):
                    raise found
                error, own = found, alone.get(point)
                if isinstance(own, str):
                    raise gate.GateFailure(own, error)
                if own is not None and own.ms > LONG * 1e3 * matrix.seconds and setup.mode != "backward":
                    _hold_value(point, own.value, values)
                    samples[point] = [own.ms]
                else:
                    inputs = inputs or CASES[setup.case].draw(setup.n, setup.d, setup.dtype, setup.device)
                    runner = _ready(point, inputs, matrix)
                    _hold_value(point, runner.value, values)
                    ready[point] = runner
            errors[point] = error
        except gate.GateFailure as failure:
            rows[point] = point.row(limit, "failed", str(failure), failure.error)
        except Exception as failure:
            rows[point] = point.row(limit, "failed", _reason(failure), error)
    taken, failures = _samples(matrix, ready, rates)
    limit = rates.limit(since)
    for point, times in (samples | taken).items():
        if point in failures:
            rows[point] = point.row(limit, "failed", failures[point], errors[point])
            continue
        own = alone.get(point)
        peak = own.peak_bytes if isinstance(own, Alone) else None
        if matrix.memory and matrix.device != "cpu":
            peak = _peak_on_device(ready[point], matrix.device)
        rows[point] = point.row(limit, "ok", None, errors[point], times, peak)
    ready.clear()
    gc.collect()
    return [rows[point] for point in group]


def _reason(failure: Exception) -> str:
    return f"{type(failure).__name__}: {gate.first_line(failure)}"


def _ready(point: Point, inputs: list[Tensor], matrix: Matrix) -> clock.Runner:
    """A call that has been warmed up."""
    loss = point.implementation.loss(point.execution)
    compiled = point.implementation.compiled or point.execution == "compile"
    return clock.runner(loss, inputs, point.setup.mode, point.setup.device, 1e3 * matrix.seconds, compiled=compiled)


def _hold_value(point: Point, value: float | None, values: dict[str, float]) -> None:
    """Holds a value at full size against that of the baseline, the first of a group.

    Raises:
        GateFailure: it is another, or no number.
    """
    setup, baseline = point.setup, CASES[point.setup.case].baseline
    if value is None or CASES[setup.case].truth is None:
        return
    if not math.isfinite(value):
        raise gate.GateFailure(f"wrong: the value at N {setup.n} is {value:g}")
    expected = values.setdefault(baseline, value) if point.implementation.name == baseline else values.get(baseline)
    if expected is None:
        return
    error = abs(value - expected) / abs(expected) if expected else abs(value)
    if error > MORE_AT_FULL_SIZE * gate.TOLERANCES[setup.dtype]:
        raise gate.GateFailure(f"wrong: at N {setup.n} its value is {error:.2g} off that of {baseline!r}", error)


def _samples(
    matrix: Matrix, ready: dict[Point, clock.Runner], rates: Rates
) -> tuple[dict[Point, list[float]], dict[Point, str]]:
    """All times, taken in turns: what slows the machine down meets every implementation alike. And what failed.

    Each round begins with another one: what ran before, the copy for the rates above all, leaves its own in the cache.
    """
    patience = 1e3 * matrix.seconds
    samples: dict[Point, list[float]] = {point: [] for point in ready}
    failures: dict[Point, str] = {}
    wanted = {}
    for point, runner in ready.items():
        wanted[point] = clock.rounds(runner.settled_ms, matrix.seconds, matrix.rounds, matrix.device)
        if runner.first_ms > patience and runner.settled_ms == runner.first_ms:
            samples[point], wanted[point] = [runner.first_ms], 0
    with_rates = rounds_with_rates(max(wanted.values(), default=0), matrix.rates)
    since = len(rates.found["flops"])
    for i in range(matrix.rounds):
        turn = [point for point in ready if wanted[point] > i and point not in failures]
        if not turn and len(rates.found["flops"]) - since >= FEWEST_RATES:
            break
        if i in with_rates or not turn:
            rates.measure()
        first = i % max(len(turn), 1)
        for point in turn[first:] + turn[:first]:
            try:
                samples[point] += clock.sample(ready[point], point.execution, matrix.device)
            except Exception as failure:
                failures[point] = _reason(failure)
    return samples, failures


def _peak_on_device(runner: clock.Runner, device: str) -> int | None:
    runner.forget()
    with PeakMemory(torch.device(device)) as meter:
        runner.run()
    return meter.rise
