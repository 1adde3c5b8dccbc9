"""What runs in a process of its own: its memory, and the time and the value of what takes long."""

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_runs import TINY, written

from hyperkern.bench import child
from hyperkern.bench import run as runs
from hyperkern.bench.registry import CASES, Setup
from hyperkern.bench.result import read
from hyperkern.cli import main

pytestmark = pytest.mark.usefixtures("small_rates")
WITH_MEMORY = [option for option in TINY if option != "--no-memory"]

# What they take is the tests' to say.
LONG = """
from hyperkern.bench import implementation
from hyperkern.textbook import dense_uniformity

@implementation("uniformity", "slow")
def slow():
    return dense_uniformity

@implementation("uniformity", "wrong when large")
def wrong():
    return lambda x: dense_uniformity(x) * (1.01 if x.shape[0] == 600 else 1)
"""


def test_a_process_that_dies_for_memory_fails_one_point(monkeypatch: pytest.MonkeyPatch) -> None:
    setups = [Setup("uniformity", "float32", n, 8, "both") for n in (8, 16, 32)]
    first, last = child.Alone(100, 1.5, -2.0), child.Alone(300, 2.5, None)
    children = [(-9, pickle.dumps(first) + pickle.dumps(last)[:-9]), (1, b""), (0, pickle.dumps(last))]
    asked = []

    def process(command: list[str], input: bytes, **options: object) -> types.SimpleNamespace:
        asked.append([setup.n for setup in pickle.loads(input)[1][2]])
        status, output = children[len(asked) - 1]
        return types.SimpleNamespace(returncode=status, stdout=output, stderr=b"the reason\n")

    monkeypatch.setattr(child.subprocess, "run", process)
    found = child.each_alone("dense", "eager", [*setups, setups[0]], [])
    assert found == [first, "killed by the system, as it does when memory runs out", *found[2:]]
    assert found[2:] == ["its process ended with status 1: the reason", last]
    assert asked == [[8, 16, 32, 8], [32, 8], [8]]


def test_what_is_printed_is_no_answer(tmp_path: Path) -> None:
    noisy, setup = tmp_path / "noisy.py", Setup("uniformity", "float32", 8, 8, "both")
    written(noisy, "import os\nprint('noise', flush=True)\nos.write(1, b'more')")
    (found,) = child.each_alone("dense", "eager", [setup], [noisy])
    assert isinstance(found, child.Alone)


def test_memory_grows_with_what_is_stored() -> None:
    setup = Setup("uniformity", "float32", 2000, 16, "both")
    (dense,) = child.each_alone("dense", "eager", [setup], [])
    assert isinstance(dense, child.Alone)
    if dense.peak_bytes is None:
        pytest.skip("no /proc on this system")
    assert dense.peak_bytes > 2 * 2000 * 2000 * 4


def test_a_long_call_is_timed_once_where_its_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed_alone(name: str, *args: Any) -> list[child.Alone | str]:
        found = child.each_alone(name, *args)
        return [one if isinstance(one, str) else one._replace(ms=1.0 if name == "dense" else 1e6) for one in found]

    monkeypatch.setattr(runs, "each_alone", timed_alone)
    out, own = tmp_path / "a.json", written(tmp_path / "slow.py", LONG)
    options = ["--cases", "uniformity", "--implementations", "slow,wrong when large", "--sizes", "600", "--load", own]
    assert main(["bench", *WITH_MEMORY, *options, "--json", str(out)]) == 0
    dense, slow, wrong = read(out).rows
    assert (len(dense.samples_ms), len(slow.samples_ms)) == (2, 1)
    assert slow.median_ms == 1e6
    assert isinstance(slow.peak_bytes, int) or sys.platform != "linux"
    assert (wrong.status, wrong.median_ms) == ("failed", None)
    assert "at N 600 its value is 0.01 off that of 'dense'" in wrong.reason


def test_every_process_draws_the_same_features() -> None:
    setup = Setup("clip", "float32", 40, 8, "both")
    (found,) = child.each_alone("dense", "eager", [setup], [])
    assert isinstance(found, child.Alone)
    case = CASES["clip"]
    assert case.truth is not None
    state = torch.random.get_rng_state()
    value = case.truth(*case.draw(40, 8, "float32", "cpu"))
    assert found.value == pytest.approx(value.item(), rel=1e-6)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
def test_compiled_by_the_execution(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    options = ["--cases", "uniformity", "--implementations", "compiled", "--executions", "compile"]
    assert main(["bench", *WITH_MEMORY, *options, "--json", str(out)]) == 0
    rows = read(out).rows
    found = [(r.implementation, r.execution, r.status) for r in rows]
    assert found == [("dense", "compile", "ok"), ("compiled", "compile", "skipped")]
    assert isinstance(rows[0].peak_bytes, int) or sys.platform != "linux"
