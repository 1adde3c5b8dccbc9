"""What looks slower is measured again, in other processes: two runs differ by more than the spread within each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .compare import Change, compare
from .matrix import Matrix
from .registry import BenchError, load_all, load_file
from .result import Result, Row, key

TIMES = 2
# What of a matrix is which column of a row.
OPTIONS = {
    "cases": "case",
    "names": "implementation",
    "sizes": "n",
    "dims": "d",
    "dtypes": "dtype",
    "modes": "mode",
    "executions": "execution",
}


def confirmed(
    old: Result, changes: Sequence[Change], threshold: float, again: Callable[[Sequence[Row]], Result]
) -> list[Change]:
    """The changes, of which those count as slower that are slower every time.

    Addresses, the order of pages in memory and what else differs between two processes move a median by more than the
    samples within one of them tell.

    Args:
        old: the run that is the measure.
        changes: of the first new run.
        threshold: as for `compare`.
        again: measures rows again.
    """
    found = list(changes)
    for _ in range(TIMES):
        slower = [change.row for change in found if change.verdict == "slower"]
        if not slower:
            break
        seen = {key(change.row): change for change in compare(old, again(slower), threshold)}
        for i, change in enumerate(found):
            if change.verdict == "slower" and (other := seen.get(key(change.row))) and not other.regression:
                found[i] = change._replace(verdict="slower, but not every time")
    return found


def measure(matrix: Matrix, rows: Sequence[Row]) -> Result:
    """Measures those rows of a matrix, in a process of its own.

    Raises:
        BenchError: the process failed.
    """

    def of(name: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row[name] for row in rows))

    options: dict[str, Any] = {option: of(name) for option, name in OPTIONS.items()}
    part = replace(matrix, memory=False, **options)
    request = {
        "matrix": asdict(part) | {"files": [str(file) for file in part.files]},
        "threads": torch.get_num_threads(),
    }
    child = subprocess.run(
        [sys.executable, "-m", "hyperkern.bench.remeasure"], input=json.dumps(request), capture_output=True, text=True
    )
    lines = child.stdout.splitlines()
    if child.returncode or not lines:
        why = child.stderr.strip().splitlines()[-1:] or [f"status {child.returncode}"]
        raise BenchError(f"measuring again failed: {why[0][:200]}")
    found: Result = json.loads(lines[-1])
    return found


def main() -> None:
    """The child: a matrix on the standard input, its result in the last line of the output."""
    from .run import run

    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    given: dict[str, Any] = {}
    given |= {name: tuple(value) if isinstance(value, list) else value for name, value in request["matrix"].items()}
    given["files"] = tuple(map(Path, given["files"]))
    matrix = Matrix(**given)
    load_all()
    for file in matrix.files:
        load_file(file)
    print("\n" + json.dumps(run(matrix)))


if __name__ == "__main__":
    main()
