"""Resident memory of the command on a mapped file that is larger than what it may use for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROWS, DIM = 200_000, 128
PROGRAM = """
import sys
from hyperkern.cli import main

def peak(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) // 1024 for line in file if line.startswith(field))

with_torch = peak("VmHWM")
status = main(["eval", *sys.argv[1:]])
print("peak", peak("VmHWM"), "before", with_torch)
sys.exit(status)
"""

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "features.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (ROWS, DIM))
    random = np.random.default_rng(0)
    for start in range(0, ROWS, 20_000):
        array[start : start + 20_000] = random.standard_normal((20_000, DIM), dtype=np.float32)
    array.flush()
    return path


def peaks(*arguments: object) -> tuple[int, int]:
    """Megabytes of resident memory at the highest, and once everything is imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    words = run.stdout.split("peak ")[1].split()
    return int(words[0]), int(words[2])


@pytest.mark.slow
def test_estimate_of_a_large_file_stays_small(mapped: Path, tmp_path: Path) -> None:
    plot = tmp_path / "out.png"
    peak, before = peaks(mapped, mapped, "--estimate", 256, "--plot", plot)
    assert peak < 1000
    assert peak - before < 500
    assert plot.exists()


@pytest.mark.slow
def test_exact_needs_a_few_blocks_whatever_the_number_of_rows(mapped: Path, tmp_path: Path) -> None:
    # Every pair of 200,000 rows takes minutes; what grows with the rows would show between these two.
    small, large = tmp_path / "small.npy", tmp_path / "large.npy"
    rows = np.load(mapped, mmap_mode="r")
    np.save(small, rows[:4_096])
    np.save(large, rows[:14_336])
    (of_small, _), (of_large, before) = peaks(small, "--block-rows", 2048), peaks(large, "--block-rows", 2048)
    assert of_large < 1000
    assert of_large - before < 400
    assert of_large - of_small < 40
