"""Tuning, with a clock of its own instead of a GPU: what is tried, what wins, what is written."""

import itertools
from pathlib import Path

import pytest
import torch
from conftest import needs_triton

pytest.importorskip("triton")

from hyperkern.backends.triton import config
from hyperkern.backends.triton.config import Config
from hyperkern.bench import tune
from hyperkern.cli import main

CPU = torch.device("cpu")


def test_candidates_fit() -> None:
    for use in tune.uses():
        found = list(tune.candidates(use, 101376))
        assert 2 <= len(found) <= 200
        assert len(set(found)) == len(found)
        assert all((choice.block_d is None) == (use.dim is not None) for choice in found)
        if use.kernel == "sums":
            assert all(choice.block_m % choice.block_n == 0 for choice in found)
        if use.kernel == "two_way":
            assert all(choice.block_n % choice.block_m == 0 for choice in found)


def test_uses_are_what_the_files_have() -> None:
    general = {use for use in tune.uses() if use.mode is None}
    for architecture in config.shipped():
        assert {tune.Use(e.kernel, e.operand, e.dim, None) for e in architecture.entries} == general


def test_the_fastest_right_one_wins() -> None:
    slow, fast, wrong, broken = (Config(16 << i, 16, None, 4, 2) for i in range(4))
    times = {slow: 3.0, fast: 2.0, wrong: 1.0}
    tried: list[Config] = []

    def run(choice: Config) -> torch.Tensor:
        if choice == broken:
            raise RuntimeError("out of resource")
        tried.append(choice)
        return torch.ones(3) * (2 if choice == wrong else 1)

    def milliseconds(run) -> float:
        run()
        return times[tried[-1]]

    lines: list[str] = []
    use = next(tune.uses())
    assert tune.best(use, iter((broken, wrong, slow, fast)), run, torch.ones(3), milliseconds, lines.append) == fast
    assert "cannot run" in lines[0]
    assert "WRONG" in lines[1]
    assert tune.best(use, iter((broken,)), run, torch.ones(3), milliseconds, lines.append) is None


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the CPU")
def test_a_tuned_file_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every use runs with the configurations it is tuned for; the clock prefers the last one.
    monkeypatch.setattr(tune, "candidates", lambda use, _: iter((
        Config(16, 16, None if use.dim else 32, 4, 2), Config(32, 32, None if use.dim else 32, 4, 2)
    )))  # fmt: skip
    monkeypatch.setattr(tune, "_ANY", 70)
    clock = itertools.count(1000, -1)

    def milliseconds(run) -> float:
        run()
        return float(next(clock))

    start = config.of_name("sm_90")._replace(checked="results.json")
    tuned = tune.tune(start, CPU, 40, ("bfloat16", "float32"), milliseconds, lambda line: None)
    assert tuned.checked == ""
    for entry in tuned.entries:
        if entry.operand == "tf32" or entry.mode == "classes":  # nobody asked for one, and the other is not tuned
            assert entry in start.entries
        else:
            assert (entry.config.block_n, entry.mode) == (32, None)
    path = tmp_path / "sm_90.json"
    config.write(tuned, path)
    assert config.read(path) == tuned


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="runs on the CPU")
def test_weights_are_tuned_to_the_steps_of_their_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    # The last one is the fastest: other steps for the panels than for the sums.
    def both(use: tune.Use, _: int):
        steps = (64, 32) if use.kernel == "panel" else (32, 64)
        return (Config(16, 16, None if use.dim else block_d, 4, 2) for block_d in steps)

    monkeypatch.setattr(tune, "candidates", both)
    monkeypatch.setattr(tune, "_ANY", 70)
    clock = itertools.count(1000, -1)
    tuned = tune.tune(config.of_name("sm_90"), CPU, 20, ("float32",), lambda run: float(next(clock)), lambda line: None)
    found = {(e.kernel, e.mode): e.config.block_d for e in tuned.entries if e.operand == "float32" and e.dim is None}
    assert found == {("sums", None): 64, ("panel", None): 64, ("panel", "exp"): 32}


def test_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["tune", "--rows", "3"]) == 2
    assert "--rows must be at least 128, got 3" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["tune"]) == 1
        assert "needs a CUDA GPU" in capsys.readouterr().err
