"""The first use of a backend: what a check finds, whom it is told, and where it is kept."""

import functools
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_backends
import pytest
import torch
from torch import Tensor

import hyperkern
from hyperkern import backends
from hyperkern.autograd import rows, settle_backend
from hyperkern.backends import Problem
from hyperkern.check import first_use, process, records
from hyperkern.check.process import Outcome, Row
from hyperkern.check.scope import Scope

CPU = torch.device("cpu")
SCOPE = Scope("bfloat16", 64)
PROBLEM = Problem("loss", CPU, torch.bfloat16, 16, None, "bfloat16")
COMMAND = "`hyperkern check --backend fake` checks again and says more"
_MACHINE = records.machine  # which tests replace


def forget() -> None:
    """What a new process does not know."""
    first_use._verdicts.clear()
    first_use._usable.clear()
    first_use._unchecked.clear()
    first_use._found.clear()
    first_use._warned.clear()
    rows._check_primitives.cache_clear()
    _MACHINE.cache_clear()
    backends._imported.cache_clear()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Puts a fake in front of all backends, here and in the processes that check it."""
    forget()

    def put(behaviour: str) -> Any:
        for name, value in fake_backends.environment(behaviour, tmp_path).items():
            monkeypatch.setenv(name, value)
        module = fake_backends.make(behaviour)
        monkeypatch.setitem(sys.modules, "hyperkern.backends.fake", module)
        monkeypatch.setattr(backends, "PRIORITY", ("fake", "reference"))
        monkeypatch.setattr(backends, "chosen", functools.lru_cache(backends.chosen.__wrapped__))
        return module

    yield put
    forget()


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[process.Request]:
    """No process is started: each check passes, and is noted."""
    asked: list[process.Request] = []

    def run(request: process.Request, limit: float, report: object = None) -> Outcome:
        asked.append(request)
        return Outcome("passed", "", [Row("clip", "19 × 16", "passed", 0.1, 0.4, 1.0, "")], 1.0)

    monkeypatch.setattr(process, "run", run)
    return asked


def x() -> Tensor:
    return torch.randn(9, 16, dtype=torch.bfloat16)


ENDS = {
    "right": ("passed", ""),
    "noisy": ("passed", ""),
    "wrong in one element": (
        "failed",
        r"they failed their check \(just now\): row_lse.*result 0 at \(1, 18\)",
    ),
    "nan in the last row": ("failed", r"uniformity \(19 × 16\): result 1 at \(18, 0\) is nan, expected"),
    "never writes a row": ("failed", r"uniformity \(19 × 16\): result 1 at \(18, 0\) is nan, expected"),
    "not deterministic": ("failed", r"2 repeats \(70 × 16\): repeat 1 has other bits, by up to"),
    "raises": ("failed", r"pair_grad.*RuntimeError: CUDA error: an illegal memory access was encountered.* more"),
    "aborts": ("crashed", r"their check crashed.*signal SIGABRT after pair_grad"),
    "killed": ("no memory", r"there was no memory for their check.*was killed"),
    "hangs": ("timed out", r"their check took too long.*had not ended after"),
    "no memory": ("no memory", r"there was no memory for their check.*Tried to allocate 2.00 GiB"),
    "exits": ("crashed", r"its process ended with status 0 after pair_grad"),
    "terminated": (None, r"not checked: its process ended with signal SIGTERM after row_lse"),
    "a full disk": (None, r"not checked: OSError: \[Errno 28\] No space left on device"),
    "cannot be imported": (None, r"not checked: its process ended with status 1, before the first case.*no such file"),
    "ignores ids": ("failed", r"row_lse, two sides, bounded, without same id"),
    "ignores offsets": ("failed", r"row_lse, two sides, running maximum, without self, weighted, shards"),
    "wrong on one side": ("failed", r"pair_grad, two sides"),
    "wrong rows alone": ("failed", r"row_lse, "),
    "dead rows": ("failed", r"rows, .*result 3 at .* is nan, expected 0"),
    "half a percent off": ("failed", r"uniformity, exact rows \(19 × 16\): result 0"),
    "exclusive": (None, r"not checked: the GPU takes one process at a time \(exclusive-process mode\)"),
}


@pytest.mark.parametrize("behaviour", ENDS)
def test_how_a_first_use_ends(
    behaviour: str, fake: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    status, reason = ENDS[behaviour]
    module, features = fake(behaviour), x()
    if behaviour == "hangs":
        monkeypatch.setattr(first_use, "LIMIT", 12.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            value = hyperkern.uniformity(features)
    assert value == hyperkern.uniformity(features, backend="reference")
    assert module.calls == (["loss"] * 3 if status == "passed" else [])
    assert [record.message for record in caplog.records] == [
        "checking the fake kernels on cpu for bfloat16 products with D up to 64, once: up to "
        f"{first_use.LIMIT:.0f} s (HYPERKERN_CHECK=off takes plain PyTorch instead)"
    ]
    assert fake_backends.checks(tmp_path) == 1
    told = [str(warning.message) for warning in caught]
    if status == "passed":
        assert told == []
    else:
        assert len(told) == 1
        scope = "" if status is None else " for bfloat16 products with D up to 64"
        assert told[0].startswith(f"the fake kernels are not used on cpu{scope}: ")
        assert COMMAND in told[0]
        with pytest.warns(UserWarning, match=reason):
            warnings.warn(told[0], stacklevel=1)
    found = records.read(records.machine("fake", CPU))
    assert (found[SCOPE.key].status if found else None) == status

    # The next process knows, and says so once.
    forget()
    monkeypatch.setattr(backends, "chosen", functools.lru_cache(backends.chosen.__wrapped__))
    if status is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                hyperkern.uniformity(features)
        assert len(caught) == (status != "passed")
        assert fake_backends.checks(tmp_path) == 1


def test_nobody_but_the_first_scope_is_checked(fake: Callable, checked: list) -> None:
    module = fake("right")
    for _ in range(2):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            hyperkern.uniformity(torch.randn(9, 16, dtype=dtype))
            hyperkern.uniformity(torch.randn(9, 50, dtype=dtype))
        hyperkern.uniformity(torch.randn(9, 400))
    assert [request.scope.key for request in checked] == ["bfloat16-64", "float16-64", "float32-64", "float32-long"]
    assert [request.dims for request in checked] == [(16, 50), (16, 50), (16, 50), (400, 390)]
    assert module.calls == ["loss"] * 14


def test_rows_are_checked_along_with_any_product(fake: Callable, checked: list) -> None:
    fake("right")
    features = x()
    hyperkern.alignment(features, features)  # rows alone
    assert [request.scope.key for request in checked] == ["rows-64"]
    forget()
    checked.clear()
    records.path_of(records.machine("fake", CPU)).unlink()
    backends.chosen.cache_clear()
    hyperkern.uniformity(features)
    hyperkern.alignment(features, features)
    assert [request.scope.key for request in checked] == ["bfloat16-64"]


def test_compositions_ask_too(fake: Callable, checked: list) -> None:
    module = fake("right")
    features = x().requires_grad_()
    hyperkern.clip_loss(features, features.detach(), logit_scale=3.0, ids=torch.arange(9)).backward()
    assert [request.scope.key for request in checked] == ["rows-64", "bfloat16-64"]
    assert {"prepare", "row_lse", "pair_grad", "finish"} == set(module.calls)


def test_a_shared_batch_asks_before_others_would_wait(fake: Callable, checked: list) -> None:
    fake("right")
    settle_backend(None, x())
    settle_backend("reference", torch.randn(9, 300))
    assert [request.scope.key for request in checked] == ["bfloat16-64"]


def test_threads_wait_for_one_check(fake: Callable, tmp_path: Path) -> None:
    module = fake("right")
    threads = [threading.Thread(target=hyperkern.uniformity, args=(x(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert module.calls == ["loss"] * 4
    assert fake_backends.checks(tmp_path) == 1


CALL = "import torch, hyperkern; print(hyperkern.uniformity(torch.ones(9, 16, dtype=torch.bfloat16)).item())"


def start(folder: Path, behaviour: str = "right", **further: str) -> subprocess.Popen[str]:
    environment = os.environ | fake_backends.environment(behaviour, folder) | further
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-W", "default", "-c", CALL], env=environment, **pipes)


def test_processes_wait_for_one_check(tmp_path: Path) -> None:
    started = [start(tmp_path) for _ in range(2)]
    ended = [child.communicate(timeout=240) for child in started]
    assert [child.returncode for child in started] == [0, 0], ended
    assert fake_backends.checks(tmp_path) == 1
    assert sum("checking the fake kernels" in errors for _, errors in ended) == 1


def test_one_that_waits_too_long_goes_on_without(
    fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("right")
    monkeypatch.setattr(first_use, "WAIT", 0.1)
    with first_use.locked(records.machine("fake", CPU)) as first:
        assert first
        with pytest.warns(UserWarning, match=r"another process has been checking them for"):
            hyperkern.uniformity(x())
    assert checked == []
    assert module.calls == []


@pytest.mark.parametrize("field", ["device", "capability", "driver", "torch", "triton", "digest"])
def test_a_record_of_something_else_does_not_count(
    field: str, fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("right")
    hyperkern.uniformity(x())
    forget()
    backends.chosen.cache_clear()
    other = records.machine("fake", CPU)._replace(**{field: "another"})
    monkeypatch.setattr(records, "machine", functools.lru_cache(lambda backend, device: other))
    hyperkern.uniformity(x())
    assert len(checked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"status": "passed"', '"status": "splendid"'),
        lambda text: text.replace('"date": "2', '"date": "x'),
        lambda text: text.replace("bfloat16-64", "bfloat16"),
        lambda text: text.replace('"cases": 1', '"cases": 1, "more": 1'),
        lambda text: text.replace('"device": "cpu"', '"device": "gpu"'),
        lambda text: "\0\xff",
    ],
)
def test_a_damaged_record_does_not_count(damage: Callable, fake: Callable, checked: list) -> None:
    fake("right")
    hyperkern.uniformity(x())
    path = records.path_of(records.machine("fake", CPU))
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    forget()
    backends.chosen.cache_clear()
    hyperkern.uniformity(x())
    assert len(checked) == 2
    assert json.loads(path.read_text())["scopes"].keys() == {SCOPE.key}


def test_no_memory_counts_for_an_hour(fake: Callable, checked: list) -> None:
    fake("right")
    machine = records.machine("fake", CPU)
    record = records.Record("no memory", "none left", "2020-01-01T00:00:00+00:00", 1.0, 0, 0.0)
    records.write(machine, {SCOPE: record})
    assert records.read(machine) == {}
    records.write(machine, {SCOPE: record._replace(date=records.now())})
    assert records.read(machine)[SCOPE.key].status == "no memory"
    # Nor does it if not even the compilers came to an end; a kernel that hangs hangs again.
    records.write(machine, {SCOPE: record._replace(status="timed out")})
    assert records.read(machine) == {}
    records.write(machine, {SCOPE: record._replace(status="timed out", cases=1)})
    assert records.read(machine)[SCOPE.key].status == "timed out"
    records.write(machine, {SCOPE: record._replace(status="failed")})
    assert records.read(machine)[SCOPE.key].age.endswith("days ago")


def test_a_home_that_cannot_be_written_to(
    fake: Callable, checked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("right")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # not even root makes a folder in it
    for _ in range(2):
        hyperkern.uniformity(x())
    hyperkern.alignment(x(), x())
    backends.chosen.cache_clear()
    hyperkern.uniformity(x())
    assert len(checked) == 1
    assert module.calls.count("loss") == 3


def test_nobody_has_a_home(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    hyperkern.uniformity(x())
    assert len(checked) == 1


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert records.folder() == Path.home() / ".cache" / "hyperkern" / "checks"


def test_switched_off(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake("right")
    monkeypatch.setenv("HYPERKERN_CHECK", "off")
    hyperkern.uniformity(x())  # and nothing is said
    assert (checked, module.calls) == ([], [])
    # What is known counts.
    records.write(records.machine("fake", CPU), {SCOPE: records.Record("passed", "", records.now(), 1.0, 1, 0.0)})
    forget()
    backends.chosen.cache_clear()
    hyperkern.uniformity(x())
    assert (checked, module.calls) == ([], ["loss"])


def test_trusted(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake("right")
    records.write(records.machine("fake", CPU), {SCOPE: records.Record("failed", "no", records.now(), 1.0, 1, 0.0)})
    monkeypatch.setenv("HYPERKERN_CHECK", "trust")
    hyperkern.uniformity(x())
    assert (checked, module.calls) == ([], ["loss"])


def test_required(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    monkeypatch.setenv("HYPERKERN_CHECK", "require")
    monkeypatch.setattr(process, "run", lambda *_: Outcome("failed", "clip (9 × 16): wrong", [], 1.0))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"HYPERKERN_CHECK=require: the fake kernels .* clip \(9 × 16\): wrong"):
            hyperkern.uniformity(x())
    assert hyperkern.uniformity(x(), backend="reference").isfinite()


def test_an_unknown_setting(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    monkeypatch.setenv("HYPERKERN_CHECK", "sometimes")
    with pytest.raises(ValueError, match=r"HYPERKERN_CHECK='sometimes' is unknown; choose one of first-use, off"):
        hyperkern.uniformity(x())
    assert checked == []


def test_a_name_that_is_forced_is_not_checked(fake: Callable, checked: list) -> None:
    module = fake("right")
    hyperkern.uniformity(x(), backend="fake")
    assert (checked, module.calls) == ([], ["loss"])


def test_not_while_a_graph_is_captured(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    machine = records.Machine("fake", "NVIDIA H200", "9.0", "580.1", "2.14", "3.8", "0")
    monkeypatch.setattr(records, "machine", lambda backend, device: machine)
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    problem = PROBLEM._replace(device=torch.device("cuda", 0))
    with pytest.warns(UserWarning, match="no check begins while a CUDA graph is captured: call the loss once before"):
        assert backends.select(None, problem) is backends.load("reference")
    assert backends.select(None, problem) is backends.load("reference")  # and nothing is said again
    assert checked == []
    capturing = False
    assert backends.select(None, problem) is backends.load("fake")
    assert [request.device for request in checked] == ["cuda:0"]


def test_not_while_a_graph_is_traced(fake: Callable, checked: list) -> None:
    module = fake("right")
    features = torch.randn(2, 9, 16, dtype=torch.bfloat16)  # of a batch the composition is traced
    traced = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable:
        traced.append(len(checked))
        return graph.forward

    compiled = torch.compile(hyperkern.uniformity, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(features), hyperkern.uniformity(features, backend="reference"))
    assert traced == [0]
    assert [request.scope.key for request in checked] == ["rows-64", "bfloat16-64"]
    assert {"prepare", "energy"} <= set(module.calls)


def test_a_warning_that_is_an_error_is_no_second_check(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    asked = []
    monkeypatch.setattr(process, "run", lambda *_: asked.append(1) or Outcome("failed", "wrong", [], 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="wrong"):
            hyperkern.uniformity(x())
    assert hyperkern.uniformity(x()).isfinite()
    assert asked == [1]


def test_an_interrupt_ends_the_check_and_records_nothing(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("hangs")
    started: list[subprocess.Popen] = []
    answers = process._answers

    def interrupted(child: subprocess.Popen, *args: Any) -> Iterator[dict[str, Any]]:
        started.append(child)
        for answer in answers(child, *args):
            if answer.get("what", "").startswith("pair_grad"):
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(process, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hyperkern.uniformity(x())
    assert started[0].returncode == -9
    assert records.read(records.machine("fake", CPU)) == {}
    with first_use.locked(records.machine("fake", CPU)) as free:
        assert free


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc to look into")
def test_a_check_ends_with_who_asked_for_it(tmp_path: Path) -> None:
    asking = start(tmp_path, "hangs")
    while not fake_backends.checks(tmp_path):
        assert asking.poll() is None
        time.sleep(0.1)
    child = int((tmp_path / "checks").read_text())
    asking.kill()
    asking.communicate()
    while _runs(child):  # its kernel would never end
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_process_can_be_started(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.warns(UserWarning, match=r"not checked: no process could be started for it \(.*No such file"):
        hyperkern.uniformity(x())


def test_a_program_without_an_interpreter_is_not_started_again(
    fake: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake("right")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.warns(UserWarning, match="this program has no Python interpreter to start"):
        hyperkern.uniformity(x())
    assert fake_backends.checks(tmp_path) == 0


def test_another_gpu_in_the_child_is_not_checked(fake: Callable) -> None:
    fake("right")
    outcome = process.run(request()._replace(name="NVIDIA H100"), 120)
    assert (outcome.status, outcome.rows) == ("not checked", [])
    assert outcome.reason == "cpu is another GPU in a new process, cpu"


def test_other_kernels_in_the_child_are_not_checked(fake: Callable) -> None:
    fake("right")
    outcome = process.run(request()._replace(digest="another"), 120)
    assert (outcome.status, outcome.rows) == ("not checked", [])
    assert outcome.reason.startswith("other kernels would be checked, those of ")


@pytest.mark.parametrize("place", ["in front", "as a Path", "removed", "relative"])
def test_the_path_of_the_caller(place: str, fake: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake("right")
    for name in ("logging", "queue", "hyperkern"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the wrong folder')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if place == "as a Path":
        sys.path.insert(0, tmp_path)
    if place == "removed":
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
    if place == "relative":
        monkeypatch.setattr(sys, "path", [os.path.relpath(entry) if entry else "" for entry in sys.path])
        monkeypatch.chdir(tmp_path)
    hyperkern.uniformity(x())
    assert module.calls == ["loss"]


def test_a_process_that_was_forked_meanwhile_is_free() -> None:
    with first_use._checking:
        before = first_use._checking
        pid = os.fork()
        if pid == 0:
            os._exit(first_use._checking is before)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_why_a_gpu_cannot_be_checked_is_asked_and_said_once(fake: Callable, tmp_path: Path) -> None:
    def losses() -> None:
        for dim in (16, 300):
            features = torch.randn(9, dim)
            hyperkern.uniformity(features)
            hyperkern.clip_loss(features, features, logit_scale=1.0, ids=torch.arange(9))  # of rows, and of products

    fake("exclusive")
    with pytest.warns(UserWarning, match="exclusive-process") as caught:
        losses()
    assert len(caught) == 1
    assert fake_backends.checks(tmp_path) == 1


def test_what_a_check_cannot_do_is_no_error_of_a_loss(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")

    def run(*args: object) -> None:
        raise OSError(28, "No usable temporary directory found")

    monkeypatch.setattr(process, "run", run)
    with pytest.warns(UserWarning, match=r"not checked: OSError: .*No usable temporary directory found"):
        assert hyperkern.uniformity(x()).isfinite()


def request() -> process.Request:
    machine = records.machine("fake", CPU)
    return process.Request("fake", "cpu", machine.device, machine.digest, SCOPE, (16,), "quick", 1)


def test_the_folder_that_a_user_is_in_is_not_imported_from(
    fake: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("right")
    for name in ("json", "torch", "hyperkern"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the wrong folder')\n")
    monkeypatch.chdir(tmp_path)
    hyperkern.uniformity(x())
    assert module.calls == ["loss"]


def test_what_a_person_sees(tmp_path: Path) -> None:
    first, second = (start(tmp_path).communicate(timeout=240) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].splitlines() == [
        "checking the fake kernels on cpu for bfloat16 products with D up to 64, once: up to 120 s "
        "(HYPERKERN_CHECK=off takes plain PyTorch instead)"
    ]
    assert second[1] == ""
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    seen = [start(wrong, "aborts").communicate(timeout=240)[1] for _ in range(2)]
    assert "checking" in seen[0]
    assert "checking" not in seen[1]
    for errors in seen:
        assert errors.count("UserWarning") == 1
        assert "their check crashed" in errors
        assert COMMAND in errors
