"""`hyperkern demo`."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..demo import DemoConfig, OptionError, run_demo
from ..files import OutputError

REQUIRED_MODULES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the `demo` command to the subparsers of the main parser."""
    defaults = DemoConfig()
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="train on real images with each objective, evaluate, draw, and take one huge batch",
        description="Trains a small encoder on scikit-learn's handwritten digits (nothing is downloaded) "
        "with alignment, uniformity, the contrastive loss, and alignment + uniformity; evaluates each as "
        "Wang & Isola (2020) do; and computes loss and gradient of one huge batch. "
        "Writes table.md, results.json, picture.png and picture.svg. With the defaults it takes about two "
        "minutes on two cores.",
    )
    for option, metavar, meaning in (
        ("seeds", "N", "seeds for each objective"),
        ("epochs", "N", "passes over the images"),
        ("dim", "D", "dimension of the features"),
        ("batch", "N", "positive pairs in a step"),
    ):
        parser.add_argument(
            f"--{option}",
            type=int,
            default=getattr(defaults, option),
            metavar=metavar,
            help=f"{meaning} (default %(default)s)",
        )
    parser.add_argument(
        "--out",
        type=Path,
        default=defaults.out,
        metavar="DIR",
        help="folder of the results (default %(default)s)",
    )
    parser.add_argument("--backend", metavar="NAME", help="backend of the losses (default: the automatic choice)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda or cuda:<index> (default: a GPU if there is one)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0; 1 if something it needs is not installed; 2 for an option that cannot work; 130 if interrupted.
    """
    missing = [package for module, package in REQUIRED_MODULES.items() if find_spec(module) is None]
    if missing:
        print(
            f"hyperkern demo: needs {', '.join(missing)}; install with: pip install 'hyperkern[demo]'",
            file=sys.stderr,
        )
        return 1
    config = DemoConfig(
        seeds=args.seeds,
        epochs=args.epochs,
        dim=args.dim,
        batch=args.batch,
        out=args.out,
        backend=args.backend,
        device=args.device,
    )
    try:
        run_demo(config)
    except (OptionError, OutputError) as error:
        print(f"hyperkern demo: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hyperkern demo: interrupted, no results written", file=sys.stderr)
        return 130
    return 0
