"""Rows no longer than eps, the zero row among them: case 1 of the table of promises, to its end."""

from collections.abc import Callable

import oracle
import pytest
import torch
from torch import Tensor

import hyperkern as hk
from hyperkern import backends
from hyperkern.spec import norm_eps

F16 = torch.float16

# Of normalised rows, with what they are multiplied by.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip_loss": lambda losses, x, y, s, **k: losses.clip_loss(x, y, logit_scale=s, **k),
    "info_nce": lambda losses, x, y, s, **k: losses.info_nce(x, y, temperature=1 / s, **k),
    "uniformity": lambda losses, x, y, s, **k: s * losses.uniformity(x, **k),
    "align_uniform": lambda losses, x, y, s, **k: losses.align_uniform(x, y, align_weight=s, **k)[0],
}


def unit_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return oracle.UnitRows.apply(x, norm_eps(dtype), torch.finfo(dtype).max)


def truth(name: str, x: Tensor, y: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    return LOSSES[name](oracle, unit_rows(x, dtype), unit_rows(y, dtype), scale, normalize=False)


def sides(dtype: torch.dtype, device: torch.device, lengths: list[float]) -> tuple[list[Tensor], list[Tensor]]:
    """Two views whose first rows have the lengths given in units of eps; and the same numbers in float64."""
    x, y = torch.randn(2, 8, 16, dtype=torch.float64)
    for i, length in enumerate(lengths):
        x[i] *= length * norm_eps(dtype) / x[i].norm()
    rounded = [t.to(dtype).to(device).requires_grad_() for t in (x, y)]
    return rounded, [t.detach().double().cpu().requires_grad_() for t in rounded]


def assert_gradients_close(found: Tensor, expected: Tensor, x: Tensor) -> None:
    """In units of ``1 / max(|x|, eps)``, which all but ends the range of float16."""
    length = x.detach().double().norm(dim=-1, keepdim=True).clamp_min(norm_eps(found.dtype)).cpu()
    rounding = max(8 * torch.finfo(found.dtype).eps, 1e-5 if found.dtype != torch.float64 else 1e-10)
    torch.testing.assert_close(found.double().cpu() * length, expected * length, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("grad_output", [1.0, 65536.0])
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_zero_row_saturates_and_that_of_others_overflows(
    name: str, grad_output: float, backend: str, device: torch.device
) -> None:
    x, y = torch.randn(2, 8, 16).half()
    x[0] = 0
    ours = [t.to(device).requires_grad_() for t in (x, y)]
    exact = [t.double().requires_grad_() for t in (x, y)]
    loss, value = LOSSES[name](hk, *ours, 400.0, backend=backend), truth(name, *exact, 400.0, F16)
    assert loss.isfinite()
    (found,) = torch.autograd.grad(loss, ours[:1], torch.tensor(grad_output).to(loss))
    (expected,) = torch.autograd.grad(value, exact[:1], torch.tensor(grad_output).double())
    expected = expected.half()
    assert found[0].isfinite().all()
    assert (expected[0].abs() == torch.finfo(F16).max).any()
    assert expected[1:].isinf().any() == (grad_output > 1)
    in_range = expected[expected.isfinite()].abs()
    rounding = 8 * torch.finfo(F16).eps
    torch.testing.assert_close(found.cpu(), expected, rtol=rounding, atol=rounding * in_range.median().item())


@pytest.mark.parametrize("dtype", [torch.float32, F16], ids=str)
@pytest.mark.parametrize("name", ["clip_loss", "align_uniform"])
def test_nothing_turns_a_nan_into_a_number(name: str, dtype: torch.dtype, backend: str, device: torch.device) -> None:
    x, y = torch.randn(2, 8, 16).to(dtype).to(device)
    x[0] = 0
    x.requires_grad_()
    for bad in (torch.nan, torch.inf):
        loss = LOSSES[name](hk, x, y.requires_grad_(), 3.0, backend=backend)
        (found,) = torch.autograd.grad(loss, x, torch.full_like(loss, bad))
        assert not found.isfinite().any()
    x = x.detach().clone()
    x[3, 5] = torch.nan
    loss = LOSSES[name](hk, x.requires_grad_(), y, 3.0, backend=backend)
    (found,) = torch.autograd.grad(loss, x)
    assert found[[0, 3]].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, F16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_rows_shorter_than_eps_have_the_slope_of_unit_rows_over_eps(
    name: str, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    if reasons := backends.load(backend).unsupported(backends.Problem("prepare", device, dtype, 16)):
        pytest.skip("; ".join(reasons))
    # Of the zero row in a potential of distances, which is made of inner products, only the first derivative is exact.
    lengths = [0.1, 0.3, 0.9, 1.5, 4.0] + [0.0] * ("uniform" not in name)
    ours, exact = sides(dtype, device, lengths)
    loss, value = LOSSES[name](hk, *ours, 0.5, backend=backend), truth(name, *exact, 0.5, dtype)
    rounding = max(torch.finfo(dtype).eps, 1e-5)  # a backend may multiply in the dtype
    torch.testing.assert_close(loss.double().cpu(), value, rtol=rounding, atol=rounding)
    (first,) = torch.autograd.grad(loss, ours[:1], retain_graph=True)
    (expected,) = torch.autograd.grad(value, exact[:1], create_graph=True)
    assert_gradients_close(first, expected.detach(), ours[0])

    # The derivative of that gradient along a direction of the size of each row: of 1 / eps there is none.
    (first,) = torch.autograd.grad(loss, ours[:1], create_graph=True)
    length = exact[0].detach().norm(dim=-1, keepdim=True).clamp_min(norm_eps(dtype))
    along = (length * torch.randn(8, 16, dtype=torch.float64)).to(dtype)
    (second,) = torch.autograd.grad((first * along.to(device)).double().sum(), ours[:1])
    (expected,) = torch.autograd.grad((expected * along.double()).sum(), exact[:1])
    assert_gradients_close(second, expected, ours[0])


def test_a_saturated_gradient_is_constant(backend: str, device: torch.device) -> None:
    ours, exact = sides(F16, device, [0.0, 0.5])
    # Of a large gradient at a small scale, so that every pair has a second derivative.
    loss, value = (
        500 * hk.clip_loss(*ours, logit_scale=2.0, backend=backend),
        500 * truth("clip_loss", *exact, 2.0, F16),
    )
    (first,) = torch.autograd.grad(loss, ours[:1], create_graph=True)
    (expected,) = torch.autograd.grad(value, exact[:1], create_graph=True)
    saturated = expected[:2].abs() == torch.finfo(F16).max
    assert saturated.any()
    assert not saturated.all()
    along = torch.zeros(8, 16, dtype=torch.float64)
    along[:2] = torch.where(saturated, 1e3, 1e-6 * torch.randn(2, 16)).half()
    found = torch.autograd.grad((first.double() * along.to(device)).sum(), ours)
    expected = torch.autograd.grad((expected * along).sum(), exact)
    for side, got, want in zip(ours, found, expected, strict=True):
        assert_gradients_close(got, want, side)
