"""The command: arguments, files, plans, what is skipped and why, and what an interruption leaves."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench_runs import OWN, TINY, result, row, written

from benchmarks.studies import PEERS
from hyperkern.bench import registry
from hyperkern.bench import run as runs
from hyperkern.bench.load import load_file
from hyperkern.bench.matrix import DEFAULTS, groups
from hyperkern.bench.plan import lines, plan
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, BenchError, Implementation, Setup
from hyperkern.bench.result import COLUMNS, MACHINE, as_csv, read
from hyperkern.bench.table import HEADS, WORDS
from hyperkern.cli import main
from hyperkern.files import as_json
from hyperkern.terminal import print_table

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("it measured")

    monkeypatch.setattr(runs, "run", refuse)


def test_json_and_csv_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cases", "uniformity,yardstick", "--implementations", "hyperkern,attention"]
    out = tmp_path / "a.json", tmp_path / "a.csv"
    assert main(["bench", *TINY, *options, "--json", str(out[0]), "--csv", str(out[1])]) == 0
    found = read(out[0])
    written_as = json.loads(out[0].read_text(encoding="utf-8"))
    assert list(written_as) == ["schema", "machine", "limits", "rows"]
    assert tuple(written_as["machine"]) == MACHINE
    assert all(tuple(of_json) == COLUMNS for of_json in written_as["rows"])
    best, rate = found.limits["float32"].best_flops, found.limits["float32"].flops
    assert best is not None
    assert best >= rate
    with out[1].open(encoding="utf-8") as file:
        lines_of = list(csv.DictReader(file))
    assert len(lines_of) == len(found.rows) == 4
    for of_csv, of_json in zip(lines_of, found.rows, strict=True):
        assert of_csv["implementation"] == of_json.implementation
        assert float(of_csv["median_ms"]) == of_json.median_ms
        samples = [float(sample) for sample in of_csv["samples_ms"].split()]
        assert samples == pytest.approx(of_json.samples_ms, rel=1e-5)
        assert of_csv["torch"] == torch.__version__
        assert of_json.p20_ms <= of_json.median_ms <= of_json.p80_ms
        assert of_json.of_limit == pytest.approx(of_json.floor_ms / of_json.median_ms)
    hyperkern = next(r for r in found.rows if r.implementation == "hyperkern")
    dense = next(r for r in found.rows if r.implementation == "dense")
    assert hyperkern.vs_baseline == pytest.approx(dense.median_ms / hyperkern.median_ms)
    assert hyperkern.flops == 3 * 40 * 40 * 8
    assert hyperkern.bytes == 2 * 40 * 8 * 4
    assert found.rows[-1].error is None  # a yardstick has no truth
    assert f"written: {out[0]}" in capsys.readouterr().out
    assert as_json(found) == out[0].read_bytes()
    assert as_csv(found) == out[1].read_bytes()


def test_a_processor_with_an_index_is_the_processor(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    options = ["--device", "cpu:0", "--cases", "uniformity", "--implementations", "dense", "--json", str(out)]
    assert main(["bench", *TINY, *options]) == 0
    assert read(out).machine.device == "cpu"


@pytest.mark.parametrize("mode", ["forward", "backward", "both"])
def test_every_mode(tmp_path: Path, mode: str) -> None:
    out = tmp_path / "a.json"
    options = ["--cases", "clip", "--modes", mode, "--implementations", "hyperkern,chunked", "--json", str(out)]
    assert main(["bench", *TINY, *options]) == 0
    assert [(r.mode, r.status) for r in read(out).rows] == [(mode, "ok")] * 3


def test_cases_of_a_file_of_ones_own(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    own = written(tmp_path / "own.py", OWN)
    memory_too = [option for option in TINY if option != "--no-memory"]
    assert main(["bench", *memory_too, "--load", own, "--cases", "norm", "--json", str(out)]) == 0
    rows = read(out).rows
    assert [(r.implementation, r.status, r.flops) for r in rows] == [
        ("plain", "ok", 640),
        ("by torch", "ok", 640),
    ]
    assert all(isinstance(r.peak_bytes, int) for r in rows) or sys.platform != "linux"


def test_names_are_taken_once() -> None:
    with pytest.raises(BenchError, match="there is a case 'clip' already"):
        registry.case("clip", inputs=1, flops=lambda n, d, mode: 1.0, counted="")(torch.sum)
    with pytest.raises(BenchError, match="case 'clip' has an implementation 'dense' already"):
        registry.implementation("clip", "dense")(lambda: torch.sum)
    with pytest.raises(BenchError, match="there is no case 'clap'; there are uniformity, "):
        registry.implementation("clap", "dense")(lambda: torch.sum)


@pytest.mark.parametrize(
    ("changes", "setup", "reason"),
    [
        ({"package": "no-such-peer", "module": "no_such"}, {}, r"no-such-peer is not installed \(pip install no-such"),
        ({"devices": ("cuda",)}, {}, "runs on cuda only, got cpu"),
        ({"dtypes": ("float16", "bfloat16")}, {}, "takes float16, bfloat16 only, got float32"),
        ({"modes": ("both",)}, {"mode": "backward"}, "in mode both only, got backward"),
        ({"most_rows": 32}, {}, "beyond 32 rows, got 64"),
        ({"multiple_of": 256}, {}, "D to be a multiple of 256, got 16"),
        ({"rows_multiple_of": 48}, {}, "N to be a multiple of 48, got 64"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(changes: dict, setup: dict, reason: str) -> None:
    found = Implementation("clip", "it", lambda: torch.sum, **changes)
    refusal = found.refusal(Setup("clip", "float32", 64, 16, "both")._replace(**setup))
    assert refusal is not None
    assert re.search(reason, refusal)


def test_what_is_skipped_is_in_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.json"
    options = ["--cases", "clip", "--implementations", "liger", "--executions", "eager,cudagraph", "--json", str(out)]
    options += ["--load", str(PEERS)]
    assert main(["bench", *TINY, *options]) == 0
    found = [(r.implementation, r.execution, r.status, r.reason) for r in read(out).rows]
    assert found[1:] == [
        ("dense", "cudagraph", "skipped", "a CUDA graph needs a GPU"),
        ("liger", "eager", "skipped", "runs on cuda only, got cpu"),
        ("liger", "cudagraph", "skipped", "a CUDA graph needs a GPU"),
    ]
    assert "skipped: clip, liger: runs on cuda only, got cpu" in capsys.readouterr().out


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases", "clap"], "argument --cases: choose from uniformity, "),
        (["--cases", ","], "argument --cases: names nothing"),
        (["--cases", "clip,clip"], "argument --cases: twice the same, got 'clip,clip'"),
        (["--implementations", "mine"], "argument --implementations: choose from "),
        (["--implementations", "pdist", "--cases", "clip"], "none of pdist computes 'clip'"),
        (["--dtypes", "int8"], "argument --dtypes: choose from float64, "),
        (["--modes", "sideways"], "argument --modes: choose from forward, backward, both, got 'sideways'"),
        (["--executions", "fast"], "argument --executions: choose from eager, compile, cudagraph, got 'fast'"),
        (["--sizes", "1"], "argument --sizes: must be at least 2, got 1"),
        (["--dims", "0"], "argument --dims: must be at least 1, got 0"),
        (["--dims", "8,8"], "argument --dims: twice the same"),
        (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        (["--seconds", "0"], "argument --seconds: must be positive, got 0"),
        (["--longest", "nan"], "argument --longest: must be positive, got nan"),
        (["--device", "abacus"], "argument --device: must be cpu, cuda or cuda:<index>, got 'abacus'"),
        (["--device", "cuda:99"], "argument --device: PyTorch finds "),
        (["--device", "mps"], "argument --device: must be cpu, cuda or cuda:<index>, got 'mps'"),
        (["--device", ""], "argument --device: must be cpu, cuda or cuda:<index>, got ''"),
        (["--device", "cuda:x", "--plan"], "argument --device: must be cpu, cuda or cuda:<index>, got 'cuda:x'"),
        (["--device", "cuda:x"], "argument --device: "),
        (["--load", "missing.py"], "argument --load: cannot read 'missing.py'"),
        (["--json", "no/such/folder/a.json"], "argument --json: no/such/folder is no folder"),
        (["--csv", "."], "argument --csv: is a folder, got '.'"),
        (["--jsonl", "."], "argument --jsonl: is a folder, got '.'"),
        (["--json", "a", "--csv", "a"], "argument --csv: another result goes there too, got 'a'"),
        (["--baseline", "missing.json"], "cannot read 'missing.json': No such file"),
    ],
)
def test_bad_arguments_are_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench"] if "--device" in options else ["bench", "--device", "cpu"]
    assert main([*base, *options]) == 2
    assert message in (printed := capsys.readouterr().err)
    assert printed.startswith("hyperkern bench: error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "many"], "argument --sizes: must be integers with commas between them, got 'many'"),
        (["--fail-over", "much"], "argument --fail-over: must be a percentage such as 5%, got 'much'"),
        (["--fail-over", "-1%"], "argument --fail-over: "),
        (["compare", "a"], "the following arguments are required: B"),
    ],
)
def test_arguments_of_the_wrong_type(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", *options])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def broken(of_row: dict[str, object] | None = None, **changes: object) -> str:
    found = json.loads(as_json(result([row("a", [1.0])]))) | changes
    if of_row is not None:
        found["rows"][0] |= of_row
    return json.dumps(found)


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON"),
        pytest.param("[" * 100_000, "is no JSON", id="deep"),
        ("[1, 2]", "base.json' is no result of hyperkern bench: Expected `object`, got `array` ([1, 2])"),
        ('{"rows": []}', "Object missing required field `schema` ({'rows': []})"),
        (broken(schema=2), "schema: Invalid enum value 2 (2)"),
        (broken(machine={}), "machine: Object missing required field `device` ({})"),
        (broken(rows=None), "rows: Expected `array`, got `null` (None)"),
        (broken(rows=[{"case": "a"}]), "rows[0]: Object missing required field `implementation` ({'case': 'a'})"),
        (broken(rows=[3]), "rows[0]: Expected `object`, got `int` (3)"),
        (broken({"status": "fine"}), "rows[0].status: Invalid enum value 'fine' ('fine')"),
        (broken({"n": True}), "rows[0].n: Expected `int`, got `bool` (True)"),
        (broken({"samples_ms": [0.0]}), "rows[0]: samples_ms must be above 0, got (0.0,)"),
        (broken({"samples_ms": []}), "rows[0]: samples_ms must be there where status is ok, got ()"),
        (
            broken(limits={"float32": {"flops": 1, "bytes": "x"}}),
            "limits[...].bytes: Expected `float`, got `str` ({",
        ),
        (broken(limits={"float32": {"flops": 0, "bytes": 1}}), "limits[...]: flops must be above 0, got 0.0"),
        (broken(), "the runs are of different machines: device 'same', 'cpu'"),
    ],
)
def test_a_bad_baseline_is_refused_before_anything_is_measured(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base.json", tmp_path / "out.json"
    base.write_text(text)
    out.write_text("old")
    assert main(["bench", "--device", "cpu", "--baseline", str(base), "--json", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert (base.read_text(), out.read_text()) == (text, "old")


@pytest.mark.parametrize(
    ("text", "message"), [("import nothing_of_that_name", "ModuleNotFoundError"), ("exit(3)", "SystemExit: 3")]
)
def test_a_file_that_fails_is_named(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", *TINY, "--load", written(tmp_path / "mine.py", text)]) == 2
    assert f"mine.py' fails: {message}" in capsys.readouterr().err


def test_an_interrupted_run_leaves_the_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_samples", interrupt)
    out = tmp_path / "out.json"
    out.write_text("old")
    assert main(["bench", *TINY, "--json", str(out), "--csv", str(tmp_path / "new.csv")]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert out.read_text() == "old"
    assert "interrupted, nothing written" in capsys.readouterr().err


def test_rows_are_in_the_file_as_soon_as_they_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines_file, whole = tmp_path / "rows.jsonl", tmp_path / "whole.json"
    lines_file.write_text("{}\n")
    two = ["--cases", "uniformity,clip", "--implementations", "hyperkern"]
    monkeypatch.setenv("HYPERKERN_BACKEND", "reference")
    assert main(["bench", *TINY, *two, "--jsonl", str(lines_file), "--json", str(whole)]) == 0
    before, *found = map(json.loads, lines_file.read_text(encoding="utf-8").splitlines())
    assert before == {}  # of the run before
    assert found == [{**row, "backend": "reference"} for row in json.loads(whole.read_text(encoding="utf-8"))["rows"]]
    assert all(row["vs_baseline"] > 0 for row in found)
    # What is interrupted in its second group has the rows of the first.
    samples, calls = runs._samples, []

    def interrupt(*args: object) -> object:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return samples(*args)

    monkeypatch.setattr(runs, "_samples", interrupt)
    monkeypatch.delenv("HYPERKERN_BACKEND")
    lines_file.unlink()
    assert main(["bench", *TINY, *two, "--jsonl", str(lines_file)]) == 130
    assert "interrupted, nothing written but the rows measured so far" in capsys.readouterr().err
    rows = [json.loads(line) for line in lines_file.read_text(encoding="utf-8").splitlines()]
    assert [(r["case"], r["implementation"], r["backend"]) for r in rows] == [
        ("uniformity", "dense", None),
        ("uniformity", "hyperkern", None),
    ]


def test_the_page_is_drawn_from_the_result(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["bench", *TINY, "--html", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") or page.startswith("<!doctype html>")
    assert "uniformity" in page
    assert "<svg" in page


def test_a_plan_of_a_gpu_measures_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runs, "run", None)
    assert main(["bench", "--device", "cuda", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert "of one H200, which is not here" in printed
    assert "not installed" not in printed


def test_the_plan_of_the_gpu_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    matrix = DEFAULTS["cuda"]
    load_file(PEERS)
    found = plan(matrix)
    assert len(found.planned) == sum(map(len, groups(matrix)))
    assert found.seconds == pytest.approx(sum(p.seconds for p in found.planned), abs=120)
    assert found.seconds < 8 * 60
    # The floors of docs/performance.md, counted as the least arithmetic.
    for case, d, floor in (("uniformity", 128, 2.09), ("uniformity", 512, 8.35), ("clip", 256, 8.35)):
        points = [p for p in found.planned if p.point.setup[:4] == (case, "bfloat16", 65536, d)]
        assert points[0].floor_ms == pytest.approx(floor, rel=0.01)
    assert all((p.seconds == 0) == (p.refusal is not None) for p in found.planned)
    assert lines(found, matrix)[-1].endswith("minutes on this plan")
    assert {name for _, name in IMPLEMENTATIONS} >= {"liger", "cut-cross-entropy", "inf-cl", "lightly", "open_clip"}


def test_a_call_that_would_take_too_long_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--cases", "uniformity", "--sizes", "100000", "--dims", "4096", "--longest", "0.5", "--plan"]
    assert main(["bench", "--device", "cpu", *options]) == 0
    printed = capsys.readouterr().out
    assert "more than the 0.5 s of --longest" in printed
    assert "\n0 rows" in printed


def test_python_m_benchmarks_is_the_same_command() -> None:
    command = [sys.executable, "-m", "benchmarks", "--help"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: hyperkern bench")


@pytest.mark.parametrize("columns", ["60", "250"])
def test_no_figure_is_cut_off_on_a_terminal(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(HEADS, [["uniformity", "4096", "128", *["123.456789"] * (len(HEADS) - 3)]], WORDS)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert printed.count("123.456789") == len(HEADS) - 3


@pytest.mark.parametrize(("load", "warned"), [(0.0, False), (1000.0, True)])
def test_a_busy_machine_is_warned_of(
    load: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load), raising=False)
    assert main(["bench", *TINY, "--cases", "uniformity", "--implementations", "dense"]) == 0
    assert ("warning: the machine is busy (load 1000.0 on " in capsys.readouterr().err) is warned


def test_every_case_counts_what_it_says() -> None:
    for case in CASES.values():
        forward, both = (case.flops(64, 16, mode) for mode in ("forward", "both"))
        assert 0 < forward < both
        assert case.baseline in {name for of, name in IMPLEMENTATIONS if of == case.name}


def test_what_fails_while_it_is_timed_is_shown_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = runs.clock.sample

    def sometimes(runner: object, execution: str, device: str) -> list[float]:
        if len(taken) == 2:
            raise RuntimeError("no memory left\nand more")
        taken.append(sample(runner, execution, device))
        return taken[-1]

    taken: list[list[float]] = []
    monkeypatch.setattr(runs.clock, "sample", sometimes)
    out = tmp_path / "a.json"
    options = ["--cases", "uniformity", "--implementations", "hyperkern", "--json", str(out)]
    assert main(["bench", *TINY, *options]) == 0
    rows = read(out).rows
    assert {r.status for r in rows} == {"failed"}
    assert {r.reason for r in rows} == {"RuntimeError: no memory left"}
    assert all(r.median_ms is None and r.samples_ms == () for r in rows)


def test_a_formula_of_ones_own_that_fails_is_shown_as_failed(tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    own = written(tmp_path / "own.py", OWN.replace("x.square()", "x.squire()"))
    assert main(["bench", *TINY, "--load", own, "--cases", "norm,uniformity", "--json", str(out)]) == 0
    rows = [r for r in read(out).rows if r.case == "norm"]
    assert {r.status for r in rows} == {"failed"}
    assert all("AttributeError" in r.reason for r in rows)
