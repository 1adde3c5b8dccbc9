"""How much slower a loss becomes beside other work on the same cores.

``python -m benchmarks.busy [--json FILE]`` times the two-way loss and its gradient beside 0, 1, 2 and 4 processes that
each keep a core busy: hyperkern, the usual code, and as much plain matrix product. All three take turns, and so do the
numbers of busy processes. Reported is the time of each over its own without any.
"""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperkern.bench import clock, gate
from hyperkern.bench.load import load_all
from hyperkern.bench.machine import describe
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Setup
from hyperkern.bench.result import quantile
from hyperkern.files import OutputError, check_outputs
from hyperkern.terminal import print_table

from .measured import Measured, Measurements, write

# The product multiplies as much as the loss at least has to.
MEASURED = (("clip", "hyperkern"), ("clip", "dense"), ("yardstick", "matrix product"))
N, D = 4096, 128
PROCESSES = (0, 1, 2, 4)
CYCLES, ROUNDS = 3, 5
# It ends by itself when its parent is no more.
BURN = """
import os, sys
print("begun", flush=True)
while os.getppid() == int(sys.argv[1]):
    for _ in range(1_000_000):
        pass
"""
HEADS = ("implementation", "busy processes", "ms", "slowdown", "of the fastest")


@dataclass(frozen=True, kw_only=True)
class Beside(Measured):
    """Times beside so many busy processes, and the median and the fastest over those without any."""

    processes: int
    median_slowdown: float
    fastest_slowdown: float


@dataclass(frozen=True, kw_only=True)
class OnCores(Measurements):
    """A result file, and what the machine has."""

    cores: int | None
    rows: Sequence[Beside]


@contextlib.contextmanager
def beside(count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that each keep a core busy, from before the block to its end."""
    command = [sys.executable, "-S", "-c", BURN, str(os.getpid())]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def runners(n: int, d: int) -> dict[str, clock.Runner]:
    """What is measured, once held against float64 and warmed up."""
    found = {}
    for case, name in MEASURED:
        setup, implementation = Setup(case, "float32", n, d, "both"), IMPLEMENTATIONS[case, name]
        gate.check(CASES[case], implementation, implementation.loss, setup)
        inputs = CASES[case].draw(n, d, setup.dtype, setup.device)
        found[name] = clock.runner(implementation.loss(), inputs, setup.mode, setup.device, float("inf"))
    return found


def samples(
    of: dict[str, clock.Runner], counts: Sequence[int], cycles: int, rounds: int
) -> dict[tuple[str, int], list[float]]:
    """Milliseconds by name and number of busy processes, each round begun by another one."""
    found: dict[tuple[str, int], list[float]] = {(name, count): [] for name in of for count in counts}
    names = list(of)
    for _ in range(cycles):
        for count in counts:
            with beside(count):
                for i in range(rounds):
                    first = i % len(names)
                    for name in names[first:] + names[:first]:
                        found[name, count] += clock.sample(of[name], "eager", "cpu")
    return found


def summarised(found: dict[tuple[str, int], list[float]], n: int, d: int) -> list[Beside]:
    """The rows: times, and how often those without busy processes go into them."""
    case_of = {name: case for case, name in MEASURED}
    rows = []
    for (name, count), times in found.items():
        idle = found[name, 0]
        slowdowns = {
            "median_slowdown": quantile(times, 0.5) / quantile(idle, 0.5),
            "fastest_slowdown": min(times) / min(idle),
        }
        fields = {"case": case_of.get(name, name), "implementation": name, "n": n, "d": d, "processes": count}
        rows.append(Beside.of(times, **fields, **slowdowns))
    return rows


def lines(rows: Sequence[Beside]) -> list[list[str]]:
    """The table."""
    return [
        [row.implementation, str(row.processes), row.time, f"{row.median_slowdown:.2f}", f"{row.fastest_slowdown:.2f}"]
        for row in rows
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the results")
    parser.add_argument("--size", type=int, default=N, metavar="N", help=f"rows (default {N})")
    parser.add_argument("--dim", type=int, default=D, metavar="D", help=f"their dimension (default {D})")
    parser.add_argument("--processes", nargs="+", type=int, default=PROCESSES, metavar="P", help="0 is always one")
    parser.add_argument("--cycles", type=int, default=CYCLES, help="through the numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="for each of them in a cycle")
    args = parser.parse_args(arguments)
    if min(args.processes) < 0:
        parser.error(f"argument --processes: must be at least 0, got {min(args.processes)}")
    for option in ("cycles", "rounds"):
        if getattr(args, option) < 1:
            parser.error(f"argument --{option}: must be at least 1, got {getattr(args, option)}")
    try:
        check_outputs({"json": args.json})
    except OutputError as error:
        parser.error(str(error))
    load_all()
    counts = sorted({0, *args.processes})
    found = samples(runners(args.size, args.dim), counts, args.cycles, args.rounds)
    rows = summarised(found, args.size, args.dim)
    if args.json:
        write(args.json, OnCores(machine=describe("cpu"), cores=os.cpu_count(), rows=rows))
    print(f"loss + gradient of two sides of {args.size} × {args.dim}, {os.cpu_count()} cores")
    print_table(HEADS, lines(rows), 1)
    print("ms: median ± half of the interquartile range (fastest). slowdown: over the median, or the fastest, of 0.")


if __name__ == "__main__":
    main()
