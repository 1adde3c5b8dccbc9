"""``hyperkern eval``: alignment and uniformity of features in a file, of any size."""

from __future__ import annotations

import argparse
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..files import as_json, check_outputs, write_files
from ..terminal import print_table, progress_bar

if TYPE_CHECKING:
    from ..evaluation import Evaluation, Source

COMMAND = "hyperkern eval"
PLOT_KINDS = {".png": "png", ".svg": "svg"}


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "eval",
        help="alignment and uniformity of features in a file that need not fit in memory",
        description="Computes uniformity of the rows of a file, and with a second file of partners their alignment, "
        "block by block. A .npy or .pt file is mapped, a .safetensors file read in slices. Progress and warnings go to "
        "the standard error output.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="features (N, D): .npy, .pt, .pth or .safetensors")
    parser.add_argument("positives", type=Path, nargs="?", metavar="POSITIVES_FILE", help="the partner of each row")
    parser.add_argument("--key", metavar="NAME", help="tensor to take, where a file holds several")
    parser.add_argument("--positives-key", metavar="NAME", help="the same for POSITIVES_FILE (default: --key)")
    parser.add_argument("--t", type=float, default=2.0, help="inverse width of the potential (default %(default)g)")
    parser.add_argument("--alpha", type=float, default=2.0, help="exponent of the alignment (default %(default)g)")
    parser.add_argument(
        "--estimate",
        type=int,
        nargs="?",
        const=1024,
        metavar="M",
        help="uniformity from M columns, with a confidence interval (default of M: %(const)s), not from every pair",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the columns drawn (default %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="where to compute (default: a GPU if there is one)")
    parser.add_argument("--backend", metavar="NAME", help="backend (default: the automatic choice)")
    parser.add_argument("--block-rows", type=int, metavar="N", help="rows of a block (default: by the device)")
    parser.add_argument("--no-normalize", action="store_true", help="take the rows as they are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the pairs and the value there: .png or .svg")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns 0, 130 if interrupted.

    Raises:
        ImportError: something it needs is not installed.
        OSError: a file cannot be read.
        ValueError: a file or option cannot work.
    """
    import torch

    try:
        _evaluate(args)
    except TypeError as error:  # of what is in a file
        raise ValueError(error) from error
    except torch.OutOfMemoryError as error:
        raise ValueError("the device has not enough memory for a block; make it smaller with --block-rows") from error
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted, nothing written", file=sys.stderr)
        return 130
    return 0


def _evaluate(args: argparse.Namespace) -> None:
    from ..evaluation import evaluate, open_features
    from ..evaluation.result import table, title

    _check_outputs(args)
    sources = [open_features(args.file, key=args.key)]
    if args.positives is not None:
        # An array in a .npy file has no name.
        shared = None if args.positives.suffix == ".npy" else args.key
        key = shared if args.positives_key is None else args.positives_key
        sources.append(open_features(args.positives, key=key))
    elif args.positives_key is not None:
        raise ValueError("argument --positives-key: needs POSITIVES_FILE")
    options: dict[str, Any] = {} if args.estimate is None else {"method": "estimate", "columns": args.estimate}
    with warnings.catch_warnings(), progress_bar(COMMAND) as progress:
        warnings.simplefilter("ignore", UserWarning)  # they are in the result, and printed from there
        result = evaluate(
            *sources,
            t=args.t,
            alpha=args.alpha,
            normalize=not args.no_normalize,
            seed=args.seed,
            device=args.device,
            block_rows=args.block_rows,
            backend=args.backend,
            progress=progress,
            **options,
        )
    contents = _contents(args, result, sources)
    write_files(contents)  # before anything is printed, which may find that nobody listens
    for warning in result.warnings:
        print(f"{COMMAND}: warning: {warning}", file=sys.stderr)
    print_table((), table(result), words=2, title=title(result))
    for path in contents:
        print(f"written: {path}")


def _check_outputs(args: argparse.Namespace) -> None:
    """Before hours of work: whether what it finds can be written."""
    inputs = [path for path in (args.file, args.positives) if path is not None]
    check_outputs({"json": args.json, "plot": args.plot}, inputs)
    if args.plot is not None:
        if args.plot.suffix not in PLOT_KINDS:
            raise ValueError(f"argument --plot: must end in {' or '.join(PLOT_KINDS)}, got {str(args.plot)!r}")
        if find_spec("matplotlib") is None:
            raise ImportError("--plot needs matplotlib; install with: pip install matplotlib")


def _contents(args: argparse.Namespace, result: Evaluation, sources: list[Source]) -> dict[Path, bytes]:
    """The files, complete before the first is written."""
    contents = {}
    if args.json is not None:
        import torch

        versions = {"hyperkern": __version__, "torch": torch.__version__}
        contents[args.json] = as_json({**result.to_dict(), "versions": versions}, indent=2)
    if args.plot is not None:
        from ..evaluation.plot import draw

        contents[args.plot] = draw(result, sources, PLOT_KINDS[args.plot.suffix])
    return contents
