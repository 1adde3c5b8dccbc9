import dataclasses
import io
import json
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.image
import pytest

from examples.digits import DemoConfig, run_demo
from hyperkern.metrics import uniformity_limit

FILES = {"table.md", "results.json", "picture.png", "picture.svg"}
TINY = DemoConfig(seeds=2, epochs=1, dim=8, batch=256, device="cpu", huge_rows=1024)
NAMES = ["alignment", "uniformity", "contrastive", "align_uniform", "untrained"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    run_demo(dataclasses.replace(TINY, out=folder))
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def test_writes_its_files_and_nothing_else(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == FILES


def test_json_holds_every_run_and_its_summary(results: dict) -> None:
    assert results["config"]["seeds"] == 2
    assert sorted((run["objective"], run["seed"]) for run in results["runs"]) == sorted(
        (name, seed) for name in NAMES for seed in (0, 1)
    )
    for name in NAMES:
        for metric, spread in results["summary"][name].items():
            values = [run[metric] for run in results["runs"] if run["objective"] == name]
            assert spread["mean"] == pytest.approx(statistics.fmean(values))
            assert spread["std"] == pytest.approx(statistics.stdev(values))
    assert [run["objective"] for run in results["circle_runs"]] == NAMES[:4]
    assert all(run["dim"] == 2 for run in results["circle_runs"])
    assert results["uniform_distribution"]["uniformity"] == uniformity_limit(8, 2.0)
    assert results["huge_batch"]["rows"] == 1024
    assert results["versions"]["torch"]


def test_table_shows_the_figures_of_the_json(out: Path, results: dict) -> None:
    text = (out / "table.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == ["objective", "alignment ↓", "uniformity ↓", "linear probe % ↑", "standardised % ↑", "5-NN % ↑"]
    assert len({len(row) for row in rows}) == 1
    for name, row in zip(NAMES, rows[2:7], strict=True):
        summary = results["summary"][name]
        for metric, cell in zip(("linear_probe", "scaled_probe", "knn"), row[3:], strict=True):
            mean, std = (float(number) for number in cell.split(" ± "))
            assert mean == pytest.approx(100 * summary[metric]["mean"], abs=0.051)
            assert std == pytest.approx(100 * summary[metric]["std"], abs=0.051)
    assert rows[7][2] == f"{uniformity_limit(8, 2.0):.3f}"
    assert results["finding"]["lines"][-1] in text


def test_pictures_can_be_read(out: Path) -> None:
    pixels = matplotlib.image.imread(io.BytesIO((out / "picture.png").read_bytes()))
    assert pixels.shape[0] > 1000
    assert pixels.shape[1] > 1000
    assert pixels[..., :3].std() > 0.05
    root = ElementTree.fromstring((out / "picture.svg").read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter("{http://www.w3.org/2000/svg}use"))) > 1000  # the points


def test_same_seeds_give_the_same_figures_and_replace_the_files(out: Path, results: dict, tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("old")
    run_demo(dataclasses.replace(TINY, out=tmp_path))
    again = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    timeless = [
        [{key: value for key, value in run.items() if key != "seconds"} for run in one["runs"] + one["circle_runs"]]
        for one in (results, again)
    ]
    assert timeless[0] == timeless[1]
    assert (tmp_path / "table.md").read_bytes() == (out / "table.md").read_bytes()
    assert (tmp_path / "picture.svg").read_bytes() == (out / "picture.svg").read_bytes()
