"""The first use of a backend: what a check finds, whom it is told, and where nothing is checked."""

import functools
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import fake_backends
import pytest
import torch
from check_calls import COMMAND, CPU, PROBLEM, SCOPE, forget, x

import hyperkern
from hyperkern import backends
from hyperkern.autograd import settle_backend
from hyperkern.check import first_use, process, records
from hyperkern.check.process import Outcome

pytest_plugins = ["check_fixtures"]

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
    "wrong on one side": ("failed", r"pair_grad, two sides"),
    "wrong rows alone": ("failed", r"row_lse, "),
    "dead rows": ("failed", r"rows, .*result 3 at .* is nan, expected 0"),
    "three percent off": ("failed", r"clip_learned \(19 × 16\): result 3 at \(\)"),
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
        monkeypatch.setattr(first_use, "LIMIT", 8.0)
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
    assert {"prepare", "row_lse", "pair_grad", "normalize_backward"} == set(module.calls)


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


def test_without_the_library_of_locks_each_checks_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    machine = records.machine("fake", CPU)
    with first_use.locked(machine) as mine, first_use.locked(machine) as also_mine:
        assert mine
        assert also_mine


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
