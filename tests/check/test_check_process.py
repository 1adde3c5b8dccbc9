"""The process of a check: how it is started, whose path it has, when it ends, and what a person sees of it."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_backends
import pytest
from check_calls import COMMAND, CPU, request, x

import hyperkern
from hyperkern.check import first_use, process, records

pytest_plugins = ["check_fixtures"]


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


def test_what_a_check_cannot_do_is_no_error_of_a_loss(fake: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")

    def run(*args: object) -> None:
        raise OSError(28, "No usable temporary directory found")

    monkeypatch.setattr(process, "run", run)
    with pytest.warns(UserWarning, match=r"not checked: OSError: .*No usable temporary directory found"):
        assert hyperkern.uniformity(x()).isfinite()


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
