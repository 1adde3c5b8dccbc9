"""``python -m examples.digits``: the main job on real images; `make demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from hyperkern.files import OutputError

from . import DemoConfig, OptionError, run_demo

COMMAND = "python -m examples.digits"
REQUIRED_MODULES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "rich": "rich"}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, from the command line by default."""
    defaults = DemoConfig()
    parser = argparse.ArgumentParser(
        prog=COMMAND,
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
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo.

    Returns:
        0; 1 if something it needs is not installed; 2 for an option that cannot work; 130 if interrupted.
    """
    args = arguments(argv)
    missing = [package for module, package in REQUIRED_MODULES.items() if find_spec(module) is None]
    if missing:
        print(
            f"{COMMAND}: needs {', '.join(missing)}; install with: pip install '.[demo]'",
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
        print(f"{COMMAND}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted, no results written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
