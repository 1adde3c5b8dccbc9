"""The command ``hyperkern``."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from .. import __version__, interrupt
from . import bench, check, eval, info, tune

# Something is not installed; an argument or a file cannot work, which the message names.
NOT_INSTALLED, WRONG = 1, 2
# What a shell says of a command that the end of its pipe has ended, and of one that Ctrl-C has.
BROKEN_PIPE, INTERRUPTED = 141, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    _prepare()
    name = "hyperkern"
    try:
        interrupt.raise_again()
        try:
            args = _parser().parse_args(argv)
            name = f"hyperkern {args.command}"
            status: int = args.run(args)
            return status
        finally:
            sys.stdout.flush()  # here, and not at the end of the process, where nobody catches what it raises
    except KeyboardInterrupt:
        print("hyperkern: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except ImportError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return NOT_INSTALLED
    except (ValueError, OSError) as error:
        _drop_output()
        print(f"{name}: error: {error}", file=sys.stderr)
        return WRONG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hyperkern", description="Alignment, uniformity and contrastive losses without the N x N matrix."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (bench, check, eval, info, tune):
        command.add_parser(commands)
    return parser


def _prepare() -> None:
    """Gives the standard streams that any text can be printed to, and a terminal without a width its own."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started the process
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, for as long as the process lives
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")  # a sign that the encoding lacks is a question mark
    for name in ("COLUMNS", "LINES"):
        if os.environ.get(name) == "0":
            del os.environ[name]  # `rich` would draw nothing


def _drop_output() -> None:
    """Nobody takes the output: what is left of it would fail again at the end of the process."""
    with open(os.devnull, "wb") as nothing:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                os.dup2(nothing.fileno(), stream.fileno())
