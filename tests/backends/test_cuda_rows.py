"""The row-wise kernels of the CUDA C++ backend, on a GPU or in the emulator."""

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICE
from torch import Tensor

from hyperkern.backends import reference
from hyperkern.backends.cuda import library, normalize
from hyperkern.backends.cuda.normalize import normalize_backward
from hyperkern.spec import norm_eps

pytestmark = [
    pytest.mark.skipif(library.objection(DEVICE) is not None, reason=str(library.objection(DEVICE))),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DIMS = (1, 2, 5, 33, 64, 100, 128, 129, 257, 512, 1000, 1025, 2000)
ULP = torch.finfo(torch.float32).eps


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


def truth(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.double()
    norm = x.norm(dim=-1)
    return F.normalize(x, dim=-1, eps=1e-300), norm


def check_prepare(x: Tensor) -> None:
    unit, rstd = normalize.prepare(x)
    assert unit.dtype == rstd.dtype == torch.float32
    assert unit.shape == x.shape
    assert rstd.shape == x.shape[:2]
    assert unit.is_contiguous()
    true_unit, norm = truth(x)
    # The sum of squares is rounded where it is added, a lane's part of a row one by one.
    torch.testing.assert_close(unit.double(), true_unit, rtol=4 * ULP, atol=1e-38)
    torch.testing.assert_close(rstd.double(), 1 / norm.clamp_min(norm_eps(x.dtype)), rtol=4 * ULP, atol=1e-45)


def check_finish(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> None:
    dx = normalize_backward(grad, unit, rstd, dtype)
    assert dx.dtype == dtype
    assert dx.is_contiguous()
    g, u = grad.double(), unit.double()
    expected = rstd.double().unsqueeze(-1) * (g - (g * u).sum(-1, keepdim=True) * u)
    scale = (rstd.abs() * grad.norm(dim=-1)).max().item()
    torch.testing.assert_close(dx.double(), expected, rtol=torch.finfo(dtype).eps, atol=4 * ULP * scale + 1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_rows_of_every_length(dim: int, dtype: torch.dtype, poisoned_allocations: None) -> None:
    for shape in ((1, 1), (2, 5), (1, 17)):
        x = randn(*shape, dim, dtype=dtype)
        check_prepare(x)
        unit, rstd = normalize.prepare(x)
        check_finish(randn(*shape, dim), unit, rstd, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides(dtype: torch.dtype) -> None:
    layouts = {
        "transposed rows": randn(3, 20, 7, dtype=dtype).mT,
        "transposed batch": randn(7, 3, 20, dtype=dtype).transpose(0, 1),
        "expanded batch": randn(7, 20, dtype=dtype).expand(3, 7, 20),
        "expanded rows": randn(3, 1, 20, dtype=dtype).expand(3, 7, 20),
        "expanded columns": randn(3, 7, 1, dtype=dtype).expand(3, 7, 20),
        "every other row": randn(3, 14, 20, dtype=dtype)[:, ::2],
        "every other column": randn(3, 7, 40, dtype=dtype)[..., ::2],
        "a cut of longer rows": randn(3, 7, 24, dtype=dtype)[..., :20],
        "rows off their alignment": randn(3, 7, 21, dtype=dtype)[..., 1:],
        "data off its alignment": randn(3 * 7 * 20 + 1, dtype=dtype)[1:].view(3, 7, 20),
        "reversed by strides": randn(3, 20, 1, 7, dtype=dtype)[:, :, 0].mT,
    }
    for name, x in layouts.items():
        for got, expected in zip(normalize.prepare(x), normalize.prepare(x.contiguous()), strict=True):
            torch.testing.assert_close(got, expected, rtol=4 * ULP, atol=1e-7, msg=name)
        unit, rstd = normalize.prepare(x)
        grad = x.float()
        dx = normalize_backward(grad.as_strided(grad.shape, grad.stride()), unit, rstd, dtype)
        torch.testing.assert_close(dx, normalize_backward(grad.contiguous(), unit, rstd, dtype), rtol=1e-2, atol=1e-5)
        check_finish(randn(20).expand(x.shape), unit, rstd.mT.contiguous().mT, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [3, 64, 300, 1030])
def test_zero_rows(dim: int, dtype: torch.dtype) -> None:
    x = randn(2, 9, dim, dtype=dtype)
    x[0, 4] = x[1, 0] = x[1, 8] = 0
    check_prepare(x)
    unit, rstd = normalize.prepare(x)
    assert (unit[1, 0] == 0).all()
    assert rstd[1, 0] == torch.tensor(1 / norm_eps(dtype))
    check_finish(randn(2, 9, dim), unit, rstd.clamp_max(1.0), dtype)


@pytest.mark.parametrize("dim", [1, 4, 100, 1500])
def test_rows_whose_squares_leave_the_range(dim: int) -> None:
    sizes = [1e-45, 1e-42, 1e-38, 1e-30, 1e-20, 1e-13, 1e-12, 1e-6, 1.0, 1e6, 1e12, 1e13, 1e20, 1e30, 2e36]
    x = randn(1, len(sizes), dim).clamp(-4, 4) * torch.tensor(sizes, device=DEVICE)[:, None]
    x[..., 0] = torch.tensor(sizes, device=DEVICE) * 4  # no row is zero
    check_prepare(x)
    # One large element among small ones, and the other way round.
    y = randn(2, 3, dim)
    y[0, 0, 0], y[0, 1, -1], y[1, 2, 0] = 1e30, 3e38, 1e-38
    check_prepare(y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_ends_of_the_halves(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    direction = torch.tensor([[1.0, -1.0, 0.5, 0.0, 0.25], [0.5, 0.5, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, -1.0, 0.0]])
    for size in (info.tiny / 4, info.tiny, info.max / 4):  # the length itself is to fit into float32
        check_prepare((direction.double() * size).to(dtype).to(DEVICE).unsqueeze(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dim", [4, 33, 600, 1100])
def test_a_bad_row_is_nan_and_no_other(dim: int, bad: float, dtype: torch.dtype) -> None:
    x = randn(1, 10, dim, dtype=dtype)
    x[0, 3, dim // 2] = bad
    x[0, 7] = bad
    unit, rstd = normalize.prepare(x)
    is_bad = torch.tensor([i in (3, 7) for i in range(10)], device=DEVICE)
    assert unit[0].isnan().all(-1).equal(is_bad)
    assert unit[0].isnan().any(-1).equal(is_bad)
    assert rstd[0].isnan().equal(is_bad)
    check_prepare(x[:, ~is_bad])
    dx = normalize_backward(randn(1, 10, dim), unit, rstd, dtype)
    assert dx[0].isnan().all(-1).equal(is_bad)
    assert dx[0].isnan().any(-1).equal(is_bad)


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 0, 5), (0, 0, 1)])
def test_empty_batches(shape: tuple[int, int, int]) -> None:
    unit, rstd = normalize.prepare(randn(*shape))
    assert unit.shape == shape
    assert rstd.shape == shape[:2]
    assert normalize_backward(unit, unit, rstd, torch.bfloat16).shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_the_reference(dtype: torch.dtype) -> None:
    x, grad = randn(3, 11, 70, dtype=dtype), randn(3, 11, 70)
    for got, expected in zip(normalize.prepare(x), reference.prepare(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=8 * ULP, atol=1e-7)
    unit, rstd = reference.prepare(x)
    expected = reference.normalize_backward(grad, unit, rstd, dtype)
    torch.testing.assert_close(
        normalize_backward(grad, unit, rstd, dtype), expected, rtol=torch.finfo(dtype).eps, atol=1e-6
    )


def test_the_longest_rows() -> None:
    x = randn(1, 2, 16384)
    check_prepare(x)
    check_finish(randn(1, 2, 16384), *normalize.prepare(x), torch.float16)


def test_bad_arguments_are_named() -> None:
    x = randn(2, 3, 8)
    unit, rstd = normalize.prepare(x)
    ops = library.ops(x.device)
    dx = torch.empty_like(x)
    cases = [
        (lambda: ops.normalize_rows(x[0], 1e-12, unit, rstd), r"x must have shape \(batch, rows, D\), got \(3, 8\)"),
        (
            lambda: ops.normalize_rows(x.double(), 1e-12, unit, rstd),
            "x must be bfloat16, float16 or float32, got Double",
        ),
        (lambda: ops.normalize_rows(x, 1e-12, unit[:, :2], rstd), r"unit must have shape \(2, 3, 8\), got \(2, 2, 8\)"),
        (lambda: ops.normalize_rows(x, 1e-12, unit, rstd.mT), r"rstd must have shape \(2, 3\), got \(3, 2\)"),
        (lambda: ops.normalize_rows(x, 1e-12, unit, rstd.double()), "rstd must be Float, got Double"),
        (
            lambda: ops.normalize_rows_backward(x[:, :2], unit, rstd, 1e-12, dx),
            r"grad must have shape \(2, 3, 8\), got \(2, 2, 8\)",
        ),
        (lambda: ops.normalize_rows_backward(x.half(), unit, rstd, 1e-12, dx), "grad must be Float, got Half"),
        (lambda: ops.normalize_rows_backward(x, unit, rstd, 1e-12, dx.mT.contiguous().mT), "dx must be contiguous"),
        (
            lambda: ops.normalize_rows_backward(x, unit[0], rstd, 1e-12, dx),
            r"unit must have shape \(batch, rows, D\), got \(3, 8\)",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
