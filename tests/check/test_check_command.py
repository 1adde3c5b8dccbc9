"""``hyperkern check``: everything, on a CPU by the interpreter and the emulator."""

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import fake_backends
import interpreter
import pytest
import torch
from conftest import usable

from hyperkern import backends
from hyperkern.check import first_use, process, records
from hyperkern.check.process import Outcome, Row
from hyperkern.check.scope import DIMS, PRODUCTS, Scope
from hyperkern.cli import main
from hyperkern.correctness import everything, findings
from hyperkern.correctness.everything import Job, Result

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda", 0)
pytest_plugins = ["check_fixtures"]
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_a_gpu
@pytest.mark.parametrize("options", [[], ["--quick"], ["--device", "cuda", "--backend", "triton"]])
def test_without_a_gpu_it_says_so(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *options]) == 2
    assert "no CUDA GPU was found by PyTorch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "cpu"], "argument --backend: invalid choice: 'cpu'"),
        (["--products", "float64"], "argument --products: choose from bfloat16, float16, tf32, float32, got 'float64'"),
        (["--products", ","], "argument --products: choose from"),
        (["--dims", "64,x"], "argument --dims: must be integers between 1 and 16384, with commas between, got '64,x'"),
        (["--dims", "0"], "argument --dims: must be integers between 1 and 16384"),
        (["--jobs", "0", "--backend", "cuda"], "argument --jobs: must be at least 1, got 0"),
        (["--device", "mps", "--backend", "cuda"], "argument --device: must be cpu, cuda or cuda:<index>, got 'mps'"),
        (["--device", "?", "--backend", "cuda"], "argument --device: must be cpu, cuda or cuda:<index>, got '?'"),
        (["--json", "nowhere/x.json", "--backend", "cuda"], "argument --json: nowhere is no folder"),
        (["--jsonl", "nowhere/x", "--backend", "cuda"], "argument --jsonl: nowhere is no folder"),
    ],
)
def test_an_option_that_cannot_work(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main(["check", *options])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert said in capsys.readouterr().err


def test_a_backend_that_is_not_usable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "unusable", lambda name, device: ["the extension is not built"])
    assert main(["check", "--backend", "cuda", "--device", "cpu"]) == 2
    assert "hyperkern check: cuda is left out: the extension is not built" in capsys.readouterr().err


def test_a_gpu_is_asked_for_everything() -> None:
    jobs = list(everything.jobs_of(("cuda", "triton"), CUDA))
    assert [job.scope for job in jobs] == [Scope(kind, dims) for kind in PRODUCTS for dims in (*DIMS, 0)] * 2
    assert all(job.scope.covers(dim) for job in jobs for dim in job.dims)
    assert all({dim % 16 == 0 for dim in job.dims} == {True, False} for job in jobs)
    some = list(everything.jobs_of(("cuda",), CUDA, products=("tf32",), dims=(768, 60, 1024)))
    assert some == [Job("cuda", CUDA, Scope("tf32", 64), (60,)), Job("cuda", CUDA, Scope("tf32", 0), (768, 1024))]


def test_what_is_kept_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine = records.Machine("cuda", "NVIDIA H200", "9.0", "580.1", "2.14", "3.8", "0")
    monkeypatch.setattr(records, "machine", lambda backend, device: machine)
    monkeypatch.setattr(first_use, "_found", {})
    scope = Scope("bfloat16", 128)
    for dims, status, kept in (
        ((128,), "passed", None),
        ((128, 100), "not checked", None),
        ((128,), "failed", "failed"),
        ((128, 100), "passed", "passed"),
    ):
        everything._keep(Result(Job("cuda", CUDA, scope, dims), Outcome(status, "", [], 1.0)))
        found = records.read(machine)
        assert (found[scope.key].status if found else None) == kept
    on_cpu = Job("cuda", torch.device("cpu"), Scope("tf32", 64), (64, 50))
    everything._keep(Result(on_cpu, Outcome("passed", "", [], 1.0)))
    assert records.read(machine).keys() == {scope.key}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One job, of the fake."""
    monkeypatch.setattr(everything, "_EMULATED", everything._EMULATED[:1])


@pytest.mark.parametrize(
    ("behaviour", "status", "said"),
    [
        ("right", 0, ""),
        ("wrong in one element", 1, "fake, bfloat16 products with D up to 64: failed: row_lse"),
        ("aborts", 1, "fake, bfloat16 products with D up to 64: crashed: its process ended with signal SIGABRT"),
        ("path", 1, "failed: pair_grad"),
    ],
)
def test_its_status_and_report(
    behaviour: str,
    status: int,
    said: str,
    fake: Callable,
    small: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake(behaviour)
    files = {option: tmp_path / f"report.{option}" for option in ("json", "jsonl")}
    written = [text for option, path in files.items() for text in (f"--{option}", str(path))]
    assert main(["check", "--backend", "fake", "--device", "cpu", *written]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert ("all right" in out) == (status == 0)
    content = json.loads(files["json"].read_text())
    (check,) = content["checks"]
    assert check["status"] in ("passed", "failed", "crashed")
    lines = [json.loads(line) for line in files["jsonl"].read_text().splitlines()]
    assert lines == check["cases"]
    assert len(lines) > 3
    if behaviour == "path":
        assert "secret.cu:7" in files["json"].read_text()
    for text in (files["json"].read_text(), files["jsonl"].read_text()):
        assert not [part for part in ("alice", str(tmp_path), str(ROOT), str(Path.home()) + "/") if part in text]
    assert first_use._verdicts == {}  # on a CPU nothing is recorded
    assert records.read(records.machine("fake", torch.device("cpu"))) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/home/alice/a/x.py:3: no", ".../x.py:3: no"),
        ("cannot open '/home/alice/.cache/kernels.so'", "cannot open '.../kernels.so'"),
        (r"in C:\Users\alice\x.py", "in .../x.py"),
        ("gcc -I/home/alice/venv/include -L/home/alice/lib -O3", "gcc -I.../include -L.../lib -O3"),
        ("file:///home/alice/x, mnt//home/alice/x", None),
        ("~alice/x/y.py", ".../y.py"),
        ("at '/home/alice'", "at '...'"),
        ("/home/o(brien/x.py", ".../x.py"),
        (f"{Path.home()}/Alice Smith.cu", None),
        ("19 × 16, 3/4 of it, and/or 1.5e-3 m/s", "19 × 16, 3/4 of it, and/or 1.5e-3 m/s"),
    ],
)
def test_folders_are_no_part_of_a_report(text: str, said: str | None) -> None:
    found = findings.without_folders(text)
    assert not [name for name in ("alice", "brien", f"{Path.home()}/") if name in found]
    assert said is None or found == said


def test_the_table_shows_the_worst_of_each_kind() -> None:
    def row(what: str, error: float | None, status: str = "passed") -> Row:
        return Row(what, "19 × 16", status, error, 1.0, 0.5, "" if status == "passed" else "wrong")

    def result(*rows: Row) -> Result:
        job = Job("cuda", CUDA, Scope("tf32", 64), (64,))
        return Result(job, Outcome("passed", "", list(rows), 1.0))

    table = findings.cells(
        [
            result(row("row_lse, two sides", 0.25), row("row_lse, symmetric", 0.5), row("clip, 10 repeats", 0.0)),
            result(row("row_lse, two sides", None, "failed"), row("clip, many rows", 0.75)),
        ]
    )
    assert [line[1:4] for line in table] == [
        ["row_lse", "3: 19 × 16", "tf32"],
        ["clip, repeats", "19 × 16", "tf32"],
        ["clip, many rows", "19 × 16", "tf32"],
    ]
    assert [line[6] for line in table] == ["", "0 %", "75 %"]
    assert [line[8] for line in table] == ["FAILED 1", "ok", "ok"]


def test_an_interrupt_ends_all_that_run(fake: Callable, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("hangs")
    jobs = list(everything.jobs_of(("fake",), torch.device("cpu"))) * 4
    begun, started, start = threading.Event(), [], process._start

    def noted(*given: object) -> subprocess.Popen:
        started.append(start(*given))
        return started[-1]

    monkeypatch.setattr(process, "_start", noted)

    def interrupted(job: Job, row: Row) -> None:
        if not begun.is_set():
            begun.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(everything.check(jobs, "quick", 2, interrupted))
    assert len(started) < 4
    assert all(child.returncode == -9 for child in started)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param(name, marks=usable(name)) for name in ("cuda", "triton")])
def test_the_kernels_without_a_gpu(backend: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([interpreter.site(tmp_path / "site"), str(ROOT)])}
    written = tmp_path / "report.json"
    options = ["--backend", backend, "--device", "cpu", "--json", str(written)]
    run = functools.partial(subprocess.run, capture_output=True, text=True, env=environment)
    result = run([sys.executable, "-m", "hyperkern", "check", *options])
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 kinds on a CPU, which says nothing of a GPU: all right" in result.stdout
    content = json.loads(written.read_text())
    assert [check["scope"] for check in content["checks"]] == ["bfloat16-64", "float16-long", "tf32-128", "float32-256"]
    of_losses = {"uniformity", "align_uniform", "info_nce", "nt_xent", "dcl", "dclw", "sup_con", "clip", "siglip"}
    for check in content["checks"]:
        assert check["status"] == "passed"
        what = {case["what"].split(",")[0] for case in check["cases"]}
        assert what >= of_losses | {"rows", "row_lse", "pair_grad", "energy exp", "energy softplus"}
        assert all(case["error"] <= case["allowed"] for case in check["cases"])
        assert any(case["error"] > 0 for case in check["cases"])
    assert not [part for part in (str(ROOT), str(Path.home()) + "/") if part in written.read_text()]


def test_a_machine_without_the_extension_and_triton_checks_plain_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--backend", "reference", "--device", "cpu", "--quick"]) == 0
    assert "1 kind on a CPU, which says nothing of a GPU: all right" in capsys.readouterr().out
    assert backends.select("reference", backends.Problem("loss", torch.device("cpu"), torch.float32, 8))
    assert fake_backends.NAME not in backends.PRIORITY
