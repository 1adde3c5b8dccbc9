"""Commands beside each other, each a process of its own: what one of them loses, a GPU's context too, no other does."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def beside(commands: Sequence[Sequence[str]], jobs: int) -> list[int]:
    """Runs commands, so many at a time.

    Returns:
        Their exit statuses, in the order of the commands; that of a signal is negative.
    """
    pool = ThreadPoolExecutor(jobs)
    try:
        return list(pool.map(lambda command: subprocess.run(command).returncode, commands))
    finally:
        # Ctrl-C ends those that run, since it reaches all processes of a terminal; no further one is to begin.
        pool.shutdown(cancel_futures=True)


def main() -> int:
    """Returns 1 if one of the commands failed."""
    parser = argparse.ArgumentParser(description="One command for each of several words, many at a time.")
    parser.add_argument("--jobs", type=int, default=12, help="processes at a time")
    parser.add_argument("--each", required=True, metavar="A,B", help="the words, which stand where EACH stands")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    # This Python, whatever it is called by the one that starts it.
    command = [sys.executable if word == "python3" else word for word in args.command]
    commands = [[word.replace("EACH", each) for word in command] for each in args.each.split(",")]
    return 1 if any(beside(commands, args.jobs)) else 0


if __name__ == "__main__":
    raise SystemExit(main())
