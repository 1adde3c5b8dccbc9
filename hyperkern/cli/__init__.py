"""The command ``hyperkern``."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from . import bench, demo, eval, info, tune


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="hyperkern", description="Alignment, uniformity and contrastive losses without the N x N matrix."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('hyperkern')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (bench, demo, eval, info, tune):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status
