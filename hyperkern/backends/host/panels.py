"""Weighted sums where rows are too long for one pass: a kernel stores weights, the library's product takes them."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from . import jobs
from .partials import Side

# Bytes of the weights of one panel, and the rows it has at least where there are as many.
_WORKSPACE = 256 << 20
_PANEL_ROWS = 2048

# Fills a panel with weights: ``weights(batches, rows, cols, w, need_cols) -> row_sum, col_sum, value``.
Weights = Callable[[slice, slice, slice, Tensor, bool], tuple[Tensor, Tensor, Tensor]]


def contract_by_panels(
    x: Tensor, y: Tensor, weights: Weights, *, symmetric: bool, has_value: bool, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    """The weights of one panel at a time, then the library's products with them; 3 N^2 D where ``y`` is ``x``.

    Args:
        x: ``(B, M, D)`` in the dtype of the product.
        y: ``(B, N, D)``, likewise; ``x`` itself where the problem is symmetric.
        weights: gets the panel's ranges of the batch, the rows and the columns, and fills ``w (b, m, n)``, whose rows
            start at multiples of 16 elements. Returns float32 row sums ``(b, m)``, column sums ``(b, n)`` and row sums
            of the potential ``(b, m)``; the row sums in the place of what is not needed.
        symmetric: whether ``y`` is ``x``. Panels left of the diagonal are then not asked for, and the row side holds
            everything.
        has_value: whether the potential differs from its derivative, the weights, and has sums of its own.
        need_x: whether the row side is wanted.
        need_y: whether the column side is wanted.

    Returns:
        Both sides, ``None`` where not wanted. ``value`` is one tensor for both and, without ``has_value``, the row
        side's ``sum``.
    """
    (batch, m, dim), n = x.shape, y.shape[1]
    size = y.element_size()
    panel_m = max(1, min(m, _round_down(max(_PANEL_ROWS, _WORKSPACE // (size * max(1, n))))))
    panel_n = max(1, min(n, _round_down(_WORKSPACE // (size * panel_m))))
    panel_b = max(1, min(batch, _WORKSPACE // (size * panel_m * panel_n)))
    workspace = y.new_empty(panel_b * panel_m * _padded(panel_n))

    def side(rows: int, needed: bool) -> Side:
        grad = torch.zeros((1, batch, rows if needed else 0, dim), dtype=torch.float32, device=x.device)
        sums = grad.new_zeros((1, batch, rows))
        return Side(grad, sums, torch.zeros_like(sums) if has_value else sums)

    of_x, of_y = side(m, need_x), side(n, need_y)
    for batches in _ranges(0, batch, panel_b):
        for rows in _ranges(0, m, panel_m):
            # With y = x: the square on the diagonal, then what is right of it and stands for its mirror image too.
            squares = [rows] if symmetric else []
            for cols in squares + _ranges(rows.stop if symmetric else 0, n, panel_n):
                mirrored = symmetric and cols is not rows
                w = _panel(workspace, *(part.stop - part.start for part in (batches, rows, cols)))
                row_sum, col_sum, value = weights(batches, rows, cols, w, need_y or mirrored)
                of_x.sum[0, batches, rows] += row_sum
                if has_value:
                    of_x.value[0, batches, rows] += 2 * value if mirrored else value
                if need_x:
                    add_product(of_x.grad[0, batches, rows], w, y[batches, cols])
                if mirrored:
                    of_x.sum[0, batches, cols] += col_sum
                    if need_x:
                        add_product(of_x.grad[0, batches, cols], w.mT, x[batches, rows])
                if need_y:
                    of_y.sum[0, batches, cols] += col_sum
                    add_product(of_y.grad[0, batches, cols], w.mT, x[batches, rows])
    # The potential of a pair is the same from both sides.
    return of_x if need_x else None, of_y._replace(value=of_x.value) if need_y else None


def fits(batch: int, m: int, n: int, size: int) -> bool:
    """Whether all weights of a problem find room in one panel; ``size`` is the bytes of one."""
    return batch * m * _padded(n) * size <= _WORKSPACE


def room(x: Tensor, batch: int, m: int, n: int) -> Tensor:
    """A panel ``(b, m, n)`` in the dtype of ``x``."""
    return _panel(x.new_empty(batch * m * _padded(n)), batch, m, n)


def product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """``out = left @ right`` by the library, with float32 sums."""
    if left.dtype == torch.float32:
        torch.bmm(left, right, out=out)
    elif left.is_cuda:
        torch.bmm(left, right, out_dtype=torch.float32, out=out)
    else:
        torch.bmm(left.float(), right.float(), out=out)


def products(
    grad: Tensor, w: Tensor, x: Tensor, y: Tensor, side: jobs.Side, mirrored: jobs.Side | None, *, wants_x: bool
) -> None:
    """The weighted sums of a side, all of whose weights are in one panel, and of the side that takes them turned over.

    Args:
        grad: ``(results, D)`` of all sides; filled where theirs are, those of the anchors only if anybody ``wants_x``.
        w: ``(B, rows, cols)`` weights.
        x: ``(B, rows, D)`` in the dtype of the product.
        y: ``(B, cols, D)``, likewise.
        side: whose rows are those of the weights.
        mirrored: the side whose rows are their first columns, if there is one.
        wants_x: see `hyperkern.backends.host.scheme.Scheme.wants_x`.
    """
    for one, turned in ((side, False), (mirrored, True)):
        if one is not None and (one.job.row > 0 or wants_x):
            out = grad[one.first : one.end].view(w.shape[0], one.job.rows, grad.shape[1])
            product(out, *((w[:, :, : one.job.rows].mT, x) if turned else (w, y)))


def add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """``out += left @ right`` by the library, with float32 sums."""
    if left.dtype == torch.float32:
        out.baddbmm_(left, right)
    elif not left.is_cuda:
        out.baddbmm_(left.float(), right.float())
    elif not _adds_in_float32(out.device):
        out += torch.bmm(left, right, out_dtype=torch.float32)
    elif out.shape[0] == 1:
        rows = out[0]
        torch.addmm(rows, left[0], right[0], out_dtype=torch.float32, out=rows)
    else:
        torch.baddbmm(out, left, right, out_dtype=torch.float32, out=out)


@functools.cache
def _adds_in_float32(device: torch.device) -> bool:
    """Whether the library adds a half-precision product to float32, which PyTorch learned to ask for step by step."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first call with such long rows looks at what the matrix library can do, which a CUDA graph cannot "
            "capture: make one call before the capture"
        )
    ones = torch.ones((2, 16, 16), dtype=torch.bfloat16, device=device)
    for product, take in ((torch.addmm, ones[0]), (torch.baddbmm, ones)):
        out = torch.ones_like(take, dtype=torch.float32)
        try:
            product(out, take, take, out_dtype=torch.float32, out=out)
        except (RuntimeError, TypeError):
            return False
        if not bool((out == 17).all()):
            return False
    return True


def _panel(workspace: Tensor, batch: int, m: int, n: int) -> Tensor:
    """Room for the weights of a panel, ``(b, m, n)``.

    Its rows start at multiples of 16 elements, or the stores and the library's loads are narrow.
    """
    stride = _padded(n)
    return workspace[: batch * m * stride].view(batch, m, stride)[:, :, :n]


def _padded(size: int) -> int:
    """The next multiple of 16."""
    return size + -size % 16


def _round_down(size: int) -> int:
    """To whole tiles, where there is more than one."""
    return size if size < 128 else size - size % 128


def _ranges(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
