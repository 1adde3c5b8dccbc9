"""``hyperkern check``: whether the kernels are right on the GPU at hand."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import backends
from ..check.scope import PRODUCTS
from ..files import append, check_outputs, write_files
from ..terminal import print_table, progress_bar

if TYPE_CHECKING:
    import torch

    from ..check.process import Row
    from ..correctness.everything import Job

COMMAND = "hyperkern check"


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "check",
        help="check the kernels on this GPU against float64",
        description="Computes every primitive and loss with each usable backend on this GPU, in processes of their "
        "own, and holds values and gradients against float64; large sizes, repeats. What it finds is recorded in the "
        "user's cache folder, in place of what a first use has found. It ends with status 1 if anything is wrong or "
        "could not be checked, 2 without a GPU. With --backend and without a GPU, the kernels are interpreted or "
        "emulated on the CPU, which tests the check, and says nothing of a GPU.",
    )
    parser.add_argument("--backend", action="append", choices=backends.PRIORITY, help="only this one (repeatable)")
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:<index> or cpu (default: a GPU if there is one)")
    parser.add_argument("--quick", action="store_true", help="in the sizes of a first use, in less time")
    parser.add_argument("--products", type=_words, metavar="A,B", help=f"only of these: {', '.join(PRODUCTS)}")
    parser.add_argument("--dims", type=_numbers, metavar="D,D", help="only these feature dimensions")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes at once (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report there, to be attached to an issue")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="append each case there as it ends")
    parser.set_defaults(run=run)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    unknown = [word for word in words if word not in PRODUCTS]
    if unknown or not words:
        raise argparse.ArgumentTypeError(f"choose from {', '.join(PRODUCTS)}, got {text!r}")
    return tuple(dict.fromkeys(words))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        numbers = ()
    if not numbers or not all(1 <= number <= 16384 for number in numbers):
        raise argparse.ArgumentTypeError(f"must be integers between 1 and 16384, with commas between, got {text!r}")
    return tuple(dict.fromkeys(numbers))


def run(args: argparse.Namespace) -> int:
    """Checks; returns 0, 1 if anything is wrong, 2 without a GPU.

    Raises:
        ValueError: an option cannot work.
    """
    from ..check import records
    from ..correctness import everything, findings

    if args.jobs < 1:
        raise ValueError(f"argument --jobs: must be at least 1, got {args.jobs}")
    check_outputs({"json": args.json, "jsonl": args.jsonl})
    device = _device(args.device, args.backend)
    if device is None:
        print(
            f"{COMMAND}: no CUDA GPU was found by PyTorch. To try the command without one: hyperkern check --backend "
            "cuda --quick (or triton), which emulates (interprets) the kernels, and says nothing of a GPU",
            file=sys.stderr,
        )
        return 2
    asked = list(dict.fromkeys(args.backend or backends.PRIORITY))
    missing = {name: everything.unusable(name, device) for name in asked}
    missing = {name: reasons for name, reasons in missing.items() if reasons}
    names = [name for name in asked if name not in missing]
    for name, reasons in missing.items():
        print(f"{COMMAND}: {name} is left out: {'; '.join(reasons)}", file=sys.stderr)
    if not names:
        return 2
    jobs = list(everything.jobs_of(names, device, quick=args.quick, products=args.products, dims=args.dims))
    depth = "quick" if args.quick else "full"

    def ended(job: Job, row: Row) -> None:
        if args.jsonl is not None:
            append(args.jsonl, [findings.line(job, row)])

    with progress_bar(COMMAND) as progress:
        progress(0, len(jobs))
        results = []
        for result in everything.check(jobs, depth, args.jobs, ended):
            results.append(result)
            progress(len(results), len(jobs))
    results.sort(key=lambda result: jobs.index(result.job))
    if args.json is not None:
        write_files({args.json: findings.as_json(results, missing, depth)})
    for name in names:
        print(findings.described(name, device))
    print_table(findings.HEADS, findings.cells(results), findings.WORDS)
    print(
        "sizes: how many cases, and that of the one that comes closest to its limit; its largest error, and the limit"
    )
    findings.print_failures(results)
    print(findings.summary(results, _name(device)))
    if device.type == "cuda":
        print(f"recorded in {records.folder()}")
    if args.json is not None:
        print(f"written: {args.json}")
    return 0 if all(result.outcome.status == "passed" for result in results) else 1


def _device(given: str | None, names: list[str] | None) -> torch.device | None:
    """Where to check; ``None`` where there is no GPU, and nobody asks for a CPU.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    from ..bench.machine import find_device

    here = torch.cuda.is_available()
    if given is None and names is None and not here:
        return None
    device = torch.device(find_device(given, here=here))
    if device.type == "cpu":
        return device
    if not here:
        return None
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, which says nothing of a GPU"
