"""The example for several processes, started as a user starts it."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "torchrun_align_uniform.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def run(command: list[str], *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([*command, str(EXAMPLE), *options], capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_two_processes() -> None:
    result = run(TORCHRUN, "--epochs", "10", "--batch", "255")
    assert result.returncode == 0, result.stderr
    assert "loss of 255 images on 2 processes" in result.stdout
    probe = float(result.stdout.split("alignment + uniformity")[1].split()[2])
    assert probe > 90  # of an untrained encoder it is 85


@pytest.mark.slow
def test_one_process_without_torchrun() -> None:
    result = run([sys.executable], "--epochs", "1")
    assert result.returncode == 0, result.stderr
    assert "alignment + uniformity" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ([sys.executable], ["--batch", "1"]),
        ([sys.executable], ["--epochs", "0"]),
        (TORCHRUN, ["--transport", "tree"]),  # of a group
    ],
    ids=["batch", "epochs", "transport"],
)
def test_wrong_options_are_named(command: list[str], wrong: list[str]) -> None:
    result = run(command, *wrong)
    assert result.returncode != 0
    assert wrong[1] in result.stderr
    assert wrong[0].strip("-") in result.stderr
