"""The page of a benchmark: results that are none, figures that are not there, and the command line."""

import copy
import json
import math
from xml.etree import ElementTree

import made_up
import pytest

from hyperkern.bench import figures, page

pytestmark = pytest.mark.usefixtures("small_rates")


def without(result, *keys):
    result = copy.deepcopy(result)
    inner = result
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return result


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["schema"], "no key schema"),
        (["machine"], "no key machine"),
        (["machine", "commit"], r"no key machine\.commit"),
        (["limits", "float32", "bytes"], r"no key limits\.float32\.bytes"),
        (["rows"], "no key rows"),
        (["rows", 1, "median_ms"], r"no key rows\[1\]\.median_ms"),
    ],
)
def test_missing_keys_are_named(keys, named):
    result = without(made_up.result([made_up.row(), made_up.row(n=2048)]), *keys)
    with pytest.raises(ValueError, match=named):
        page.render(result)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"rows": {}}, "rows must be a list, got dict"),
        ({"limits": []}, "limits must be an object, got list"),
        ({"rows": [1]}, r"rows\[0\] must be an object, got int"),
        ({"rows": [made_up.row() | {"status": "fine"}]}, "status must be one of ok, failed, skipped, got 'fine'"),
        ({"rows": [made_up.row() | {"median_ms": None}]}, r"rows\[0\].median_ms must be above 0"),
        (
            {"rows": [made_up.row() | {"p20_ms": "1"}]},
            r"rows\[0\].p20_ms must be a number of at least 0 or null, got '1'",
        ),
        ({"rows": [made_up.row() | {"median_ms": math.nan}]}, r"median_ms must be above 0 where status is ok, got nan"),
        ({"rows": [made_up.row() | {"n": 0}]}, r"rows\[0\].n must be an integer of at least 1, got 0"),
        ({"rows": [made_up.row() | {"case": None}]}, r"rows\[0\].case must be a string, got None"),
    ],
)
def test_wrong_values_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        page.render(made_up.result([made_up.row()]) | values)


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
    source.write_text(json.dumps(made_up.result([made_up.row()])))
    assert (
        page.main([str(source), "--out", str(tmp_path / "page.html"), "--svg-dir", str(tmp_path / "images" / "new")])
        == 0
    )
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    names = sorted(path.name for path in (tmp_path / "images" / "new").iterdir())
    assert names == [f"uniformity-d128-{kind}.svg" for kind in sorted(figures.KINDS)]
    for path in (tmp_path / "images" / "new").iterdir():
        assert ElementTree.parse(path).getroot().get("width")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is an object, got list"),
        ('{"schema": 1}', "no key machine"),
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
