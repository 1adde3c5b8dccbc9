"""The example for several processes, started as a user starts it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from examples import torchrun_align_uniform as example

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", example.__name__]


def run(command: list[str], *options: str) -> subprocess.CompletedProcess:
    told = os.environ | {"PYTHONFAULTHANDLER": "1"}  # where a process stood that a signal ends
    return subprocess.run([*command, *options], cwd=ROOT, env=told, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_two_processes() -> None:
    result = run(TORCHRUN, "--epochs", "10", "--batch", "255")
    assert result.returncode == 0, result.stderr
    assert "loss of 255 images on 2 processes" in result.stdout
    probe = float(result.stdout.split("alignment + uniformity")[1].split()[2])
    assert probe > 90  # of an untrained encoder it is 85


# What a process does after its last collective depends on when its threads end, which only the group's end waits for.
LEAVES_NO_GROUP = """
import gc, weakref
import torch.distributed as dist

joined = dist.init_process_group
def join(*args, **kwargs):
    joined(*args, **kwargs)
    groups.append(weakref.ref(dist.group.WORLD))

groups, dist.init_process_group = [], join
{run}
gc.collect()
assert [group() for group in groups] == [None]
"""


RUNS = {
    "torchrun_align_uniform": "from examples.torchrun_align_uniform import main; main(['--epochs', '1'])",
    "train_ddp": "from examples.train_ddp import main; main(['--epochs', '1'])",
    "recipes": """
from torch import nn
from examples.paper.recipes.session import session
with session("cpu") as one:
    one._replace(ranks=2).parallel(nn.Linear(2, 2))
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_group_ends_with_the_example(name: str) -> None:
    code = LEAVES_NO_GROUP.format(run=RUNS[name])
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | alone, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def main() -> Iterator[Callable[[list[str]], None]]:
    """The example's command in this process."""
    threads = torch.get_num_threads()
    yield example.main
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_one_process_without_torchrun(main: Callable, capsys: pytest.CaptureFixture) -> None:
    main(["--epochs", "1"])
    assert "alignment + uniformity" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--batch", "1"], ["--epochs", "0"]], ids=["batch", "epochs"])
def test_wrong_options_are_named(wrong: list[str], main: Callable, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert wrong[1] in said
    assert wrong[0].strip("-") in said


def test_a_wrong_option_of_the_group_is_named(main: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(dist, "init_process_group", lambda: None)
    with pytest.raises(ValueError, match=r"transport must be .*tree"):
        main(["--transport", "tree"])
