"""What a call costs on the host: loss and gradient of so few rows that only Python and PyTorch's dispatcher take time.

``python -m benchmarks.host_time [--json FILE] [--cases ...] [--size N] [--dim D]`` measures each loss beside the usual
code, in turns and in one run, and counts the Python functions that a call enters: a figure that no machine changes.

``--backend triton`` and ``--backend cuda`` measure what a call by their kernels costs, on a CPU: everything down to the
launch, which is left out. What they would return is not there to be checked, and the usual code still computes.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from hyperkern import backends
from hyperkern.bench import clock
from hyperkern.bench.load import load_all
from hyperkern.bench.machine import busy, describe
from hyperkern.bench.matrix import Matrix, check
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, BenchError
from hyperkern.bench.run import run
from hyperkern.files import OutputError, check_outputs
from hyperkern.terminal import print_table

from .measured import Measured, Measurements, write

NAMES = ("hyperkern", "dense")
N, D = 32, 16
ROUNDS, RATES = 51, 2
HEADS = ("case", *(f"{name}, µs" for name in NAMES), "own ÷ eager", *(f"{name}, functions" for name in NAMES))


@dataclass(frozen=True, kw_only=True)
class Call(Measured):
    """Times of a call, and the Python functions that it enters."""

    functions: int


@dataclass(frozen=True, kw_only=True)
class Calls(Measurements):
    """A result file, and whose kernels are not launched, where it is some backend's."""

    backend: str | None = None
    rows: Sequence[Call]


def cases() -> tuple[str, ...]:
    """All losses; a queue of a fixed size is arithmetic, however few the rows."""
    load_all()
    return tuple(name for name, case in CASES.items() if case.truth is not None and not case.queue)


def functions_entered(call: Callable[[], object]) -> int:
    """How many Python functions a call enters, itself not counted; a call before it imports what it needs."""
    call()
    found = -1

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal found
        found += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def functions_of(case: str, name: str, n: int, d: int) -> int:
    """Those of a loss and its gradient, as a training step calls them."""
    loss, inputs = IMPLEMENTATIONS[case, name].loss(), CASES[case].draw(n, d, "float32", "cpu")
    return functions_entered(lambda: loss(*inputs).backward())


def without_launches(backend: str) -> None:
    """From here on all losses of this process are a backend's, which launches nothing.

    Raises:
        BenchError: the backend is not here, or nothing but the interpreter of Triton.
    """
    try:
        module: Any = backends.load(backend)
        if backend == "triton":
            if module.INTERPRETED:
                raise BenchError("argument --backend: without TRITON_INTERPRET, got 'triton' with it")
            from tools.fake_gpu import Gpu

            gpu, patch = Gpu(), SimpleNamespace(setattr=setattr)
            gpu.noted = False
            gpu.install(patch)
            gpu.take_cpu_tensors(patch)
            unsupported = module.unsupported
            module.unsupported = lambda problem: [r for r in unsupported(problem) if "needs a GPU" not in r]
        else:
            module.operands.emulate(90, launches=False)
    except (ImportError, RuntimeError) as error:
        raise BenchError(f"argument --backend: {backend!r} cannot be had ({error})") from None
    os.environ[backends.ENVIRONMENT_VARIABLE] = backend


def unchecked(matrix: Matrix, backend: str) -> Calls:
    """Times and counts of a backend that launches nothing."""
    (n,), (d,) = matrix.sizes, matrix.dims
    rows = []
    for case in matrix.cases:
        inputs = CASES[case].draw(n, d, "float32", "cpu")
        runners = {
            name: clock.runner(IMPLEMENTATIONS[case, name].loss(), inputs, "both", "cpu", float("inf"))
            for name in NAMES
        }
        samples: dict[str, list[float]] = {name: [] for name in NAMES}
        for i in range(matrix.rounds):
            for name in NAMES if i % 2 else reversed(NAMES):
                samples[name] += clock.sample(runners[name], "eager", "cpu")
        rows += [call(case, name, n, d, times) for name, times in samples.items()]
    return Calls(machine=describe("cpu"), backend=backend, rows=rows)


def measured(matrix: Matrix) -> Calls:
    """Times and counts."""
    result = run(matrix)
    rows = []
    for row in result.rows:
        if row.status != "ok":
            raise BenchError(f"{row.case}, {row.implementation}: {row.reason}")
        rows.append(call(row.case, row.implementation, row.n, row.d, row.samples_ms))
    return Calls(machine=result.machine, rows=rows)


def call(case: str, name: str, n: int, d: int, samples_ms: Sequence[float]) -> Call:
    """A row."""
    fields = {"case": case, "implementation": name, "n": n, "d": d}
    return Call.of(samples_ms, **fields, functions=functions_of(case, name, n, d))


def lines(rows: Sequence[Call]) -> list[list[str]]:
    """The table."""
    by_place = {(row.case, row.implementation): row for row in rows}
    found = []
    for case in dict.fromkeys(row.case for row in rows):
        at = [by_place[case, name] for name in NAMES]
        times = [f"{1e3 * row.ms:.0f} ± {1e3 * row.half_ms:.0f}" for row in at]
        functions = [str(row.functions) for row in at]
        found.append([case, *times, f"{at[0].ms / at[1].ms:.2f}", *functions])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the results")
    parser.add_argument("--cases", nargs="+", default=cases(), metavar="CASE")
    parser.add_argument("--size", type=int, default=N, metavar="N", help=f"rows (default {N})")
    parser.add_argument("--dim", type=int, default=D, metavar="D", help=f"their dimension (default {D})")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--backend", choices=("triton", "cuda"), help="of kernels, which are not launched")
    args = parser.parse_args(arguments)
    sizes, dims = (args.size,), (args.dim,)
    matrix = Matrix(
        *("cpu", tuple(args.cases), sizes, dims, ("float32",)),
        names=NAMES,
        rounds=args.rounds,
        rates=RATES,
        memory=False,
    )
    try:
        check(matrix)
        check_outputs({"json": args.json})
        if args.backend:
            without_launches(args.backend)
    except (BenchError, OutputError) as error:
        parser.error(str(error))
    if (warning := busy()) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    try:
        found = unchecked(matrix, args.backend) if args.backend else measured(matrix)
    except ValueError as error:
        if not args.backend:
            raise
        parser.error(str(error))  # what a backend does not serve
    if args.json:
        write(args.json, found)
    print_table(HEADS, lines(found.rows), 1)
    print("µs: median ± half of the interquartile range. functions: Python functions that loss and gradient enter.")
    if args.backend:
        print(f"hyperkern by its {args.backend} kernels, which are not launched; the usual code computes on the CPU.")


if __name__ == "__main__":
    main()
