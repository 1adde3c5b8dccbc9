"""The kernels of alignment + uniformity in CUDA C++, one by one: long sums, memory around them, bad arguments."""

import pytest
import torch
from conftest import DEVICE
from torch import Tensor

from hyperkern.backends.common.step import AlignUniformOptions
from hyperkern.backends.cuda import align_uniform, library

pytestmark = [
    pytest.mark.skipif(library.objection(DEVICE) is not None, reason=str(library.objection(DEVICE))),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),
]


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
    ops.finish(of_unit, unit, rstd, 1e-12, dx)
    ops.prepare_views(x, y, 1e-12, 0.5, operand, align, zeros)
    assert (operand[..., dim:] == 0).all()
    ops.finish_views(x, y, grad, total, of_loss, None, of_loss, 1e-12, 0.5, 2.0, 1.0, 1.0, dx, dy)
    for around in everything:
        assert around[:512].isnan().all()
        assert around[-512:].isnan().all()
        assert around[512:-512].isfinite().all()


def test_bad_arguments_are_named() -> None:
    x, y = torch.randn(2, 2, 12, 6, device=DEVICE)
    options = AlignUniformOptions(2.0, 2.0, 1.0, 1.0)
    (loss, _, _), (grad, total) = align_uniform.align_uniform(x, y, options, "float32", need_grad=True)
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
