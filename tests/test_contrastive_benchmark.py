"""The page of measured figures says what was measured, and the memory that is promised was kept."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.tables import result

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.contrastive")


def test_every_loss_was_measured(benchmark_module: ModuleType) -> None:
    results = result("contrastive_cpu")
    assert [row["loss"] for row in results["pairs"]] == list(benchmark_module.PAIRS)
    assert [row["loss"] for row in results["peaks"]] == list(benchmark_module.OWN)
    for row in results["peaks"]:
        assert (row["n"], row["d"]) == (32768, 256)
        assert row["peak_mib"] * benchmark_module.MEBIBYTE < benchmark_module.MOST_BYTES, row["loss"]


def test_a_slower_loss_is_named(benchmark_module: ModuleType) -> None:
    results = result("contrastive_cpu")
    name = results["pairs"][0]["loss"]
    results["pairs"] = [row | {"times_faster": 0.5 if row["loss"] == name else 2.0} for row in results["pairs"]]
    assert f"Slower than the original: {name}. " in benchmark_module.page(results)


def test_results_are_saved_one_by_one_in_the_order_of_the_table(benchmark_module: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    for loss, peak in (("sup_con", 1.0), ("info_nce", 2.0), ("sup_con", 3.0)):
        benchmark_module.save(file, "peaks", {"loss": loss, "peak_mib": peak})
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved == {"peaks": [{"loss": "info_nce", "peak_mib": 2.0}, {"loss": "sup_con", "peak_mib": 3.0}]}


def test_a_peak_is_that_of_a_process_of_its_own(benchmark_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the child imports the benchmark
    row = benchmark_module.large("info_nce, queue with a gradient", 2048, 64)
    # Three gradients at the least, and far from the matrix of all pairs.
    assert 3 * 2048 * 64 * 4 / benchmark_module.MEBIBYTE < row["peak_mib"] < 100
