"""``hyperkern tune``: measures block sizes on the GPU at hand and writes them as a data file."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..files import check_outputs

OPERANDS = ("bfloat16", "tf32", "float32")


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "tune",
        help="measure the Triton kernels' block sizes on this GPU and write them as a data file",
        description="Measures the block sizes of every Triton kernel on the current GPU and writes the fastest to the "
        "data file of its architecture. Nothing is tuned when a loss is computed: without this file the nearest entry "
        "that the package ships is used. What a tuned file makes of the kernels is checked at their next first use.",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: over the package's file)")
    parser.add_argument("--rows", type=int, default=16384, metavar="N", help="rows measured (default %(default)s)")
    parser.add_argument(
        "--operand",
        action="append",
        choices=OPERANDS,
        help="only for products in this dtype (repeatable; default: all)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tunes; returns 0, 1 where there is no GPU to tune for, 2 for an option or a file that cannot work."""
    import torch

    if args.rows < 128:
        raise ValueError(f"--rows must be at least 128, got {args.rows}")
    check_outputs({"out": args.out})
    if not torch.cuda.is_available():
        print("hyperkern tune: needs a CUDA GPU, and PyTorch finds none", file=sys.stderr)
        return 1
    from ..bench.tune import tune_device

    # What it prints on the way goes where a pipe that is gone does not end it.
    path = tune_device(args.out, args.rows, tuple(args.operand or OPERANDS), partial(print, file=sys.stderr))
    print(f"written: {path}")
    return 0
