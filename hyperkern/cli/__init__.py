"""The command ``hyperkern``."""

import argparse
from collections.abc import Sequence

from . import demo, info


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="hyperkern", description="Alignment, uniformity and contrastive losses without the N x N matrix."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (demo, info):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    status: int = args.run(args)
    return status
