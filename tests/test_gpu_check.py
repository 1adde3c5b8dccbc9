"""The GPU check without a GPU: it says so, and its program runs from end to end in the interpreter and the emulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import usable

from benchmarks import gpu

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it would measure")


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT_DIR": str(tmp_path)}
    result = subprocess.run([ROOT / "benchmarks/gpu_check.sh"], env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no CUDA GPU found" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_is_named() -> None:
    result = subprocess.run([ROOT / "benchmarks/gpu_check.sh", "--fast"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "usage: benchmarks/gpu_check.sh [--quick]" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param(name, marks=usable(name)) for name in ("cuda", "triton")])
def test_every_stage_runs(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--backend", backend, "--mode", "smoke", "--out", str(out)])
    assert gpu.main() == 0, capsys.readouterr().out[-3000:]
    figures = json.loads(out.read_text())
    assert all(check["problem"] is None for check in figures["checks"])
    assert len(figures["checks"]) == 9 + 18 + 2
    found = {row["case"] for row in figures["rows"]}
    assert {"uniformity, loss + gradient", "uniformity, value", "clip, loss + gradient"} <= found
    assert all(row["median_ms"] > 0 for row in figures["rows"])
    assert figures["machine"]["gpu"].startswith("none")
