"""A launch that was launched before: the same kernel with the same arguments, and Triton is not asked for it again."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("triton")

import launched_kernels
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

import benchmarks
from hyperkern.backends.triton import launch as module
from hyperkern.backends.triton.config import Config
from hyperkern.backends.triton.launch import Launch, launch
from tools.fake_gpu import Gpu

CHOICE = Config(64, 32, None, 4, 3)
CONSTANTS = {"MODE": "exp", "BLOCK": 64}
X = torch.zeros(64)
HALVES = torch.zeros(64, dtype=torch.bfloat16)
ARGS = (X, None, 100, 128, 2.5)


def example(p_x, p_u, count, stride, scale, BLOCK: tl.constexpr, MODE: tl.constexpr):
    """A kernel with an argument of each kind."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fake = Gpu()
    fake.install(monkeypatch)
    return fake


@pytest.fixture
def kernel() -> Any:
    return triton.JITFunction(example, do_not_specialize=["count"])


def start(kernel: Any, args: tuple = ARGS, choice: Config | None = CHOICE, device: int = 0, **constants: Any) -> None:
    planned = Launch(kernel, 9, args[2:], choice, **{**CONSTANTS, **constants})
    launch(planned, torch.device("cuda", device), *args[:2])


def searches(gpu: Gpu, *launches: Any) -> int:
    """How often Triton has to look for a kernel in some launches."""
    before = gpu.searches
    for one in launches:
        one()
    return gpu.searches - before


def test_the_second_launch_is_the_first_without_triton(gpu: Gpu, kernel: Any) -> None:
    start(kernel)
    gpu.stream = 8
    assert searches(gpu, lambda: start(kernel)) == 0
    first, second = gpu.launches
    assert second._replace(stream=7, metadata=None) == first._replace(metadata=None)
    # In the order of their declaration, with the constants, on the stream that is now the current one.
    assert (second.args, second.grid, second.stream) == ((*ARGS, 64, "exp"), (9, 1, 1), 8)


# All that Triton looks at in an argument of its kind, each more than once.
VALUES = (
    (X, X[4:], X[1:], HALVES, HALVES[8:], HALVES[1:], torch.nn.Parameter(X), X[:0]),
    (None, X, X[2:], HALVES),
    (0, 1, 16, 17, -1, -(2**31), 2**31 - 1, 2**31, -(2**31) - 1, 2**63 - 1, 2**63, 2**64 - 1),
    (0, 1, 2, 16, 17, -16, -1, -(2**31), 2**31 - 1, 2**31, 2**31 + 1, 2**40, -(2**31) - 16, 2**63, 2**63 + 1),
    (1.0, 2.5, 1, 16, 3),
)


def test_a_kernel_is_looked_for_where_triton_specialises_anew(gpu: Gpu, kernel: Any) -> None:
    binder = kernel.device_caches[0][-1]
    compiled: dict[str, Any] = {}
    for args in itertools.product(*VALUES):
        specialisation = str(binder(*args, **CONSTANTS)[1])
        looked = searches(gpu, lambda args=args: start(kernel, args))
        # Values that are alike to Triton need one search, others each their own.
        assert looked == (specialisation not in compiled), args
        assert compiled.setdefault(specialisation, gpu.launches[-1].compiled) is gpu.launches[-1].compiled
        assert all(got is given for got, given in zip(gpu.launches[-1].args, args, strict=False))
    assert len({*compiled.values()}) == len(compiled) == len(gpu.compiled) > 500


def test_options_and_constants_have_kernels_of_their_own(gpu: Gpu, kernel: Any) -> None:
    others: list[dict[str, Any]] = [
        {},
        {"choice": CHOICE._replace(num_warps=8)},
        {"choice": CHOICE._replace(num_stages=2)},
        {"choice": None},
        {"BLOCK": 32},
        {"MODE": "running"},  # where a product and a sum are rounded separately
    ]
    for other in others:
        assert searches(gpu, lambda other=other: start(kernel, **other)) == 1, other
    for other, first in zip(others, gpu.launches[:], strict=True):
        assert searches(gpu, lambda other=other: start(kernel, **other)) == 0
        assert gpu.launches[-1].compiled is first.compiled
        assert gpu.launches[-1].args == first.args
    options = [one.options for one in gpu.compiled]
    assert [one["num_warps"] for one in options[:3]] == [4, 8, 4]
    assert [one["num_stages"] for one in options[:3]] == [3, 3, 2]
    assert [one["enable_fp_fusion"] for one in options] == [True] * 5 + [False]


def test_a_device_has_kernels_of_its_own(gpu: Gpu, kernel: Any) -> None:
    start(kernel)
    # Not the current device: it is made the current one for the launch, which is Triton's.
    assert searches(gpu, *[lambda: start(kernel, device=1)] * 2) == 2
    assert gpu.device == 0
    gpu.device = 1
    assert searches(gpu, *[lambda: start(kernel, device=1)] * 2) == 1
    first, *others = (one.compiled for one in gpu.launches)
    assert {*others} == {gpu.compiled[1]}
    assert first is gpu.compiled[0]
    for device in (0, 1):
        gpu.device = device
        assert searches(gpu, lambda device=device: start(kernel, device=device)) == 0
        assert gpu.launches[-1].compiled is gpu.compiled[device]


def test_hooks_around_all_launches_are_called(gpu: Gpu, kernel: Any) -> None:
    runtime = triton.knobs.runtime
    start(kernel)
    start(kernel)
    hook = Mock()
    runtime.launch_enter_hook.add(hook)
    try:
        assert searches(gpu, lambda: start(kernel)) == 0
    finally:
        runtime.launch_enter_hook.remove(hook)
    for one in gpu.launches:
        assert one.hooks == (runtime.launch_enter_hook, runtime.launch_exit_hook)
        assert one.metadata.get() == {"name": "example", "function": 2, "stream": 7}


@pytest.mark.parametrize("setting", [("runtime", "debug"), ("compilation", "instrumentation_mode")])
def test_settings_of_triton_are_seen_by_triton(gpu: Gpu, kernel: Any, setting: tuple[str, str]) -> None:
    start(kernel)
    group = getattr(triton.knobs, setting[0])
    with group.scope():
        setattr(group, setting[1], "other")
        assert searches(gpu, *[lambda: start(kernel)] * 2) == 2
        assert len(gpu.compiled) == 2
    assert searches(gpu, lambda: start(kernel)) == 0
    assert gpu.launches[-1].compiled is gpu.compiled[0]


def test_hooks_of_a_kernel_are_called(gpu: Gpu, kernel: Any) -> None:
    start(kernel)
    called: list[tuple] = []
    kernel.add_pre_run_hook(lambda *args, **constants: called.append(args))
    start(kernel)
    assert called == [ARGS]


def test_new_source_and_cleared_caches_are_seen(gpu: Gpu, kernel: Any) -> None:
    start(kernel)
    kernel.device_caches.clear()
    start(kernel, choice=None)  # which makes a cache again
    assert searches(gpu, *[lambda: start(kernel)] * 2) == 1
    assert len(gpu.compiled) == 3
    kernel._unsafe_update_src(kernel.src.replace("each", "every"))
    assert searches(gpu, lambda: start(kernel)) == 1


def odd_order(count, p_x, BLOCK: tl.constexpr, MODE: tl.constexpr):
    """A pointer behind a number."""


def typed(p_x, count: tl.int64, BLOCK: tl.constexpr, MODE: tl.constexpr):
    """A type that no argument changes."""


def constant_first(p_x, BLOCK: tl.constexpr, count, MODE: tl.constexpr):
    """A constant before a number."""


class Subclass(triton.JITFunction):
    """Whatever it does."""


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (triton.JITFunction(odd_order), (3, X)),
        (triton.JITFunction(typed), (X, 3)),
        (Subclass(example), ARGS),
        (triton.JITFunction(example), (X, None, True, 128, 2.5)),
        (triton.JITFunction(example), (X, None, None, 128, 2.5)),
        (triton.JITFunction(example), (X, 3, 100, 128, 2.5)),
        (triton.JITFunction(example), (X, None, 100, 128, X)),
    ],
    ids=["order", "type", "subclass", "bool", "absent", "number", "tensor"],
)
def test_whatever_is_unusual_is_left_to_triton(gpu: Gpu, function: Any, args: tuple) -> None:
    assert searches(gpu, *[lambda: start(function, args)] * 3) == 3
    assert len(gpu.launches) == 3


def test_constants_between_the_arguments_are_left_to_triton(gpu: Gpu) -> None:
    function = triton.JITFunction(constant_first)
    assert module._described(function) is None
    assert module._described(triton.JITFunction(example)) is not None


def test_an_unknown_triton_launches_itself(gpu: Gpu, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "__version__", "3.10.0")
    assert searches(gpu, *[lambda: start(kernel)] * 2) == 2


def test_what_is_not_yet_compiled_is_not_kept(gpu: Gpu, kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Compiled in another thread, as `triton.AsyncCompileMode` does: what comes back is no kernel yet.
    run = triton.JITFunction.run
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **options: run(*args, **options) and object())
    assert searches(gpu, *[lambda: start(kernel)] * 2) == 2


def test_the_interpreter_is_not_asked_for_a_compiled_kernel(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(
        InterpretedFunction, "__getitem__", lambda self, grid: lambda *args, **options: calls.append((grid, args))
    )
    function = InterpretedFunction(example)
    start(function)
    start(function)
    launch(Launch(function, 9, ARGS[2:], CHOICE, **CONSTANTS), torch.device("cpu"), *ARGS[:2])
    assert calls == [((9,), ARGS)] * 3


def test_arguments_that_are_missing_are_an_error(gpu: Gpu, kernel: Any) -> None:
    start(kernel)
    for args in (ARGS[:-1], (*ARGS, 3)):
        with pytest.raises(TypeError):
            start(kernel, args)
    with pytest.raises(TypeError):
        launch(Launch(kernel, 9, ARGS[2:], CHOICE, MODE="exp"), torch.device("cuda", 0), *ARGS[:2])


def test_batches_of_any_size_have_the_same_kernels() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(benchmarks.__file__).parents[1])
    command = [sys.executable, str(Path(launched_kernels.__file__))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    report = json.loads(result.stdout)
    assert set().union(*(one["launched"] for one in report)) == {
        *("prepare_kernel", "normalize_backward_kernel", "sums_kernel", "two_way_sums_kernel"),
        *("contract_kernel", "panel_kernel"),
        *("prepare_views_kernel", "combine_kernel", "finish_views_kernel", "contract_sides_kernel"),
        *("prepare_rows_kernel", "softmax_head_kernel", "sigmoid_head_kernel", "energy_head_kernel"),
        *("classes_head_kernel", "finish_rows_kernel"),
    }
    for dim, batches in itertools.groupby(report, lambda one: one["dim"]):
        first, *others = batches
        assert sum(first["compiled"].values()) > 10
        for one in others:
            assert one["launched"] == first["launched"]
            # Two views in one batch: where D is no multiple of 16 the distance of the views may be one or not.
            assert one["compiled"] in ([{}] if dim % 16 == 0 else [{}, {"contract_kernel": 1}]), one
            # An address may be aligned in one batch and not in another, where it makes no difference to Triton.
            assert one["searches"] <= 2, one
        assert one["searches"] == 0
