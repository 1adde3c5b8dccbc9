"""The scripts of four questions on a CPU: what they make of times, what their files keep, and that they run."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from bench_runs import result, row
from conftest import DEVICE, needs_cuda_kernels, needs_triton

import benchmarks
from benchmarks import busy, host_time, measure, short_path
from hyperkern import textbook
from hyperkern.bench import machine
from hyperkern.bench.model import check
from hyperkern.bench.registry import IMPLEMENTATIONS, BenchError, implementation
from hyperkern.bench.result import read

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")
QUICK = ["--implementations", "hyperkern", "dense", "--rounds", "2", "--seconds", "100", "--no-memory"]


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


def run_of(date: str, *rows: dict) -> dict:
    found = result(list(rows), date=date)
    found["limits"]["float32"]["best_flops"] = 2e11
    return found


def trio(n: int, own: list[float], dense: list[float], **changes: object) -> list[dict]:
    return [row("dense", dense, n=n, **changes), row("hyperkern", own, n=n, **changes)]


def test_spread() -> None:
    found = measure.spread([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == {"median_ms": 3.0, "iqr_ms": 2.0, "fastest_ms": 1.0}
    assert measure.in_words(found) == "3 ± 1 (1)"


class TestShortPath:
    def test_ratios_are_those_of_the_medians_and_the_share_that_of_the_fastest(self) -> None:
        dense, own = short_path.with_summaries(run_of("today", *trio(512, [20.0, 10.0, 30.0], [50.0, 60.0, 40.0])))
        assert (dense["over_hyperkern"], own["over_hyperkern"]) == (2.5, 1.0)
        assert (own["fastest_ms"], own["iqr_ms"]) == (10.0, 10.0)
        assert own["of_product"] == pytest.approx(1e9 / 0.010 / 2e11)
        assert own["run"]["date"] == "today"
        assert own["run"]["product"]["best_flops"] == 2e11

    def test_a_run_replaces_its_own_rows_alone(self) -> None:
        first = short_path.merged(None, run_of("first", *trio(512, [2.0], [4.0]), *trio(1024, [5.0], [6.0])))
        both = short_path.merged(first, run_of("second", *trio(512, [1.0], [8.0]), *trio(128, [1.0], [1.0])))
        found = [(r["n"], r["implementation"], r["median_ms"], r["run"]["date"]) for r in both["rows"]]
        assert found == [
            (128, "dense", 1.0, "second"),
            (128, "hyperkern", 1.0, "second"),
            (512, "dense", 8.0, "second"),
            (512, "hyperkern", 1.0, "second"),
            (1024, "dense", 6.0, "first"),
            (1024, "hyperkern", 5.0, "first"),
        ]
        assert both["machine"]["date"] == "second"

    def test_what_is_left_out_replaces_nothing_and_what_fails_does(self) -> None:
        first = short_path.merged(None, run_of("first", *trio(512, [2.0], [4.0])))
        skipped = [row(name, [], status="skipped", median_ms=None) for name in ("dense", "compiled")]
        second = short_path.merged(first, run_of("second", *skipped))
        assert [(r["implementation"], r["status"]) for r in second["rows"]] == [
            ("dense", "ok"),
            ("hyperkern", "ok"),
            ("compiled", "skipped"),
        ]
        third = short_path.merged(second, run_of("third", row("hyperkern", [], status="failed", median_ms=None)))
        assert third["rows"][1]["status"] == "failed"
        assert short_path.lines(third["rows"])[0][3:5] == ["FAILED", "4 ± 0 (4)"]

    def test_it_measures_what_is_asked_for_into_one_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out.json"
        options = [*QUICK, "--dims", "8", "--json", str(out)]
        assert short_path.main([*options, "--cases", "sup_con", "clip_learned", "--sizes", "32", "40"]) == 0
        assert short_path.main([*options, "--cases", "uniformity", "--sizes", "40"]) == 0
        found = read(out)
        places = [(r["case"], r["n"]) for r in found["rows"] if r["implementation"] == "hyperkern"]
        of_old = [("sup_con", 32), ("sup_con", 40), ("clip_learned", 32), ("clip_learned", 40)]
        assert places == [("uniformity", 40), *of_old]
        assert {r["status"] for r in found["rows"]} == {"ok"}
        assert all(len(r["samples_ms"]) == 2 and r["error"] < 1e-4 for r in found["rows"])
        assert check(found).cases == ["uniformity", "sup_con", "clip_learned"]  # the page takes it
        printed = capsys.readouterr().out
        assert "of product" in printed
        assert "left out" not in printed

    def test_no_case_is_begun_when_time_is_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        clock = iter([0.0, 0.0, 119.0, 121.0])  # the start, and before each case
        monkeypatch.setattr(short_path, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
        out = tmp_path / "out.json"
        options = [*QUICK, "--dims", "8", "--sizes", "32", "--json", str(out), "--minutes", "2"]
        assert short_path.main([*options, "--cases", "dcl", "siglip", "clip", "info_nce"]) == 0
        assert {r["case"] for r in read(out)["rows"]} == {"dcl", "siglip"}
        assert "left out after 2 minutes: --cases clip info_nce\n" in capsys.readouterr().out

    def test_what_is_wrong_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        del IMPLEMENTATIONS["clip", "hyperkern"]
        implementation("clip", "hyperkern", package="hyperkern")(lambda: lambda x, y: 1.01 * textbook.dense_clip(x, y))
        assert short_path.main([*QUICK, "--dims", "8", "--sizes", "32", "--cases", "clip"]) == 1
        assert "failed: clip, N 32, D 8, hyperkern: wrong: relative error 0.01" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--cases", "clap"], "argument --cases: choose from uniformity, "),
            (["--sizes", "1"], "argument --sizes: must be at least 2, got 1"),
            (["--json", "no/such/folder.json"], "argument --json: no/such is no folder"),
        ],
    )
    def test_bad_arguments_are_named(
        self, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as error:
            short_path.main(options)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


class TestHostTime:
    def test_functions_are_counted(self) -> None:
        def inner() -> None:
            len([])  # no Python function

        def outer() -> None:
            inner()
            inner()

        assert [host_time.functions_entered(call) for call in (inner, outer, lambda: outer())] == [0, 2, 3]

    @pytest.mark.parametrize("case", ["uniformity", "clip"])
    def test_backward_is_counted_and_always_the_same(self, case: str) -> None:
        counts = {host_time.functions_of(case, "hyperkern", 32, 16) for _ in range(3)}
        assert len(counts) == 1
        loss = IMPLEMENTATIONS[case, "hyperkern"].loss()
        inputs = host_time.CASES[case].draw(32, 16, "float32", "cpu")
        assert counts.pop() > host_time.functions_entered(lambda: loss(*inputs)) > 10

    def test_it_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out.json"
        options = ["--size", "8", "--dim", "4", "--rounds", "2", "--json", str(out)]
        host_time.main(["--cases", "uniformity", "sup_con", *options])
        rows = json.loads(out.read_text())["rows"]
        assert [(r["case"], r["implementation"]) for r in rows] == [
            (case, name) for case in ("uniformity", "sup_con") for name in ("dense", "hyperkern")
        ]
        assert all(r["functions"] > 0 and 0 < r["fastest_ms"] <= r["median_ms"] for r in rows)
        assert capsys.readouterr().out.count("\nuniformity ") == 1

    @pytest.mark.parametrize(
        "backend", [pytest.param("triton", marks=needs_triton), pytest.param("cuda", marks=needs_cuda_kernels)]
    )
    def test_kernels_that_are_not_launched(self, backend: str, tmp_path: Path) -> None:
        if (DEVICE, backend) == ("cuda", "cuda"):
            pytest.skip("there is no emulator beside a GPU")
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        options = ["--cases", "uniformity", "clip", "--size", "8", "--dim", "8", "--rounds", "2", "--backend", backend]
        command = [sys.executable, "-m", "benchmarks.host_time", *options, "--json", str(tmp_path / "out.json")]
        result = subprocess.run(
            command, env=environment, cwd=Path(benchmarks.__file__).parents[1], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        found = json.loads((tmp_path / "out.json").read_text())
        assert found["backend"] == backend
        own = [row["functions"] for row in found["rows"] if row["implementation"] == "hyperkern"]
        plain = [host_time.functions_of(case, "hyperkern", 8, 8) for case in ("uniformity", "clip")]
        assert len(found["rows"]) == 4
        assert own != plain  # it was not the blocked PyTorch
        assert "which are not launched" in result.stdout

    @needs_triton
    def test_the_interpreter_launches_what_it_gets(self, capsys: pytest.CaptureFixture[str]) -> None:
        if DEVICE == "cuda":
            pytest.skip("Triton compiles here")
        with pytest.raises(SystemExit):
            host_time.main(["--backend", "triton"])
        assert "without TRITON_INTERPRET" in capsys.readouterr().err

    def test_what_is_wrong_gets_no_figure(self) -> None:
        del IMPLEMENTATIONS["clip", "hyperkern"]
        implementation("clip", "hyperkern", package="hyperkern")(lambda: lambda x, y: 1.01 * textbook.dense_clip(x, y))
        with pytest.raises(BenchError, match="clip, hyperkern: wrong"):
            host_time.main(["--cases", "clip", "--size", "8", "--dim", "4", "--rounds", "1"])


class TestBusy:
    def test_busy_processes_work_until_the_end(self) -> None:
        with busy.beside(2) as processes:
            assert [process.poll() for process in processes] == [None, None]
        assert all(process.returncode is not None for process in processes)

    def test_they_end_with_their_parent(self) -> None:
        # Of another parent than the one that is named.
        command = [busy.sys.executable, "-S", "-c", busy.BURN, str(os.getpid() + 1)]
        assert busy.subprocess.run(command, capture_output=True, timeout=60).stdout == b"begun\n"

    def test_slowdowns_are_those_of_each_alone(self) -> None:
        found = {("a", 0): [2.0, 4.0, 3.0], ("a", 2): [9.0, 6.0, 12.0], ("b", 0): [1.0], ("b", 2): [5.0]}
        rows = busy.summarised(found)
        assert [(r["implementation"], r["processes"], r["median_slowdown"], r["fastest_slowdown"]) for r in rows] == [
            ("a", 0, 1.0, 1.0),
            ("a", 2, 3.0, 3.0),
            ("b", 0, 1.0, 1.0),
            ("b", 2, 5.0, 5.0),
        ]

    def test_it_runs(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "out.json"
        options = ["--size", "64", "--dim", "8", "--cycles", "2", "--rounds", "2", "--json", str(out)]
        busy.main(["--processes", "1", *options])
        found = json.loads(out.read_text())
        assert [(r["implementation"], r["processes"]) for r in found["rows"]] == [
            (name, count) for name in ("hyperkern", "dense", "matrix product") for count in (0, 1)
        ]
        assert all(len(r["samples_ms"]) == 4 for r in found["rows"])
        assert "slowdown" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--processes", "-1"], "argument --processes: must be at least 0, got -1"),
            (["--rounds", "0"], "argument --rounds: must be at least 1, got 0"),
        ],
    )
    def test_bad_arguments_are_named(
        self, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as error:
            busy.main(options)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


def test_the_choice_of_a_backend_is_measured(tmp_path: Path) -> None:
    # In a process of its own: it puts another backend in front.
    out = tmp_path / "choice.json"
    command = [sys.executable, "-m", "benchmarks.choice", "--rounds", "2", "--json", str(out)]
    subprocess.run(command, cwd=Path(benchmarks.__file__).parents[1], check=True, capture_output=True)
    rows = {row["choice"]: row for row in json.loads(out.read_text())["rows"]}
    assert {"again, recorded", "again, committed", "anew, recorded", "anew, committed"} <= rows.keys()
    assert all(row["median_us"] > 0 for name, row in rows.items() if "costs" not in name)
    assert all(len(row["samples_us"]) == 2 for name, row in rows.items() if "costs" not in name)
