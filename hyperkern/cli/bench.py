"""``hyperkern bench``: losses measured beside their peers, and two runs set side by side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import OutputError, check_outputs, write_files
from .progress import progress_bar

if TYPE_CHECKING:
    from ..bench.compare import Change
    from ..bench.matrix import Matrix
    from ..bench.result import Row

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
    for option, what in (
        ("cases", "cases"),
        ("implementations", "implementations; a case's baseline is measured in any case"),
        ("dtypes", "float64, float32, bfloat16, float16"),
        ("modes", "forward, backward, both"),
        ("executions", "eager, compile, cudagraph"),
    ):
        parser.add_argument(f"--{option}", type=_words, metavar="A,B", help=what)
    parser.add_argument("--sizes", type=_numbers, metavar="N,N", help="rows of a feature tensor")
    parser.add_argument("--dims", type=_numbers, metavar="D,D", help="their dimension")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds, each with a sample of every implementation")
    parser.add_argument("--seconds", type=float, metavar="S", help="for the samples of one row")
    parser.add_argument("--longest", type=float, metavar="S", help="leave out what the plan gives a longer call")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--load", type=Path, action="append", default=[], metavar="FILE.py", help="your own kernels")
    parser.add_argument("--plan", action="store_true", help="print cases, arithmetic, floors and total time, and end")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, to be compared with")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="add each row there as soon as it is measured")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots there")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="set the run beside this result")
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
        against ``--baseline``; 130 if interrupted.
    """
    return _guarded(_bench, args)


def run_compare(args: argparse.Namespace) -> int:
    """Compares; returns as `run`."""
    return _guarded(_compare, args)


def _guarded(work: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    from ..bench.registry import BenchError

    try:
        return work(args)
    except BrokenPipeError:  # of what is printed, see `main`
        raise
    except ImportError as error:
        return _failed(1, str(error))
    except (BenchError, OutputError, OSError) as error:
        return _failed(2, f"error: {error}")
    except KeyboardInterrupt:
        measured = getattr(args, "jsonl", None) is not None
        return _failed(130, "interrupted, nothing written" + (" but the rows measured so far" if measured else ""))


def _bench(args: argparse.Namespace) -> int:
    import torch

    from ..backends import ENVIRONMENT_VARIABLE
    from ..bench import registry
    from ..bench.machine import check_device, describe
    from ..bench.plan import lines, plan
    from ..bench.result import append, as_csv, as_json, read
    from ..bench.table import print_result

    registry.load_all()
    for file in args.load:
        registry.load_file(file)
    matrix = _matrix(args)
    if not args.plan or torch.cuda.is_available():  # a plan may be of a GPU that is elsewhere
        check_device(matrix.device)
    if args.plan:
        print("\n".join(lines(plan(matrix), matrix)))
        return 0
    from ..bench.compare import check_comparable, compare, confirmed, measure_again
    from ..bench.machine import busy
    from ..bench.run import run as measure

    inputs = [*args.load, *([] if args.baseline is None else [args.baseline])]
    check_outputs({"json": args.json, "csv": args.csv, "html": args.html, "jsonl": args.jsonl}, inputs)
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
    contents = {}
    for path, make in ((args.json, as_json), (args.csv, as_csv)):
        if path is not None:
            contents[path] = make(result)
    if args.html is not None:
        from ..bench.page import render

        contents[args.html] = render(result).encode(errors="backslashreplace")
    write_files(contents)  # before anything is printed, which may find that nobody listens
    print_result(result)
    for path in contents:
        print(f"written: {path}")
    if baseline is None:
        return 0
    changes = compare(baseline, result, args.fail_over)
    if any(change.verdict == "slower" for change in changes):
        print(f"{COMMAND}: what looks slower is measured again", file=sys.stderr)
        try:
            changes = confirmed(baseline, changes, args.fail_over, partial(measure_again, matrix))
        except KeyboardInterrupt:
            return _failed(130, "interrupted, what looks slower was not measured again")
    return _report(changes, args.fail_over)


def _compare(args: argparse.Namespace) -> int:
    from ..bench.compare import compare
    from ..bench.result import read

    return _report(compare(read(args.old), read(args.new), args.fail_over), args.fail_over)


def _report(changes: Sequence[Change], threshold: float) -> int:
    from ..bench.table import print_changes

    print_changes(changes, threshold)
    return REGRESSION if any(change.regression for change in changes) else 0


def _matrix(args: argparse.Namespace) -> Matrix:
    """The standard matrix of the device, with what the arguments say instead."""
    import torch

    from ..bench.matrix import DEFAULTS, check
    from ..bench.registry import BenchError

    device = args.device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in DEFAULTS:
        raise BenchError(f"argument --device: must be cpu, cuda or cuda:<index>, got {device!r}")
    if kind == "cpu":
        device = kind  # of which there is one, whatever its index
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
    matrix = replace(DEFAULTS[kind], device=device, memory=not args.no_memory, files=tuple(args.load), **given)
    check(matrix)
    return matrix


def _failed(status: int, message: str) -> int:
    print(f"{COMMAND}: {message}", file=sys.stderr)
    return status
