"""Breaks the code in every way of the table, one at a time in a copy of the tree, and looks whether its tests notice.

``python tests/mutants [-k WORD] [--jobs N] [--list]``; `make mutants`.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutants import MUTANTS, ROOT, Mutant

# What a test session may take; a mutant that hangs has not been noticed by a test.
SECONDS = 300
# Of names of tests: there is a test of a backend only where the backend is.
HERE = ("reference-cpu", "composition-cpu", "triton-cpu", "cuda-cpu")
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]


class Outcome(NamedTuple):
    """``killed``, ``survived``, ``skipped`` (what its tests need is not here) or ``broken``, and why."""

    verdict: str
    detail: str


def files() -> list[str]:
    """What the tests see: everything that git does not ignore, or that was distributed, and the compiled kernels."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = os.fsdecode(listed).split("\0")
    else:
        names = (ROOT / "hyperkern.egg-info" / "SOURCES.txt").read_text(encoding="utf-8").splitlines()
    tracked = [name for name in names if name and (ROOT / name).is_file()]
    return tracked + [str(path.relative_to(ROOT)) for path in (ROOT / "hyperkern/backends/cuda").glob("*.so")]


def copied(names: list[str], folder: str) -> Path:
    """A copy of the tree, without what Python has compiled: a mutant may have the size and the second of its origin."""
    tree = Path(folder)
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


def tested(tree: Path, tests: tuple[str, ...]) -> Outcome:
    """Runs tests in a tree. Only a failed test kills: an error of pytest itself, or of the table, does not."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # the table names tests of the interpreter and of the emulator
    try:
        run = subprocess.run(
            [*PYTEST, *tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return Outcome("broken", f"no answer within {SECONDS} s")
    lines = run.stdout.splitlines() + run.stderr.splitlines() or [""]
    summary = next((line for line in reversed(lines) if re.search(r" in \d", line)), "")
    if run.returncode == 1 and " failed" in summary:
        failed = next((line for line in lines if line.startswith("FAILED")), "")
        return Outcome("killed", re.sub(r"^FAILED \S*?::| - .*", "", failed))
    if run.returncode == 0:
        return Outcome("survived" if " passed" in summary else "skipped", summary)
    return Outcome("broken", next((line for line in lines if line.startswith("ERROR")), lines[-1]))


def tried(mutant: Mutant, names: list[str]) -> Outcome:
    """What becomes of a mutant, in a copy of the tree of its own."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = copied(names, folder)
        try:
            text = mutant.applied((tree / mutant.file).read_text())
        except (OSError, ValueError) as error:
            return Outcome("broken", str(error))
        (tree / mutant.file).write_text(text)
        outcome = tested(tree, mutant.tests)
    if outcome.verdict == "skipped" and any(backend in test for backend in HERE for test in mutant.tests):
        return Outcome("broken", "its tests are skipped where they could run")
    return outcome


def main() -> int:
    """Prints what became of every mutant; 1 unless all were killed."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.splitlines()[0])
    parser.add_argument("-k", metavar="WORD", default="", help="only mutants with this word in name, file or tests")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at a time (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the table, run nothing")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.k in " ".join([mutant.name, mutant.file, *mutant.tests])]
    if args.list:
        for mutant in chosen:
            print(f"{mutant.name}\n    {mutant.file}: {mutant.old!r} -> {mutant.new!r}\n    {' '.join(mutant.tests)}")
        return 0
    if not chosen:
        parser.error(f"no mutant has {args.k!r} in its name, file or tests")
    started, names = time.monotonic(), files()
    with ThreadPoolExecutor(args.jobs) as pool:
        # A test that fails anyway kills everything: first of all the tree as it is.
        tests = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
        with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
            sound = tested(copied(names, folder), tests)
        if sound.verdict not in ("survived", "skipped"):
            print(f"the tests do not pass without a mutant: {sound.detail}")
            return 1
        counts: Counter[str] = Counter()
        for mutant, outcome in zip(chosen, pool.map(lambda mutant: tried(mutant, names), chosen), strict=True):
            counts[outcome.verdict] += 1
            print(f"{outcome.verdict:<10}{mutant.name:<64}{outcome.detail}", flush=True)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{counted} of {len(chosen)} mutants in {time.monotonic() - started:.0f} s")
    return int(bool(counts["survived"] or counts["broken"]))


if __name__ == "__main__":
    sys.exit(main())
