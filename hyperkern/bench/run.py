"""A run: each call alone, for its memory; the gate; the clock, in turns with the baseline and the machine's rates."""

from __future__ import annotations

import gc
import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..demo.memory import PeakMemory
from . import clock, gate
from .alone import Alone, each_alone
from .machine import Limit, Rates, describe
from .matrix import Matrix, Point, groups
from .registry import CASES, Setup
from .result import SCHEMA, Result, Row, row, timed, with_baselines

Progress = Callable[[int, int], None]
# The value at full size may be further from the baseline's than few rows are from the truth: longer sums.
MORE_AT_FULL_SIZE = 4.0


def run(matrix: Matrix, progress: Progress = lambda done, total: None) -> Result:
    """Measures a matrix.

    Args:
        matrix: what is asked for, checked.
        progress: called with the rows done and the rows of all.
    """
    points = list(groups(matrix))
    rates = {dtype: Rates(matrix.device, dtype) for dtype in matrix.dtypes}
    limits = {dtype: measured.limit() for dtype, measured in rates.items()}
    in_children = _in_children(matrix, points, limits) if matrix.memory and matrix.device == "cpu" else {}
    done, total = 0, sum(map(len, points)) + sum(map(len, in_children.values()))
    progress(done, total)
    alone: dict[Point, Alone | str] = {}
    for (name, execution), those in in_children.items():
        found = each_alone(name, execution, [point.setup for point in those], matrix.files)
        alone |= dict(zip(those, found, strict=True))
        done += len(those)
        progress(done, total)
    gated: dict[Any, float | gate.GateFailure | None] = {}
    rows: list[Row] = []
    for group in points:
        rows += _measure(matrix, group, rates[group[0].setup.dtype], alone, gated)
        done += len(group)
        progress(done, total)
    return {
        "schema": SCHEMA,
        "machine": describe(matrix.device),
        "limits": {dtype: measured.limit()._asdict() for dtype, measured in rates.items()},
        "rows": with_baselines(rows),
    }


def _in_children(
    matrix: Matrix, points: Iterable[list[Point]], limits: dict[str, Limit]
) -> dict[tuple[str, str], list[Point]]:
    """What is run in processes of their own, before anything else: there it may die of too little memory."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in itertools.chain.from_iterable(points):
        if point.refusal(limits[point.setup.dtype], matrix.longest) is None:
            found.setdefault((point.implementation.name, point.execution), []).append(point)
    return found


def _gate(point: Point, gated: dict[Any, float | gate.GateFailure | None]) -> float | None:
    """The error of a point; few rows are the same for all sizes, and are looked at once."""
    setup = point.setup
    mode = "forward" if setup.mode == "forward" else "both"
    seen = (setup._replace(n=min(setup.n, gate.ROWS), mode=mode), point.implementation.name, point.execution)
    if seen not in gated:
        try:
            gated[seen] = gate.check(
                CASES[setup.case], point.implementation, partial(point.implementation.loss, point.execution), setup
            )
        except gate.GateFailure as failure:
            gated[seen] = failure
    found = gated[seen]
    if isinstance(found, gate.GateFailure):
        raise found
    return found


def _measure(
    matrix: Matrix,
    group: list[Point],
    rates: Rates,
    alone: dict[Point, Alone | str],
    gated: dict[Any, float | gate.GateFailure | None],
) -> list[Row]:
    """The rows of a group."""
    torch._dynamo.reset()  # what was compiled for other shapes counts against how often a function may be compiled
    limit, since = rates.limit(), len(rates.found["flops"])
    rows: dict[Point, Row] = {}
    ready: dict[Point, clock.Runner] = {}
    samples: dict[Point, list[float]] = {}
    values: dict[str, float] = {}
    inputs: list[Tensor] = []
    for point in group:
        reason = point.refusal(limit, matrix.longest)
        if reason is not None:
            rows[point] = row(point, limit, "skipped", reason)
            continue
        error: float | None = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' own, of every call anew
                error = _gate(point, gated)
                own = alone.get(point)
                if isinstance(own, str):
                    raise gate.GateFailure(own, error)
                if own is not None and own.ms > 1e3 * matrix.seconds and point.setup.mode != "backward":
                    samples[point] = [own.ms]
                    value = own.value
                else:
                    inputs = inputs or _draw(point.setup)
                    ready[point] = _ready(point, inputs, matrix)
                    value = ready[point].value
            _hold_value(point, value, values)
            rows[point] = row(point, limit, "ok", None, error)
        except gate.GateFailure as failure:
            rows[point] = row(point, limit, "failed", str(failure), failure.error)
        except Exception as failure:
            rows[point] = row(point, limit, "failed", _reason(failure), error)
        if rows[point]["status"] != "ok":
            samples.pop(point, None)
            ready.pop(point, None)
    taken, failures = _samples(matrix, ready, rates)
    limit = rates.limit(since)
    for point, times in (samples | taken).items():
        found = rows[point] | {"floor_ms": point.floor_ms(limit)}
        if point in failures:
            rows[point] = found | {"status": "failed", "reason": failures[point]}
            continue
        own = alone.get(point)
        peak = own.peak_bytes if isinstance(own, Alone) else None
        if matrix.memory and matrix.device != "cpu":
            peak = _peak_on_device(ready[point], matrix.device)
        rows[point] = timed(found, times, peak)
    ready.clear()
    gc.collect()
    return [rows[point] for point in group]


def _draw(setup: Setup) -> list[Tensor]:
    return CASES[setup.case].draw(setup.n, setup.d, setup.dtype, setup.device)


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
    """All times, taken in turns: what slows the machine down meets every implementation alike. And what failed."""
    patience = 1e3 * matrix.seconds
    samples: dict[Point, list[float]] = {point: [] for point in ready}
    failures: dict[Point, str] = {}
    wanted = {}
    for point, runner in ready.items():
        wanted[point] = clock.rounds(runner.settled_ms, matrix.seconds, matrix.rounds, matrix.device)
        if runner.first_ms > patience and runner.settled_ms == runner.first_ms:
            samples[point], wanted[point] = [runner.first_ms], 0
    for i in range(matrix.rounds):
        turn = [point for point in ready if wanted[point] > i and point not in failures]
        if not turn and i > 0:
            break
        rates.measure()
        for point in turn:
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
