"""Whole losses of rows too long for one pass: all weights in one panel, and the library's products with them."""

import math
from collections.abc import Iterator

import oracle
import pytest
import test_whole_losses as whole
import torch
from conftest import DEVICE
from oracle import assert_close
from test_step import Launches, long_row
from test_whole_losses import FIRST, FLOAT32_ALONE, LOSSES, check, leaves, tensors, value_and_grads

import hyperkern as hk
from hyperkern.backends import load
from hyperkern.backends.host import panels
from hyperkern.backends.host.scheme import scheme_of

backend, float32_alone = whole.backend, whole.float32_alone  # the fixtures
EACH = pytest.mark.parametrize("name", LOSSES)


def is_large(name: str) -> bool:
    return "small" in name or "large" in name


@EACH
def test_launches(backend: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args, loss = leaves(tensors(name, d=long_row(backend))), LOSSES[name]
    cotangent = torch.ones((), device=DEVICE)
    loss.truth(*args)  # the labels are there
    with Launches(backend, monkeypatch) as launches:
        torch.autograd.grad(loss.ours(*args, backend=backend), args, cotangent)
    found = [found for found in launches.found if not found.startswith("transpose")]
    products = found.count("bmm.out")
    # A product for each side in place of the contraction of both; against each other and a queue there are two panels.
    assert 1 <= products <= (3 if name == "uniformity-intra" else 2)
    reduced = "bias" in loss.roles and backend == "cuda"  # the weights of the anchors, over the ranges of columns
    assert len(found) - products <= loss.launches + reduced, found
    assert sum("finish" in one for one in found) == sum("prepare" in one for one in found) == 1


@FLOAT32_ALONE
@EACH
@pytest.mark.parametrize(("n", "k", "batch"), [(2, 1, None), (33, 5, None), (18, 41, 3)])
def test_values_and_gradients(backend: str, name: str, n: int, k: int, batch: int | None) -> None:
    check(
        name, backend, tensors(name, n, long_row(backend), batch=batch, k=k), 1e-6 * (300.0 if is_large(name) else 10.0)
    )


@FLOAT32_ALONE
@pytest.mark.parametrize("name", FIRST)
def test_many_tiles(backend: str, name: str) -> None:
    check(name, backend, tensors(name, 270, long_row(backend) + 20, k=90), 2e-5)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(backend: str, name: str, dtype: torch.dtype, poisoned_allocations: None) -> None:
    given = [t.to(dtype) if t.dim() else t for t in tensors(name, 21, long_row(backend))]
    check(name, backend, given, 8 * torch.finfo(dtype).eps * (20 if is_large(name) else 1))


@FLOAT32_ALONE
@EACH
def test_nothing_is_read_before_it_is_written(backend: str, name: str, poisoned_allocations: None) -> None:
    given = tensors(name, 25, long_row(backend) + 3, batch=2)
    check(name, backend, given, 1e-6 * (300.0 if is_large(name) else 10.0))


@FLOAT32_ALONE
@pytest.mark.parametrize("name", [name for name in LOSSES if name.endswith("learnable") or name in FIRST])
def test_frozen_sides(backend: str, name: str) -> None:
    given = tensors(name, 15, long_row(backend))
    expected = value_and_grads(LOSSES[name].truth, leaves(given, torch.float64))
    for wanted, want in enumerate(expected[1:]):
        args = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given)]
        value = LOSSES[name].ours(*args, backend=backend)
        (grad,) = torch.autograd.grad(value, args[wanted], torch.full_like(value, 0.5))
        assert (grad - want).abs().max() <= 2e-5 * want.abs().max()


@pytest.mark.parametrize("name", FIRST)
def test_zero_and_extreme_rows_and_strides(backend: str, name: str) -> None:
    given = tensors(name, 12, long_row(backend))
    for t in given:
        t[3] = t[7] = 0
        t[8] = 1e30 * t[8]
        t[9] = 1e-30 * t[9]
    expected = value_and_grads(LOSSES[name].ours, leaves(given, torch.float64), backend="reference")
    for of in (given, [t.mT.contiguous().mT for t in given]):
        args = [t.detach().requires_grad_() for t in of]
        for got, want, t in zip(
            value_and_grads(LOSSES[name].ours, args, backend=backend), expected, [None, *given], strict=True
        ):
            # A row of 0 has a gradient of 1e12.
            norm = 1.0 if t is None else t.double().norm(dim=-1, keepdim=True).clamp_min(1e-12)
            assert_close(got.double() * norm, want * norm, 2e-5)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_is_seen(backend: str, name: str, bad: float) -> None:
    given = tensors(name, 9, long_row(backend))
    given[-1][4, 2] = bad
    assert LOSSES[name].ours(*given, backend=backend).isnan()


def test_the_longest_rows(backend: str) -> None:
    limit = load(backend).schedule._LONGEST
    for dim in (limit, limit + 1):
        x, y = leaves([torch.randn(5, dim, device=DEVICE) for _ in range(2)])
        grads = torch.autograd.grad(hk.clip_loss(x, y, logit_scale=10.0, backend=backend), (x, y))
        a, b = leaves((x, y), torch.float64)
        expected = torch.autograd.grad(oracle.clip_loss(a, b, logit_scale=10.0), (a, b))
        for got, want in zip(grads, expected, strict=True):
            assert_close(got.double(), want, 1e-5)


@pytest.fixture
def new_schemes() -> Iterator[None]:
    """What was worked out is forgotten, before and after."""
    scheme_of.cache_clear()
    yield
    scheme_of.cache_clear()


def test_what_has_no_room_in_one_panel_takes_the_composition(
    backend: str, monkeypatch: pytest.MonkeyPatch, new_schemes: None
) -> None:
    monkeypatch.setattr(panels, "_WORKSPACE", 128 * 128 * 4)
    dim = long_row(backend)
    for n, fits in ((128, True), (130, False)):
        x, y = leaves([torch.randn(n, dim, device=DEVICE) for _ in range(2)])
        with Launches(backend, monkeypatch) as launches:
            grads = torch.autograd.grad(hk.clip_loss(x, y, logit_scale=0.3, backend=backend), (x, y))
        assert any(one.endswith("head") for one in launches.found) == fits
        a, b = leaves((x, y), torch.float64)
        expected = torch.autograd.grad(oracle.clip_loss(a, b, logit_scale=0.3), (a, b))
        for got, want in zip(grads, expected, strict=True):
            assert_close(got.double(), want, 1e-4)


def test_weights_of_float16_are_in_its_range(backend: str) -> None:
    # The exponentials of far rows are e^-8 of which float16 has few digits, unless they are moved.
    x = torch.cat([torch.eye(8, device=DEVICE), -torch.eye(8, device=DEVICE)]).half()
    x = torch.cat([x, x.new_zeros(16, long_row(backend) - 8)], 1)
    found = value_and_grads(lambda x, **options: hk.uniformity(x, t=2.0, **options), leaves([x]), backend=backend)
    expected = value_and_grads(lambda x: oracle.uniformity(x, t=2.0), leaves([x], torch.float64))
    assert abs(found[0].item() - expected[0].item()) <= 2e-3 * abs(expected[0].item())
    assert (found[1] - expected[1]).abs().max() <= 2e-3 * max(expected[1].abs().max().item(), math.exp(-8))


@pytest.mark.parametrize(
    ("name", "needs", "stored", "products"),
    [
        ("info_nce-queue", (True, True, False), 1, 2),  # the queue stands behind the partners, whose weights are there
        ("info_nce-queue", (True, False, False), 1, 1),
        ("clip_loss", (False, True), 1, 1),
        ("nt_xent", (False, True), 1, 1),
        ("siglip-learnable", (False, False, False, True), 1, 0),  # their sums are its gradient
        ("siglip-learnable", (False, False, True, False), 1, 1),
        ("uniformity-queue", (False, True), 1, 1),
        ("uniformity-intra", (False, True), 2, 1),
        ("uniformity-intra", (True, True), 2, 3),
    ],
)
def test_nothing_is_computed_that_nobody_needs(
    backend: str, name: str, needs: tuple[bool, ...], stored: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tensors(name, 12, long_row(backend))
    args = [t.requires_grad_(need) for t, need in zip(given, needs, strict=True)]
    with Launches(backend, monkeypatch) as launches:
        torch.autograd.grad(LOSSES[name].ours(*args, backend=backend), [t for t in args if t.requires_grad])
    sums = 0 if name.startswith(("siglip", "uniformity")) else 1  # those of a softmax, by the same kernels in CUDA
    found = launches.found.count("panel") if backend == "triton" else launches.found.count("sums") - sums
    assert (found, launches.found.count("bmm.out")) == (stored, products)
