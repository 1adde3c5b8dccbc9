"""The benchmark of trainers runs, and a loss that is another gets no time."""

import json
from pathlib import Path

import pytest
from parity import library

from benchmarks import __main__ as command
from benchmarks.fit_cases import Case
from benchmarks.trainers import NAMES
from hyperkern.bench.gate import GateFailure

NAME = "loop, lightly NTXentLoss"
FEW = ["trainers", "--cases", NAME, "--sizes", "8", "--rounds", "2", "--seconds", "0.1"]


@pytest.fixture(autouse=True)
def _library() -> None:
    library("lightly.loss")


def test_it_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trainers.json"
    assert command.main([*FEW, "--json", str(out)]) == 0
    found = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [(row["case"], row["implementation"], row["n"]) for row in found] == [(NAME, name, 8) for name in NAMES]
    assert all(row["samples_ms"] and min(row["samples_ms"]) > 0 for row in found)
    original, own, _ = found
    assert original["package"] == "lightly"
    assert 0 <= own["error"] < 1e-5
    assert capsys.readouterr().out.count(NAME) == 1


def test_another_loss_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Case, "drop_in", lambda case, model: case.original(model, 1.1))
    with pytest.raises(GateFailure, match="its curve is"):
        command.main(FEW)
