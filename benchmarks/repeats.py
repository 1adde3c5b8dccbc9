"""How often `hyperkern bench --fail-over` calls a regression where nothing has changed.

``python -m benchmarks.repeats --json FILE`` runs it again and again beside a first run, and counts what it says.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hyperkern.bench.compare import compare
from hyperkern.bench.result import Provenance, read
from hyperkern.cli.bench import REGRESSION
from hyperkern.terminal import progress_bar

from .measured import write

OPTIONS = ["--device", "cpu", "--cases", "uniformity,clip", "--implementations", "dense,hyperkern", "--no-memory"]
OPTIONS += ["--sizes", "512,2048", "--dims", "128"]
THRESHOLD = 0.05


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run beside the first one said."""

    rows: int
    status: int
    slower_at_first: int
    not_again: int
    smallest_ratio: float
    largest_ratio: float


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """A result file."""

    machine: Provenance
    options: Sequence[str]
    threshold: float
    runs: Sequence[Run]


def main() -> None:
    """Measures, and writes what the comparisons said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="for the results")
    parser.add_argument("--runs", type=int, default=20, help="beside the first (default 20)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, progress_bar("repeats") as progress:
        first, other = (Path(folder) / name for name in ("first.json", "other.json"))
        bench("--json", str(first))
        for i in range(args.runs):
            status, text = bench("--json", str(other), "--baseline", str(first), "--fail-over", f"{100 * THRESHOLD:g}%")
            changes = compare(read(first), read(other), THRESHOLD)
            ratios = [change.ratio for change in changes if change.ratio is not None]
            rows.append(
                Run(
                    rows=len(changes),
                    status=status,
                    slower_at_first=sum(change.verdict == "slower" for change in changes),
                    not_again=text.count("slower, but not every time"),
                    smallest_ratio=min(ratios),
                    largest_ratio=max(ratios),
                )
            )
            progress(i + 1, args.runs)
        machine = read(first).machine
    write(args.json, Repeats(machine=machine, options=OPTIONS, threshold=THRESHOLD, runs=rows))
    print(args.json.read_text(encoding="utf-8"))


def bench(*options: str) -> tuple[int, str]:
    """Runs the command; its status and what it printed."""
    found = subprocess.run([sys.executable, "-m", "benchmarks", *OPTIONS, *options], capture_output=True, text=True)
    if found.returncode not in (0, REGRESSION):
        raise RuntimeError(found.stderr)
    return found.returncode, found.stdout


if __name__ == "__main__":
    main()
