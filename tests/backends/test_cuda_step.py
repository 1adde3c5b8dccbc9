"""Alignment + uniformity in few CUDA C++ launches: how many, and everything a composition would do as well."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import DEVICE
from oracle import align_uniform as dense_align_uniform
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hyperkern
from hyperkern.backends.cuda import library, operands, primitives, step
from hyperkern.spec import AlignUniformOptions

pytestmark = [
    pytest.mark.skipif(library.objection(DEVICE) is not None, reason=str(library.objection(DEVICE))),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),
]
LONG = 300  # a row that goes by panels


@pytest.fixture(params=[80, 90])
def capability(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both kinds of pairwise kernels, where the emulator can be either."""
    if torch.cuda.is_available():
        if request.param != 90:
            pytest.skip("the GPU is what it is")
        yield request.param
    else:
        operands.emulate(request.param)
        yield request.param
        operands.emulate(90)


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: the extension's kernels, and PyTorch operators that compute something."""

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
        "tile",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[1]
        if not name.startswith(self.FREE):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Recorded:
    """The operators of a device; notes which are called."""

    def __init__(self, ops: Any, called: list[str]) -> None:
        self.ops, self.called = ops, called

    def __getattr__(self, name: str) -> Any:
        self.called.append(name)
        return getattr(self.ops, name)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((50, 24), torch.float32), ((50, 24), torch.bfloat16), ((2, 30, 8), torch.float16)]
)
def test_at_most_six_launches(capability: int, shape: tuple, dtype: torch.dtype) -> None:
    x, y = inputs(*shape, dtype=dtype)
    with Launches() as launches:
        loss = hyperkern.align_uniform(x, y, backend="cuda").loss
        torch.autograd.grad(loss, (x, y), torch.ones_like(loss))
    expected = ["prepare_views", "contract", "combine", "finish_views"]
    # The one operator is the caller's torch.ones_like.
    assert [name for name in launches.found if name != "ones_like"] == expected
    assert len(launches.found) <= 6


def test_panels_take_few_launches_too() -> None:
    x, y = inputs(40, LONG)
    with Launches() as launches:
        hyperkern.align_uniform(x, y, backend="cuda").loss.backward()
    assert launches.found.count("sums") == 1
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
def test_each_output_and_their_mix(capability: int, shape: tuple, options: dict) -> None:
    x, y = inputs(*shape)
    compare(
        x,
        y,
        lambda a, b: hyperkern.align_uniform(a, b, **options, backend="cuda"),
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
        for dtype, backend in ((torch.float32, "cuda"), (torch.float64, "reference")):
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
        assert all(v.isnan() for v in hyperkern.align_uniform(x, y, backend="cuda"))


def test_strides_and_repeats() -> None:
    x, y = (t.detach() for t in inputs(7, 30))
    x, y = x.T.requires_grad_(), y.repeat(2, 1)[::2].T.contiguous()[:, :7].requires_grad_()
    first = hyperkern.align_uniform(x, y, backend="cuda")
    second = hyperkern.align_uniform(x.contiguous(), y.contiguous(), backend="cuda")
    assert first == second
    for use in (first, second):
        a = torch.autograd.grad(use.loss, (x, y), retain_graph=True)
        b = torch.autograd.grad(2 * use.loss, (x, y))
        assert all(torch.equal(2 * g, h) for g, h in zip(a, b, strict=True))


def test_outputs_can_be_changed_in_place() -> None:
    x, y = inputs(9, 4)
    loss, align, _ = hyperkern.align_uniform(x, y, backend="cuda")
    loss += align
    loss.backward()
    assert x.grad is not None


def test_second_derivative() -> None:
    x, y = inputs(9, 4)
    grads = {}
    for backend, dtype in (("cuda", torch.float32), ("reference", torch.float64)):
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
        loss = hyperkern.align_uniform(x, y, backend="cuda").loss
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
                values = hyperkern.align_uniform(x, y, backend="cuda")
                clip = hyperkern.clip_loss(x, y, logit_scale=3.0, backend="cuda")
                results.append([*values, *torch.autograd.grad(values.loss + clip, (x, y))])
            finally:
                torch.set_default_dtype(torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_numbers_of_any_kind() -> None:
    import numpy as np

    x, y = inputs(9, 4)
    expected = hyperkern.align_uniform(x, y, alpha=3.0, t=2.0, align_weight=1.0, backend="cuda")
    result = hyperkern.align_uniform(x, y, alpha=3, t=np.float32(2), align_weight=1, backend="cuda")
    assert result == expected


@pytest.mark.parametrize("frozen", ["x", "y", "both"])
def test_a_frozen_side(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = inputs(20, 6)
    if frozen != "y":
        x = x.detach()
    if frozen != "x":
        y = y.detach()
    expected = hyperkern.align_uniform(x.double(), y.double(), backend="reference")
    called: list[str] = []
    # The composition calls the operators within others, where no dispatch mode looks.
    monkeypatch.setattr(primitives, "ops", lambda device: Recorded(library.ops(device), called))
    result = hyperkern.align_uniform(x, y, backend="cuda")
    for got, want in zip(result, expected, strict=True):
        torch.testing.assert_close(got.double(), want.detach(), rtol=1e-5, atol=1e-6)
    # Values alone need no second product; one frozen side leaves it to the other.
    assert called.count("contract") == (0 if frozen == "both" else 1)


def test_transforms_and_the_compiler_take_the_composition() -> None:
    x, y = (t.detach() for t in inputs(9, 4))
    gradient = torch.func.grad(lambda a: hyperkern.align_uniform(a, y, backend="cuda").loss)(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(hyperkern.align_uniform(x, y, backend="cuda").loss, x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    compiled = torch.compile(lambda a: hyperkern.align_uniform(a, y, backend="cuda").loss, fullgraph=True)
    (gradient,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [1, 5, 64, 127, 200, LONG, 600, 1030])
def test_operands_end_in_zeros(dim: int, dtype: torch.dtype, poisoned_allocations: None) -> None:
    # A nan in the padding would be in every similarity.
    x, y = (t.detach().requires_grad_() for t in inputs(2, 10, dim, dtype=dtype))
    loss = hyperkern.align_uniform(x, y, backend="cuda").loss.sum()
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
def test_nearly_identical_pairs(alpha: float) -> None:
    # The square of a small distance underflows in float32; the power of its derivative must not be infinite.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=DEVICE)
    y = torch.tensor([[1.0, 1e-22], [1.0, 1e-10], [1.0, 1e-30], [1.0, 1.0]], device=DEVICE)
    results = []
    for dtype, backend in ((torch.float32, "cuda"), (torch.float64, "reference")):
        a, b = (t.to(dtype).requires_grad_() for t in (x, y))
        values = hyperkern.align_uniform(a, b, alpha=alpha, backend=backend)
        results.append([values.alignment, *torch.autograd.grad(values.alignment, (a, b))])
    for got, want in zip(*results, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_the_sums_of_many_rows() -> None:
    batch, m, blocks, cuts, t = 3, 5003, 626, 3, 1.5
    align, sums = torch.rand(batch, blocks, device=DEVICE), torch.rand(cuts, 2 * batch, m, device=DEVICE)
    zeros = torch.zeros(2, batch, blocks, device=DEVICE)
    zeros[1, 2, :600] = 2
    total = torch.empty(2 * batch, device=DEVICE)
    loss, alignment, uniformity = (torch.empty(batch, device=DEVICE) for _ in range(3))
    library.ops(align.device).combine(align, zeros, sums, t, 0.5, -3.0, total, loss, alignment, uniformity)
    count = zeros.double().sum(2).flatten()
    true_total = sums.double().sum((0, 2))
    true_total += 2 * count * (m - count) * torch.tensor(t).double().expm1()
    true_total += count * (count - 1) * torch.tensor(2 * t).double().expm1()
    true_align = align.double().sum(1) / m
    true_uniform = ((true_total / (m * (m - 1))).log() - 2 * t).view(2, batch).mean(0)
    pairs = (
        (total, true_total),
        (alignment, true_align),
        (uniformity, true_uniform),
        (loss, 0.5 * true_align - 3 * true_uniform),
    )
    for got, want in pairs:
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [3, 8, 130, 1027])
def test_nothing_outside_is_read_or_written(dim: int, dtype: torch.dtype) -> None:
    def inside(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor amid nan."""
        around = torch.full((1024 + torch.Size(shape).numel(),), torch.nan, dtype=dtype, device=DEVICE)
        everything.append(around)
        tensor = around[512:-512].view(shape)
        return tensor.copy_(torch.randn(shape))

    everything: list[Tensor] = []
    m, padded = 11, -(-dim // (16 // dtype.itemsize)) * (16 // dtype.itemsize)
    ops = library.ops(torch.device(DEVICE))
    x, y, dx, dy = (inside(2, m, dim, dtype=dtype) for _ in range(4))
    unit, of_unit = inside(2, m, dim), inside(2, m, dim)
    rstd, align, zeros = inside(2, m), inside(2, 2), inside(2, 2, 2)
    operand = inside(2, 2, m, padded, dtype=dtype)
    grad, total, of_loss = inside(2, 4, m, padded), inside(4), inside(2)
    ops.prepare(x, 1e-12, unit, rstd)
    ops.finish(of_unit, unit, rstd, dx)
    ops.prepare_views(x, y, 1e-12, 0.5, operand, align, zeros)
    assert (operand[..., dim:] == 0).all()
    ops.finish_views(x, y, grad, total, of_loss, None, of_loss, 1e-12, 0.5, 2.0, 1.0, 1.0, dx, dy)
    for around in everything:
        assert around[:512].isnan().all()
        assert around[-512:].isnan().all()
        assert around[512:-512].isfinite().all()


def test_bad_arguments_are_named() -> None:
    x, y = (t.detach() for t in inputs(2, 12, 6))
    options = AlignUniformOptions(2.0, 2.0, 1.0, 1.0)
    (loss, _, _), (grad, total) = step.align_uniform(x, y, options, "float32", need_grad=True)
    ops = library.ops(x.device)
    numbers = (1e-12, 2.0, 2.0, 1.0, 1.0)
    parts = x.new_empty(3, 2, 2)
    cases = [
        (
            lambda: ops.prepare_views(x, y, 1e-12, 2.0, x.new_empty(2, 2, 12, 6), parts[0], parts[1:]),
            r"operand must have shape \(2, 2, 12, 8\), got \(2, 2, 12, 6\)",
        ),
        (
            lambda: ops.prepare_views(x, y[:, :5], 1e-12, 2.0, x.new_empty(2, 2, 12, 8), parts[0], parts[1:]),
            r"y must have shape \(2, 12, 6\), got \(2, 5, 6\)",
        ),
        (
            lambda: ops.prepare_views(x, y.half(), 1e-12, 2.0, x.new_empty(2, 2, 12, 8), parts[0], parts[1:]),
            "y must be Float, got Half",
        ),
        (
            lambda: ops.combine(parts[0], parts[1:], grad[..., 0, 0], 2.0, 1.0, 1.0, total, loss, loss, loss),
            r"sums must have shape \(cuts, 4, rows\)",
        ),
        (
            lambda: ops.finish_views(x, y, grad[..., :5], total, loss, None, None, *numbers, x.clone(), y.clone()),
            r"grad must have shape \(cuts, 4, 12, at least 6\), got",
        ),
        (
            lambda: ops.finish_views(x, y, grad, total, loss[:1], None, None, *numbers, x.clone(), y.clone()),
            r"of_loss must have shape \(2\), got \(1\)",
        ),
        (
            lambda: ops.finish_views(x, y, grad, total, loss, None, None, *numbers, x.mT.contiguous().mT, y.clone()),
            "dx must be contiguous",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
