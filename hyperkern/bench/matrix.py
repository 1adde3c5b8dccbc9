"""What is measured: cases x implementations x shapes x dtypes x modes x executions, and what is left out of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .registry import (
    CASES,
    DTYPES,
    EXECUTIONS,
    IMPLEMENTATIONS,
    MODES,
    BenchError,
    Implementation,
    Setup,
    implementations,
)
from .result import Limit, Row, Status, quantile


@dataclass(frozen=True)
class Matrix:
    """What is asked for.

    Attributes:
        device: where to measure.
        cases: names.
        names: of the implementations; ``None`` for all.
        sizes: rows of a feature tensor.
        dims: their dimensions.
        dtypes: names.
        modes: of `MODES`.
        executions: of `EXECUTIONS`.
        rounds: samples on a CPU, runs of the timer on a GPU.
        rates: in so many of the rounds, at most, the machine's own rates are measured too.
        seconds: for the samples of one row; a call that takes longer is measured once.
        longest: seconds of a single call beyond which, by the plan, it is left out.
        memory: whether peak memory is measured.
        files: your own, with further cases and implementations.
    """

    device: str
    cases: tuple[str, ...]
    sizes: tuple[int, ...]
    dims: tuple[int, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...] = ("both",)
    executions: tuple[str, ...] = ("eager",)
    names: tuple[str, ...] | None = None
    rounds: int = 11
    rates: int = 11
    seconds: float = 1.0
    longest: float = 10.0
    memory: bool = True
    files: tuple[Path, ...] = ()


# The matrices that a command without options measures: in under ten minutes on two cores, in under eight on one GPU.
DEFAULTS = {
    "cpu": Matrix("cpu", ("uniformity", "nt_xent", "clip"), (512, 4096, 16384), (128, 512), ("float32",), longest=14.0),
    "cuda": Matrix(
        "cuda",
        ("uniformity", "align_uniform", "nt_xent", "clip", "yardstick"),
        (1024, 8192, 65536),
        (128, 256, 512),
        ("bfloat16",),
        rounds=3,
        seconds=0.5,
        longest=2.0,
    ),
}


def rounds_with_rates(rounds: int, most: int) -> range:
    """The rounds in which the machine's own rates are measured: of short calls they would be most of the time."""
    return range(0, rounds, -(-rounds // most) or 1)


class Point(NamedTuple):
    """A row to be measured.

    Attributes:
        setup: the point of the matrix.
        implementation: what is measured there.
        execution: one of `EXECUTIONS`.
    """

    setup: Setup
    implementation: Implementation
    execution: str

    @property
    def flops(self) -> float:
        """What is counted, of the case or of a yardstick itself."""
        count = self.implementation.flops or CASES[self.setup.case].flops
        return float(count(self.setup.n, self.setup.d, self.setup.mode))

    @property
    def bytes(self) -> float:
        """What must go to or from memory."""
        return CASES[self.setup.case].least_bytes(self.setup)

    def floor_ms(self, limit: Limit) -> float:
        """The least time at a machine's own rates."""
        return limit.floor_ms(self.flops, self.bytes)

    def row(
        self,
        limit: Limit,
        status: Status,
        reason: str | None = None,
        error: float | None = None,
        samples: Sequence[float] = (),
        peak: int | None = None,
    ) -> Row:
        """Its row of a result; the ratio to the baseline comes with that of the baseline."""
        setup, by = self.setup, self.implementation
        median, p20, p80 = (quantile(samples, q) if samples else None for q in (0.5, 0.2, 0.8))
        floor = self.floor_ms(limit)
        return Row(
            case=setup.case,
            implementation=by.name,
            package=by.package,
            version=by.version,
            mode=setup.mode,
            execution=self.execution,
            dtype=setup.dtype,
            n=setup.n,
            d=setup.d,
            status=status,
            reason=reason,
            error=error if error is None or math.isfinite(error) else None,  # JSON knows no infinity
            samples_ms=tuple(samples),
            median_ms=median,
            p20_ms=p20,
            p80_ms=p80,
            peak_bytes=peak,
            flops=self.flops,
            bytes=self.bytes,
            floor_ms=floor,
            tflops=self.flops / median / 1e9 if median else None,
            gbs=self.bytes / median / 1e6 if median else None,
            of_limit=floor / median if median else None,
            baseline=CASES[setup.case].baseline,
            vs_baseline=None,
        )

    def guess_ms(self, limit: Limit) -> float:
        """What it may take: a multiple of the floor, and what any call costs."""
        calls = 0.1 if self.setup.device == "cpu" else 0.3
        return calls + self.implementation.slowdown * self.floor_ms(limit)

    def refusal(self, limit: Limit, longest: float, *, here: bool = True) -> str | None:
        """Why it is not measured, or ``None``; not ``here``, what is installed does not count."""
        on_gpu = self.setup.device != "cpu"
        if self.execution == "cudagraph" and not on_gpu:
            return "a CUDA graph needs a GPU"
        if self.execution == "cudagraph" and self.setup.mode == "backward":
            return "a graph that was kept from a forward pass cannot be captured: take mode both"
        if self.execution != "eager" and self.implementation.compiled:
            return f"is compiled already: not measured again as {self.execution}"
        if (reason := self.implementation.refusal(self.setup, here=here)) is not None:
            return reason
        if self.guess_ms(limit) > 1e3 * longest:
            return f"would take about {self.guess_ms(limit) / 1e3:.0f} s, more than the {longest:g} s of --longest"
        return None


def check(matrix: Matrix) -> None:
    """Whether all that is asked for exists.

    Raises:
        BenchError: it does not; the message names the argument.
    """
    names = matrix.names or ()
    known = sorted({name for _, name in IMPLEMENTATIONS})
    given: dict[str, tuple[Sequence[Any], Collection[str] | int]] = {
        **{"--cases": (matrix.cases, CASES), "--dtypes": (matrix.dtypes, DTYPES), "--modes": (matrix.modes, MODES)},
        **{"--executions": (matrix.executions, EXECUTIONS), "--implementations": (names, known)},
        **{"--sizes": (matrix.sizes, 2), "--dims": (matrix.dims, 1)},
    }
    for option, (values, possible) in given.items():
        for value in values:
            if isinstance(possible, int):
                if value < possible:
                    raise BenchError(f"argument {option}: must be at least {possible}, got {value}")
            elif value not in possible:
                raise BenchError(f"argument {option}: choose from {', '.join(possible)}, got {value!r}")
        if len(set(values)) < len(values):
            raise BenchError(f"argument {option}: twice the same, got {','.join(map(str, values))!r}")
    if matrix.rounds < 1:
        raise BenchError(f"argument --rounds: must be at least 1, got {matrix.rounds}")
    for option, seconds in (("--seconds", matrix.seconds), ("--longest", matrix.longest)):
        if not 0 < seconds < float("inf"):
            raise BenchError(f"argument {option}: must be positive, got {seconds:g}")
    for name in matrix.cases:
        if matrix.names is not None and not any((name, by) in IMPLEMENTATIONS for by in names):
            raise BenchError(f"argument --implementations: none of {', '.join(names)} computes {name!r}")


def groups(matrix: Matrix) -> Iterator[list[Point]]:
    """The rows that are measured in turns: one case at one shape, dtype and mode, the baseline first."""
    for case, mode, dtype, d, n in itertools.product(
        matrix.cases, matrix.modes, matrix.dtypes, matrix.dims, matrix.sizes
    ):
        setup = Setup(case, dtype, n, d, mode, matrix.device)
        yield [
            Point(setup, each, execution)
            for each in implementations(case, matrix.names)
            for execution in matrix.executions
        ]
