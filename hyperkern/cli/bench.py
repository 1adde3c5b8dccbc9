"""``hyperkern bench``: losses measured beside their peers, and two runs set side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import append, as_json, check_outputs, write_files
from ..terminal import progress_bar

if TYPE_CHECKING:
    from ..bench.compare import Change
    from ..bench.matrix import Matrix
    from ..bench.result import Result, Row

COMMAND = "hyperkern bench"
REGRESSION = 3


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "bench",
        help="measure losses beside their peers: correctness, time, memory, ratio to the machine's own limit",
        description="Measures cases x implementations x shapes. An implementation is first held against float64; one "
        "that is wrong gets no time. Without options it measures the standard matrix of the device in under ten "
        "minutes. `hyperkern bench compare A B` sets two result files side by side.",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<index> (default: a GPU if there is one)")
    for option, kind, metavar, what in (
        ("cases", _words, "A,B", "cases; a wrong name is answered by all there are"),
        ("implementations", _words, "A,B", "implementations; a case's baseline is measured in any case"),
        ("dtypes", _words, "A,B", "float64, float32, bfloat16, float16"),
        ("modes", _words, "A,B", "forward, backward, both"),
        ("executions", _words, "A,B", "eager, compile, cudagraph"),
        ("sizes", _numbers, "N,N", "rows of a feature tensor"),
        ("dims", _numbers, "D,D", "their dimension"),
        ("rounds", int, "N", "rounds, each with a sample of every implementation"),
        ("seconds", float, "S", "for the samples of one row"),
        ("longest", float, "S", "leave out what the plan gives a longer call"),
        ("csv", Path, "FILE", "write the rows there"),
        ("json", Path, "FILE", "write the result there, to be compared with"),
        ("jsonl", Path, "FILE", "add each row there as soon as it is measured"),
        ("html", Path, "FILE", "write a page with plots there"),
        ("baseline", Path, "FILE", "set the run beside this result"),
    ):
        parser.add_argument(f"--{option}", type=kind, metavar=metavar, help=what)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--load", type=Path, action="append", default=[], metavar="FILE.py", help="your own kernels")
    parser.add_argument("--plan", action="store_true", help="print cases, arithmetic, floors and total time, and end")
    _add_threshold(parser, 0.05)
    parser.set_defaults(run=run)
    below = parser.add_subparsers(dest="subcommand", metavar="compare")
    comparison = below.add_parser("compare", help="set two results side by side; a regression ends with status 3")
    comparison.add_argument("old", type=Path, metavar="A", help="the result that is the measure")
    comparison.add_argument("new", type=Path, metavar="B", help="the other")
    _add_threshold(comparison, argparse.SUPPRESS)  # or it would hide one given before the word
    comparison.set_defaults(run=run_compare)


def _add_threshold(parser: argparse.ArgumentParser, default: float | str) -> None:
    parser.add_argument(
        "--fail-over",
        type=_percent,
        default=default,
        metavar="P%",
        help=f"end with status {REGRESSION} if a row is slower by more than this whenever measured (default 5%%)",
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between them, got {text!r}") from None


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a percentage such as 5%, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Measures.

    Returns:
        0; 1 if something it needs is not installed; 2 for an argument or a file that cannot work; 3 for a regression
        against ``--baseline``; 130 if interrupted. `hyperkern.cli.main` returns what it raises as 1 and 2.
    """
    with _told_to_install():
        try:
            return _bench(args)
        except KeyboardInterrupt:
            measured = "" if args.jsonl is None else " but the rows measured so far"
            print(f"{COMMAND}: interrupted, nothing written{measured}", file=sys.stderr)
            return 130


def run_compare(args: argparse.Namespace) -> int:
    """Compares; returns as `run`."""
    from ..bench.compare import compare
    from ..bench.result import read

    with _told_to_install():
        return _report(compare(read(args.old), read(args.new), args.fail_over), args.fail_over)


@contextmanager
def _told_to_install() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{error}: pip install 'hyperkern[bench]'") from error


def _bench(args: argparse.Namespace) -> int:
    from ..backends import ENVIRONMENT_VARIABLE
    from ..bench.load import load_all, load_file
    from ..bench.machine import describe
    from ..bench.plan import lines, plan
    from ..bench.result import as_csv, read
    from ..bench.table import print_result

    load_all()
    for file in args.load:
        load_file(file)
    matrix = _matrix(args)
    if args.plan:
        print("\n".join(lines(plan(matrix), matrix)))
        return 0
    from ..bench.compare import check_comparable, compare, confirmed, measure_again
    from ..bench.machine import busy
    from ..bench.run import run as measure

    inputs = [*args.load, *([] if args.baseline is None else [args.baseline])]
    check_outputs({"json": args.json, "csv": args.csv, "html": args.html, "jsonl": args.jsonl}, inputs)
    writers: dict[Path, Callable[[Result], bytes]]
    writers = {path: make for path, make in ((args.json, as_json), (args.csv, as_csv)) if path is not None}
    if args.html is not None:
        from ..bench.page import render  # now: what it needs may not be installed

        writers[args.html] = lambda result: render(result).encode()
    baseline = None if args.baseline is None else read(args.baseline)
    if baseline is not None:
        check_comparable(baseline, describe(matrix.device))
    if (warning := busy()) is not None:
        print(f"{COMMAND}: warning: {warning}", file=sys.stderr)
    backend = os.environ.get(ENVIRONMENT_VARIABLE) or None

    def finished(rows: Sequence[Row]) -> None:
        if args.jsonl is not None:
            append(args.jsonl, [asdict(row) | {"backend": backend} for row in rows])

    with progress_bar(COMMAND) as progress:
        result = measure(matrix, progress, finished)
    # Before anything is printed, which may find that nobody listens.
    write_files({path: make(result) for path, make in writers.items()})
    print_result(result)
    for path in writers:
        print(f"written: {path}")
    if baseline is None:
        return 0
    changes = compare(baseline, result, args.fail_over)
    if any(change.verdict == "slower" for change in changes):
        print(f"{COMMAND}: what looks slower is measured again", file=sys.stderr)
        try:
            changes = confirmed(baseline, changes, args.fail_over, partial(measure_again, matrix))
        except KeyboardInterrupt:
            print(f"{COMMAND}: interrupted, what looks slower was not measured again", file=sys.stderr)
            return 130
    return _report(changes, args.fail_over)


def _report(changes: Sequence[Change], threshold: float) -> int:
    from ..bench.table import print_changes

    print_changes(changes, threshold)
    return REGRESSION if any(change.regression for change in changes) else 0


def _matrix(args: argparse.Namespace) -> Matrix:
    """The standard matrix of the device, with what the arguments say instead."""
    import torch

    from ..bench.machine import find_device
    from ..bench.matrix import DEFAULTS, check
    from ..bench.registry import BenchError

    # A plan may be of a GPU that is elsewhere.
    device = find_device(args.device, here=not args.plan or torch.cuda.is_available())
    given = {
        name: getattr(args, name)
        for name in ("cases", "sizes", "dims", "dtypes", "modes", "executions", "rounds", "seconds", "longest")
        if getattr(args, name) is not None
    }
    for name, value in given.items():
        if value == ():
            raise BenchError(f"argument --{name}: names nothing")
    if args.implementations is not None:
        given["names"] = args.implementations
    matrix = replace(
        DEFAULTS[device.partition(":")[0]], device=device, memory=not args.no_memory, files=tuple(args.load), **given
    )
    check(matrix)
    return matrix
