"""A run: the gate, the memory, then the clock, in turns with the baseline and the machine's own rates."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from . import clock, gate, memory
from .machine import Limit, Rates, describe
from .matrix import Matrix, Point, groups
from .registry import CASES, Loss, Setup
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
    peaks: dict[tuple[str, Setup], memory.Peak] = {}
    for (_, name), setups in in_children.items():
        found = memory.peaks_in_child(name, setups, matrix.files)
        peaks |= {(name, setup): peak for setup, peak in zip(setups, found, strict=True)}
        done += len(setups)
        progress(done, total)
    gated: dict[Any, float | gate.GateFailure | None] = {}
    rows: list[Row] = []
    for group in points:
        rows += _measure(matrix, group, rates[group[0].setup.dtype], peaks, gated)
        done += len(group)
        progress(done, total)
    return {
        "schema": SCHEMA,
        "machine": describe(matrix.device),
        "limits": {dtype: measured.limit()._asdict() for dtype, measured in rates.items()},
        "rows": with_baselines(rows),
    }


def made(point: Point) -> Loss:
    """The loss of a point, compiled where that is its execution."""
    loss = point.implementation.make()
    return torch.compile(loss, dynamic=False) if point.execution == "compile" else loss


def _in_children(
    matrix: Matrix, points: Iterable[list[Point]], limits: dict[str, Limit]
) -> dict[tuple[str, str], list[Setup]]:
    """What is run in processes of their own, before anything is timed: there it may die of too little memory."""
    setups: dict[tuple[str, str], list[Setup]] = {}
    for group in points:
        for point in group:
            refused = point.refusal(limits[point.setup.dtype], matrix.longest)
            if point.execution == "eager" and refused is None:
                setups.setdefault((point.setup.case, point.implementation.name), []).append(point.setup)
    return setups


def _gate(point: Point, gated: dict[Any, float | gate.GateFailure | None]) -> float | None:
    """The error of a point; few rows are the same for all sizes, and are looked at once."""
    setup = point.setup
    mode = "forward" if setup.mode == "forward" else "both"
    seen = (setup._replace(n=min(setup.n, gate.ROWS), mode=mode), point.implementation.name, point.execution)
    if seen not in gated:
        try:
            gated[seen] = gate.check(CASES[setup.case], point.implementation, lambda: made(point), setup)
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
    peaks: dict[tuple[str, Setup], memory.Peak],
    gated: dict[Any, float | gate.GateFailure | None],
) -> list[Row]:
    """The rows of a group."""
    torch._dynamo.reset()  # what was compiled for other shapes counts against how often a function may be compiled
    limit, since = rates.limit(), len(rates.found["flops"])
    rows: dict[Point, Row] = {}
    ready: dict[Point, clock.Runner] = {}
    inputs: list[Tensor] = []
    for point in group:
        reason = point.refusal(limit, matrix.longest)
        if reason is not None:
            rows[point] = row(point, limit, "skipped", reason)
            continue
        error: float | None = None
        try:
            inputs = inputs or _draw(point.setup)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the libraries' own, of every call anew
                error = _gate(point, gated)
                peak = peaks.get((point.implementation.name, point.setup)) if point.execution == "eager" else None
                if isinstance(peak, str):
                    raise gate.GateFailure(peak, error)
                ready[point] = _ready(point, inputs, matrix, ready)
            rows[point] = row(point, limit, "ok", None, error)
        except gate.GateFailure as failure:
            rows[point] = row(point, limit, "failed", str(failure), failure.error)
        except Exception as failure:
            rows[point] = row(point, limit, "failed", _reason(failure), error)
    samples, failures = _samples(matrix, ready, rates)
    limit = rates.limit(since)
    for point, times in samples.items():
        found = rows[point] | {"floor_ms": point.floor_ms(limit)}
        if point in failures:
            rows[point] = found | {"status": "failed", "reason": failures[point]}
            continue
        peak = peaks.get((point.implementation.name, point.setup)) if point.execution == "eager" else None
        if matrix.memory and matrix.device != "cpu":
            peak = _peak_on_device(ready[point], matrix.device)
        rows[point] = timed(found, times, peak if isinstance(peak, int) else None)
    ready.clear()
    gc.collect()
    return [rows[point] for point in group]


def _draw(setup: Setup) -> list[Tensor]:
    torch.manual_seed(0)
    return CASES[setup.case].draw(setup.n, setup.d, setup.dtype, setup.device)


def _reason(failure: Exception) -> str:
    return f"{type(failure).__name__}: {gate.first_line(failure)}"


def _ready(point: Point, inputs: list[Tensor], matrix: Matrix, ready: dict[Point, clock.Runner]) -> clock.Runner:
    """A call that has been warmed up, and whose value at full size is that of the baseline.

    Raises:
        GateFailure: it is not.
    """
    setup = point.setup
    compiled = point.implementation.compiled or point.execution == "compile"
    patience = 1e3 * matrix.seconds
    found = clock.runner(made(point), inputs, setup.mode, setup.device, patience, compiled=compiled)
    if found.value is None or CASES[setup.case].truth is None:
        return found
    if not found.value.isfinite().all():
        raise gate.GateFailure(f"wrong: the value at N {setup.n} is {found.value.item():g}")
    baseline = next((other for p, other in ready.items() if p.implementation.name == CASES[setup.case].baseline), None)
    if baseline is not None and baseline.value is not None:
        expected = baseline.value.double()
        error = ((found.value.double() - expected).abs() / expected.abs()).item()
        if error > MORE_AT_FULL_SIZE * gate.TOLERANCES[setup.dtype]:
            other = CASES[setup.case].baseline
            raise gate.GateFailure(f"wrong: at N {setup.n} its value is {error:.2g} off that of {other!r}", error)
    return found


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
    with memory.PeakMemory(torch.device(device)) as meter:
        runner.run()
    return meter.rise
