"""The scripts of questions on a CPU: what they make of times, what their files keep, and that they run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import DEVICE, needs_cuda_kernels, needs_triton

import benchmarks
from benchmarks import busy, estimate, host_time, ranks, repeats
from benchmarks.measured import RESULTS, Measurements
from hyperkern import textbook
from hyperkern.bench import machine
from hyperkern.bench.registry import IMPLEMENTATIONS, BenchError, implementation
from hyperkern.bench.result import read_as

pytestmark = pytest.mark.usefixtures("registry_as_it_was", "small_rates")


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)


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
        rows = busy.summarised(found, 512, 64)
        assert [(r.implementation, r.processes, r.median_slowdown, r.fastest_slowdown) for r in rows] == [
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
    rows = {row.implementation: row for row in read_as(out, Measurements).rows}
    assert rows.keys() == {"again, recorded", "again, committed", "anew, recorded", "anew, committed"}
    assert all(0 < row.median_ms < 10 and len(row.samples_ms) == 2 for row in rows.values())


def test_an_estimate_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "ROWS", 300)
    monkeypatch.setattr(estimate, "COLUMNS", 32)
    found = estimate.measure("uniform", 4)
    assert found.draws == 4
    assert 0 < found.deviation < 0.1
    assert estimate.lines([found])[0][0] == "uniform"


def test_losses_over_ranks_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "ranks.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m"]
    command += ["benchmarks.ranks", "--rows", "64", "--dim", "8", "--rounds", "2", "--json", str(out)]
    subprocess.run(command, cwd=Path(benchmarks.__file__).parents[1], check=True, capture_output=True)
    found = read_as(out, ranks.Ranked)
    assert found.ranks == 2
    assert [(row.case, row.implementation) for row in found.rows] == [
        (case, name) for case in ranks.LOSSES for name in ("one process", *ranks.TRANSPORTS)
    ]
    assert all(len(row.samples_ms) == 2 and row.peak_bytes is not None for row in found.rows)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("busy_cpu", busy.OnCores),
        ("choice_cpu", Measurements),
        ("estimate", estimate.Estimates),
        ("host_time_cpu", host_time.Calls),
        ("host_time_triton_cpu", host_time.Calls),
        ("ranks_cpu", ranks.Ranked),
        ("repeats_cpu", repeats.Repeats),
    ],
)
def test_committed_files_are_what_scripts_write(name: str, kind: type) -> None:
    found = read_as(RESULTS / f"{name}.json", kind)
    assert found.machine.date
