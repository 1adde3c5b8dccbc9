"""Alignment + uniformity in few launches: how many, and everything a composition would do as well."""

from collections.abc import Callable

import pytest
import torch
from conftest import DEVICE, needs_triton
from oracle import align_uniform as dense_align_uniform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

import hyperkern
from hyperkern.backends.triton import operands, primitives, rows, step

pytestmark = [needs_triton, *([pytest.mark.gpu] if torch.cuda.is_available() else [])]
LONG = 300 if torch.cuda.is_available() else 100  # a row that goes by panels


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: Triton kernels, and PyTorch operators that compute something."""

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
        "alias",
        "t.",
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.found: list[str] = []
        for module in (primitives, rows, step):
            monkeypatch.setattr(module, "launch", self.launch)

    def launch(self, kernel, *args, **constants) -> None:
        self.found.append(kernel.fn.__name__)
        with torch._C._DisableTorchDispatch():
            operands.launch(kernel, *args, **constants)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::")
        if not name.startswith(self.FREE):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 24), torch.float32), ((50, 24), torch.bfloat16), ((2, 30, 8), torch.float16)]
)
def test_at_most_six_launches(shape: tuple, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(*shape, dtype=dtype)
    with Launches(monkeypatch) as launches:
        loss = hyperkern.align_uniform(x, y, backend="triton").loss
        torch.autograd.grad(loss, (x, y), torch.ones_like(loss))
    expected = ["prepare_views_kernel", "contract_kernel", "combine_kernel", "finish_views_kernel"]
    # The one operator is the caller's torch.ones_like.
    assert [name for name in launches.found if name != "ones_like"] == expected
    assert len(launches.found) <= 6


def test_panels_take_few_launches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(40, LONG)
    with Launches(monkeypatch) as launches:
        hyperkern.align_uniform(x, y, backend="triton").loss.backward()
    assert launches.found.count("panel_kernel") == 1
    assert sum(name.startswith(("baddbmm", "bmm")) for name in launches.found) == 1


def compare(x: Tensor, y: Tensor, ours: Callable, truth: Callable, tolerance: float = 2e-5) -> None:
    for pick in (0, 1, 2, None):

        def total(results: tuple, pick: int | None = pick) -> Tensor:
            if pick is not None:
                return results[pick].sum()
            return 0.3 * results[0].sum() - 2 * results[1].sum() + 0.7 * results[2].sum()

        value = total(ours(x, y))
        grads = torch.autograd.grad(value, (x, y))
        x64, y64 = (t.detach().double().requires_grad_() for t in (x, y))
        true_value = total(truth(x64, y64))
        true_grads = torch.autograd.grad(true_value, (x64, y64), allow_unused=True)
        for got, want in zip((value, *grads), (true_value, *true_grads), strict=True):
            want = torch.zeros_like(got) if want is None else want
            assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 1.0, "t": 0.5}, {"alpha": 0.5, "align_weight": -0.2, "uniform_weight": 3.0}], ids=str
)
@pytest.mark.parametrize("shape", [(2, 1), (33, 7), (3, 20, 70)], ids=str)
def test_each_output_and_their_mix(shape: tuple, options: dict) -> None:
    x, y = inputs(*shape)
    compare(
        x,
        y,
        lambda a, b: hyperkern.align_uniform(a, b, **options, backend="triton"),
        lambda a, b: dense_align_uniform(a, b, **options),
    )


def test_zero_rows_and_identical_pairs_are_as_in_the_composition() -> None:
    x, y = (t.detach() for t in inputs(12, 5))
    x[3] = x[7] = y[3] = 0
    y[5] = x[5]
    x[8] = 1e30
    y[9] = 1e-30 * y[9]
    for alpha in (0.5, 2.0):
        results = []
        for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
            a, b = (t.to(dtype).requires_grad_() for t in (x, y))
            values = hyperkern.align_uniform(a, b, alpha=alpha, backend=backend)
            grads = torch.autograd.grad(values.loss, (a, b))
            # In units of the norm: rows of 0 have a gradient of 1e12.
            norms = (t.double().norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (a, b))
            grads = [g * norm for g, norm in zip(grads, norms, strict=True)]
            results.append([*values, *grads])
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got.double(), want.double(), rtol=2e-5, atol=2e-6)


def test_a_bad_row_is_seen() -> None:
    for bad in (float("nan"), float("inf")):
        x, y = (t.detach() for t in inputs(9, 4))
        x[4, 2] = bad
        assert all(v.isnan() for v in hyperkern.align_uniform(x, y, backend="triton"))


def test_strides_and_repeats() -> None:
    x, y = (t.detach() for t in inputs(7, 30))
    x, y = x.T.requires_grad_(), y.repeat(2, 1)[::2].T.contiguous()[:, :7].requires_grad_()
    first = hyperkern.align_uniform(x, y, backend="triton")
    second = hyperkern.align_uniform(x.contiguous(), y.contiguous(), backend="triton")
    assert first == second
    for use in (first, second):
        a = torch.autograd.grad(use.loss, (x, y), retain_graph=True)
        b = torch.autograd.grad(2 * use.loss, (x, y))
        assert all(torch.equal(2 * g, h) for g, h in zip(a, b, strict=True))


def test_outputs_can_be_changed_in_place() -> None:
    x, y = inputs(9, 4)
    loss, align, _ = hyperkern.align_uniform(x, y, backend="triton")
    loss += align
    loss.backward()
    assert x.grad is not None


def test_second_derivative() -> None:
    x, y = inputs(9, 4)
    grads = {}
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        a, b = (t.detach().to(dtype).requires_grad_() for t in (x, y))
        first = torch.autograd.grad(hyperkern.align_uniform(a, b, backend=backend).loss, (a, b), create_graph=True)
        grads[backend] = [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (a, b))]
    for got, want in zip(*grads.values(), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relation", ["the same", "computed"])
def test_a_differentiable_gradient_of_views_that_depend_on_each_other(relation: str) -> None:
    # Through y the gradient reaches x once, by the caller's graph, whether or not it is itself to be differentiated.
    (x, _), grads = inputs(9, 4), []
    for create_graph in (False, True):
        y = x if relation == "the same" else 0.5 * x.flip(0) + 1
        loss = hyperkern.align_uniform(x, y, backend="triton").loss
        grads.append(torch.autograd.grad(loss, x, create_graph=create_graph)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_the_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    for d in (8, LONG):
        x, y = inputs(9, d)
        results = []
        for default in (torch.float32, dtype):
            torch.set_default_dtype(default)
            try:
                values = hyperkern.align_uniform(x, y, backend="triton")
                clip = hyperkern.clip_loss(x, y, logit_scale=3.0, backend="triton")
                results.append([*values, *torch.autograd.grad(values.loss + clip, (x, y))])
            finally:
                torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_numbers_of_any_kind() -> None:
    import numpy as np

    x, y = inputs(9, 4)
    expected = hyperkern.align_uniform(x, y, alpha=3.0, t=2.0, align_weight=1.0, backend="triton")
    result = hyperkern.align_uniform(x, y, alpha=3, t=np.float32(2), align_weight=1, backend="triton")
    assert result == expected


@pytest.mark.parametrize("frozen", ["x", "y", "both"])
def test_a_frozen_side(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(20, 6)
    if frozen != "y":
        x = x.detach()
    if frozen != "x":
        y = y.detach()
    expected = hyperkern.align_uniform(x.double(), y.double(), backend="reference")
    with Launches(monkeypatch) as launches:
        result = hyperkern.align_uniform(x, y, backend="triton")
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-6)
    # Values alone need no second product; one frozen side leaves it to the other.
    assert launches.found.count("contract_kernel") == (0 if frozen == "both" else 1)


def test_transforms_and_the_compiler_take_the_composition() -> None:
    x, y = (t.detach() for t in inputs(9, 4))
    gradient = torch.func.grad(lambda a: hyperkern.align_uniform(a, y, backend="triton").loss)(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(hyperkern.align_uniform(x, y, backend="triton").loss, x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    compiled = torch.compile(lambda a: hyperkern.align_uniform(a, y, backend="triton").loss, fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
