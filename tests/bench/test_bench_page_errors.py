"""The page of a benchmark: results that are none, figures that are not there, and the command line."""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import made_up
import pytest

from hyperkern.bench import figures, page
from hyperkern.bench.machine import describe
from hyperkern.bench.registry import BenchError
from hyperkern.bench.result import COLUMNS, Provenance, read, read_as
from hyperkern.files import as_json

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

pytestmark = pytest.mark.usefixtures("small_rates")


def written(path, content):
    path.write_text(json.dumps(content))
    return path


def without(content, *keys):
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return content


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["schema"], "field `schema`"),
        (["machine"], "field `machine`"),
        (["machine", "commit"], "machine: Object missing required field `commit`"),
        (["limits", "float32", "bytes"], r"limits\[...\]: Object missing required field `bytes`"),
        (["rows"], "field `rows`"),
        (["rows", 1, "median_ms"], r"rows\[1\]: Object missing required field `median_ms`"),
    ],
)
def test_missing_keys_are_named(tmp_path, keys, named):
    content = without(copy.deepcopy(made_up.content([made_up.row(), made_up.row(n=2048)])), *keys)
    with pytest.raises(BenchError, match=f"result.json' is no result of hyperkern bench: .*{named}"):
        read(written(tmp_path / "result.json", content))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"schema": 2}, r"schema: Invalid enum value 2 \(2\)"),
        ({"rows": {}}, r"rows: Expected `array`, got `object` \({}\)"),
        ({"limits": []}, r"limits: Expected `object`, got `array` \(\[\]\)"),
        ({"rows": [1]}, r"rows\[0\]: Expected `object`, got `int` \(1\)"),
        ({"rows": [made_up.row() | {"status": "fine"}]}, r"rows\[0\].status: Invalid enum value 'fine'"),
        ({"rows": [made_up.row() | {"median_ms": None}]}, r"rows\[0\]: median_ms must be there .* got None"),
        ({"rows": [made_up.row() | {"median_ms": -1.0}]}, r"rows\[0\]: median_ms must be above 0, got -1.0"),
        ({"rows": [made_up.row() | {"p20_ms": "1"}]}, r"rows\[0\].p20_ms: Expected `float \| null`, got `str` \('1'\)"),
        ({"rows": [made_up.row() | {"median_ms": math.nan}]}, r"rows\[0\]: median_ms must be there .* got None"),
        ({"rows": [made_up.row() | {"n": 0}]}, r"rows\[0\]: n must be at least 1, got 0"),
        ({"rows": [made_up.row() | {"peak_bytes": -1}]}, r"rows\[0\]: peak_bytes must be at least 0, got -1"),
        ({"rows": [made_up.row() | {"case": None}]}, r"rows\[0\].case: Expected `str`, got `null` \(None\)"),
    ],
)
def test_wrong_values_are_named(tmp_path, values, named):
    with pytest.raises(BenchError, match=f"result.json' is no result of hyperkern bench: {named}"):
        read(written(tmp_path / "result.json", made_up.content([made_up.row()]) | values))


@pytest.mark.parametrize("name", ["cpu", "large_cpu", "ordinary_cpu"])
def test_committed_files_are_read_without_a_change(name):
    path = RESULTS / f"{name}.json"
    content, found = json.loads(path.read_text(encoding="utf-8")), json.loads(as_json(read(path)))
    assert found["machine"] == content["machine"]
    assert [{key: row[key] for key in COLUMNS} for row in content["rows"]] == found["rows"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_what_it_belongs_to(path):
    @dataclass
    class Anything:
        machine: Provenance

    machine = read_as(path, Anything).machine
    assert all((machine.device, machine.commit, machine.date))
    # Of files that are older than the rule the history knows these alone: they say so.
    assert machine.processor or "history" in json.loads(path.read_text(encoding="utf-8"))["note"]


def test_files_of_scripts_are_read_by_dataclasses_of_their_own(tmp_path):
    @dataclass
    class Script:
        machine: Provenance
        rows: list[int]

    content = {"machine": describe("cpu"), "rows": [1, 2]}
    path = tmp_path / "script.json"
    path.write_bytes(as_json(content))
    assert read_as(path, Script) == Script(**content)
    path.write_bytes(as_json(content | {"rows": [1, "2"]}))
    with pytest.raises(BenchError, match=r"rows\[1\]: Expected `int`, got `str` \('2'\)"):
        read_as(path, Script)
    written(path, {"rows": []})
    with pytest.raises(BenchError, match="field `machine`"):
        read_as(path, Script)


def test_unknown_figures():
    result = made_up.result([made_up.row()])
    with pytest.raises(ValueError, match="kind must be one of time, memory, roofline, ratio, got 'pie'"):
        page.figure(result, "pie", "uniformity", 128)
    with pytest.raises(ValueError, match=r"no rows of clip at D = 128; it has uniformity at D = 128"):
        page.figure(result, "time", "clip", 128)
    with pytest.raises(ValueError, match="no rows of uniformity at D = 256"):
        page.figure(result, "time", "uniformity", 256)


def test_files_are_written(tmp_path):
    source = tmp_path / "result.json"
    source.write_text(json.dumps(made_up.content([made_up.row()])))
    assert (
        page.main([str(source), "--out", str(tmp_path / "page.html"), "--svg-dir", str(tmp_path / "images" / "new")])
        == 0
    )
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    names = sorted(path.name for path in (tmp_path / "images" / "new").iterdir())
    assert names == [f"uniformity-d128-{kind}.svg" for kind in sorted(figures.TITLES)]
    for path in (tmp_path / "images" / "new").iterdir():
        assert ElementTree.parse(path).getroot().get("width")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "Expected `object`, got `array`"),
        ('{"schema": 1}', "field `machine`"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_read_leaves_the_page_as_it_was(tmp_path, capsys, content, said):
    source, out = tmp_path / "result.json", tmp_path / "page.html"
    out.write_text("before")
    if content is not None:
        source.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        page.main([str(source), "--out", str(out)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert out.read_text() == "before"
