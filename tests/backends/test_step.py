"""Alignment + uniformity in few launches: how many, and everything a composition would do as well."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import DEVICE, usable
from oracle import align_uniform as dense_align_uniform
from oracle import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyperkern
from hyperkern import backends

CUDA = backends.load("cuda")


def _targets() -> list:
    """The GPU backends, and where the extension is emulated both of its kinds of pairwise kernels."""
    marks = [pytest.mark.gpu] if DEVICE == "cuda" else []
    ids = {f"cuda-{DEVICE}": ("cuda", 90), f"triton-{DEVICE}": ("triton", None)}
    if DEVICE == "cpu":
        ids["cuda-cpu-sm80"] = ("cuda", 80)
    return [pytest.param(target, id=name, marks=[*marks, usable(target[0])]) for name, target in ids.items()]


@pytest.fixture(params=_targets())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    name, capability = request.param
    emulated = name == "cuda" and DEVICE == "cpu"
    if emulated:
        CUDA.operands.emulate(capability)
    yield name
    if emulated:
        CUDA.operands.emulate(90)


@pytest.fixture
def float32_alone(request: pytest.FixtureRequest) -> None:
    """For tests of float32: its kernels are the same on every architecture, and are not emulated once more."""
    if request.node.callspec.params["backend"] == ("cuda", 80):
        pytest.skip("kernels of float32 are the portable ones")


def long_row(backend: str) -> int:
    """A dimension that goes by panels; the interpreter's limit is lower."""
    return 100 if backend == "triton" and DEVICE == "cpu" else 300


class Launches(TorchDispatchMode):
    """Notes what would be launched on a GPU: a backend's kernels, and PyTorch operators that compute something."""

    FREE = (
        "empty",
        "new_empty",
        "view",
        "as_strided",
        "unsqueeze",
        "squeeze",
        "detach",
        "expand",
        "slice",
        "select",
        "split",
        "unbind",
        "alias",
        "t.",
    )

    def __init__(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        # Whoever has it from where it is at home.
        name, home = ("launch", "launch") if backend == "triton" else ("ops", "library")
        changed = self.launch if backend == "triton" else self.recorded
        package = backends.load(backend).__name__
        for path, user in list(sys.modules.items()):
            if path.startswith(f"{package}.") and path != f"{package}.{home}" and hasattr(user, name):
                monkeypatch.setattr(user, name, changed)

    def recorded(self, device: torch.device) -> "Recorded":
        return Recorded(CUDA.library.ops(device), self.found)

    def launch(self, planned: Any, *args: Any) -> None:
        self.found.append(planned.kernel.fn.__name__.removesuffix("_kernel"))
        with torch._C._DisableTorchDispatch():
            backends.load("triton").launch.launch(planned, *args)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = function.name().split("::")
        if namespace == "aten" and not name.startswith(self.FREE):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Recorded:
    """The extension's operators for a device; notes which are asked for."""

    def __init__(self, ops: Any, found: list[str]) -> None:
        self.ops, self.found = ops, found

    def __getattr__(self, name: str) -> Any:
        if name != "tile":  # a question to the library
            self.found.append(name)
        return getattr(self.ops, name)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 24), torch.float32), ((50, 24), torch.bfloat16), ((2, 30, 8), torch.float16)]
)
def test_at_most_six_launches(backend: str, shape: tuple, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(*shape, dtype=dtype)
    with Launches(backend, monkeypatch) as launches:
        loss = hyperkern.align_uniform(x, y, backend=backend).loss
        torch.autograd.grad(loss, (x, y), torch.ones_like(loss))
    expected = ["prepare_views", "contract", "combine", "finish_views"]
    # The one operator is the caller's torch.ones_like.
    assert [name for name in launches.found if name != "ones_like"] == expected
    assert len(launches.found) <= 6


def test_panels_take_few_launches_too(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(40, long_row(backend))
    with Launches(backend, monkeypatch) as launches:
        hyperkern.align_uniform(x, y, backend=backend).loss.backward()
    assert launches.found.count("sums" if backend == "cuda" else "panel") == 1
    assert sum(name.startswith(("baddbmm", "bmm")) for name in launches.found) == 1


def compare(x: Tensor, y: Tensor, ours: Callable, truth: Callable, tolerance: float = 2e-5) -> None:
    results = ours(x, y)
    x64, y64 = (t.detach().double().requires_grad_() for t in (x, y))
    truths = truth(x64, y64)
    for pick in (0, 1, 2, None):

        def total(results: tuple, pick: int | None = pick) -> Tensor:
            if pick is not None:
                return results[pick].sum()
            return 0.3 * results[0].sum() - 2 * results[1].sum() + 0.7 * results[2].sum()

        value, true_value = total(results), total(truths)
        grads = torch.autograd.grad(value, (x, y), retain_graph=True)
        true_grads = torch.autograd.grad(true_value, (x64, y64), allow_unused=True, retain_graph=True)
        for got, want in zip((value, *grads), (true_value, *true_grads), strict=True):
            want = torch.zeros_like(got) if want is None else want
            assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1.0, "t": 0.5}, {"alpha": 0.5, "align_weight": -0.2, "uniform_weight": 3.0}], ids=str
)
@pytest.mark.parametrize("shape", [(2, 1), (33, 7), (3, 20, 70)], ids=str)
def test_each_output_and_their_mix(backend: str, shape: tuple, options: dict) -> None:
    x, y = inputs(*shape)
    compare(
        x,
        y,
        lambda a, b: hyperkern.align_uniform(a, b, **options, backend=backend),
        lambda a, b: dense_align_uniform(a, b, **options),
    )


def test_zero_rows_and_identical_pairs_are_as_in_the_composition(backend: str) -> None:
    x, y = (t.detach() for t in inputs(12, 5))
    x[3] = x[7] = y[3] = 0
    y[5] = x[5]
    x[8] = 1e30
    y[9] = 1e-30 * y[9]
    for alpha in (0.5, 2.0):
        results = []
        for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
            a, b = (t.to(dtype).requires_grad_() for t in (x, y))
            values = hyperkern.align_uniform(a, b, alpha=alpha, backend=name)
            grads = torch.autograd.grad(values.loss, (a, b))
            # In units of the norm: rows of 0 have a gradient of 1e12.
            norms = (t.double().norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (a, b))
            grads = [g * norm for g, norm in zip(grads, norms, strict=True)]
            results.append([*values, *grads])
        for got, want in zip(*results, strict=True):
            assert_close(got.double(), want.double(), 2e-5)


def test_a_bad_row_is_seen(backend: str) -> None:
    for bad in (float("nan"), float("inf")):
        x, y = (t.detach() for t in inputs(9, 4))
        x[4, 2] = bad
        assert all(v.isnan() for v in hyperkern.align_uniform(x, y, backend=backend))


def test_strides_and_repeats(backend: str) -> None:
    x, y = (t.detach() for t in inputs(7, 30))
    x, y = x.T.requires_grad_(), y.repeat(2, 1)[::2].T.contiguous()[:, :7].requires_grad_()
    first = hyperkern.align_uniform(x, y, backend=backend)
    second = hyperkern.align_uniform(x.contiguous(), y.contiguous(), backend=backend)
    assert first == second
    for use in (first, second):
        a = torch.autograd.grad(use.loss, (x, y), retain_graph=True)
        b = torch.autograd.grad(2 * use.loss, (x, y))
        assert all(torch.equal(2 * g, h) for g, h in zip(a, b, strict=True))


def test_outputs_can_be_changed_in_place(backend: str) -> None:
    x, y = inputs(9, 4)
    loss, align, _ = hyperkern.align_uniform(x, y, backend=backend)
    loss += align
    loss.backward()
    assert x.grad is not None


def test_second_derivative(backend: str) -> None:
    x, y = inputs(9, 4)
    grads = {}
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        a, b = (t.detach().to(dtype).requires_grad_() for t in (x, y))
        first = torch.autograd.grad(hyperkern.align_uniform(a, b, backend=name).loss, (a, b), create_graph=True)
        grads[name] = [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))]
    for got, want in zip(*grads.values(), strict=True):
        assert_close(got.double(), want, 1e-4)


@pytest.mark.parametrize("relation", ["the same", "computed"])
def test_a_differentiable_gradient_of_views_that_depend_on_each_other(backend: str, relation: str) -> None:
    # Through y the gradient reaches x once, by the caller's graph, whether or not it is itself to be differentiated.
    (x, _), grads = inputs(9, 4), []
    for create_graph in (False, True):
        y = x if relation == "the same" else 0.5 * x.flip(0) + 1
        loss = hyperkern.align_uniform(x, y, backend=backend).loss
        grads.append(torch.autograd.grad(loss, x, create_graph=create_graph)[0])
    assert_close(grads[1], grads[0], 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    for d in (8, long_row(backend)):
        x, y = inputs(9, d)
        results = []
        for default in (torch.float32, dtype):
            torch.set_default_dtype(default)
            try:
                values = hyperkern.align_uniform(x, y, backend=backend)
                clip = hyperkern.clip_loss(x, y, logit_scale=3.0, backend=backend)
                results.append([*values, *torch.autograd.grad(values.loss + clip, (x, y))])
            finally:
                torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_numbers_of_any_kind(backend: str) -> None:
    import numpy as np

    x, y = inputs(9, 4)
    expected = hyperkern.align_uniform(x, y, alpha=3.0, t=2.0, align_weight=1.0, backend=backend)
    result = hyperkern.align_uniform(x, y, alpha=3, t=np.float32(2), align_weight=1, backend=backend)
    assert result == expected


@pytest.mark.parametrize("frozen", ["x", "y", "both"])
def test_a_frozen_side(backend: str, frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(20, 6)
    if frozen != "y":
        x = x.detach()
    if frozen != "x":
        y = y.detach()
    expected = hyperkern.align_uniform(x.double(), y.double(), backend="reference")
    with Launches(backend, monkeypatch) as launches:
        result = hyperkern.align_uniform(x, y, backend=backend)
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-6)
    # Values alone need no second product; one frozen side leaves it to the other.
    assert launches.found.count("contract") == (0 if frozen == "both" else 1)


def test_transforms_and_the_compiler_take_the_composition(backend: str) -> None:
    x, y = (t.detach() for t in inputs(9, 4))
    gradient = torch.func.grad(lambda a: hyperkern.align_uniform(a, y, backend=backend).loss)(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(hyperkern.align_uniform(x, y, backend=backend).loss, x)
    assert_close(gradient, expected, 1e-5)
    compiled = torch.compile(
        lambda a: hyperkern.align_uniform(a, y, backend=backend).loss, fullgraph=True, backend="aot_eager"
    )
    (gradient,) = torch.autograd.grad(compiled(x), x)
    assert_close(gradient, expected, 1e-5)


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [
        *((dim, dtype) for dim in (1, 5, 64, 127, 200, 300, 600, 1030) for dtype in (torch.float32, torch.bfloat16)),
        *((dim, torch.float16) for dim in ((127,) if DEVICE == "cpu" else (1, 5, 64, 127, 200, 300, 600, 1030))),
    ],
    ids=str,
)
def test_operands_end_in_zeros(backend: str, dim: int, dtype: torch.dtype, poisoned_allocations: None) -> None:
    # A nan in the padding would be in every similarity.
    x, y = (t.detach().requires_grad_() for t in inputs(2, 10, dim, dtype=dtype))
    loss = hyperkern.align_uniform(x, y, backend=backend).loss.sum()
    grads = torch.autograd.grad(loss, (x, y))
    a, b = (t.detach().double().requires_grad_() for t in (x, y))
    expected = hyperkern.align_uniform(a, b, backend="reference").loss.sum()
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), expected, rtol=max(1e-5, eps), atol=1e-5)
    for got, want in zip(grads, torch.autograd.grad(expected, (a, b)), strict=True):
        torch.testing.assert_close(
            got.double(), want, rtol=max(1e-4, 4 * eps), atol=max(2e-6, eps) * want.abs().max().item()
        )


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_nearly_identical_pairs(backend: str, alpha: float) -> None:
    # The square of a small distance underflows in float32; the power of its derivative must not be infinite.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=DEVICE)
    y = torch.tensor([[1.0, 1e-22], [1.0, 1e-10], [1.0, 1e-30], [1.0, 1.0]], device=DEVICE)
    results = []
    for dtype, name in ((torch.float32, backend), (torch.float64, "reference")):
        a, b = (t.to(dtype).requires_grad_() for t in (x, y))
        values = hyperkern.align_uniform(a, b, alpha=alpha, backend=name)
        results.append([values.alignment, *torch.autograd.grad(values.alignment, (a, b))])
    for got, want in zip(*results, strict=True):
        assert got.isfinite().all()
        assert_close(got.double(), want, 1e-4)
