"""The pairwise primitives on the host: what is launched, and how partial results are added, in a fixed order."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import contract_kernel
from .operands import FLOAT16_RANGE, Operands, cut, launch
from .panel import panel_kernel
from .sums import sums_kernel

# Partial column sums are kept for at most so many stripes of row blocks, little beside D: cutting the columns fills the
# GPU.
_STRIPES = 64

# Bytes of the weights of one panel, and the rows it has at least where there are as many.
_WORKSPACE = 256 << 20
_PANEL_ROWS = 2048


class Factors(NamedTuple):
    """What weighs the pairs of `pair_grad`: ``a_i exp(l_ij - row_lse_i) + b_j exp(l_ij - col_lse_j)``."""

    row_lse: Tensor | None = None
    a: Tensor | None = None
    col_lse: Tensor | None = None
    b: Tensor | None = None

    def swapped(self) -> "Factors":
        """With the roles of rows and columns exchanged."""
        return Factors(self.col_lse, self.b, self.row_lse, self.a)


class Side(NamedTuple):
    """Weighted sums for the rows of one side.

    Attributes:
        grad: ``(cuts, B, M, D)``, partial sums of ``w_ij y_j`` over ranges of columns.
        sum: ``(cuts, B, M)``, those of ``w_ij``.
        value: ``(cuts, B, M)``, those of the potential.
    """

    grad: Tensor
    sum: Tensor
    value: Tensor

    def total(self) -> Tensor:
        """The potential of all pairs, ``(B,)``."""
        return self.value.sum((0, 2))

    def added(self) -> tuple[Tensor, Tensor]:
        """``(B, M, D)`` and ``(B, M)``."""
        return add_cuts(self.grad), add_cuts(self.sum)


def add_cuts(parts: Tensor) -> Tensor:
    """The sum over the ranges of columns."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def pair_sums(o: Operands, mode: str, *, need_cols: bool, total: bool) -> tuple[Tensor, Tensor]:
    """Sums of the pairs, with ``y = x`` from the tiles on and right of the diagonal alone.

    Args:
        o: the problem.
        mode: ``exp``, ``softplus`` or ``running`` (log-sum-exp with a running maximum).
        need_cols: whether column sums are wanted (where ``y`` is not ``x``).
        total: whether only the total is wanted: rows are then incomplete where ``y`` is ``x``, their sum is not.

    Returns:
        Row sums ``(B, M)`` and column sums ``(B, N)``; log-sum-exps where the mode is ``running``.
    """
    (batch, m, _), n = o.x.shape, o.y.shape[1]
    choice = o.find("sums", mode)
    assert choice is not None
    blocks, tiles = -(-m // choice.block_m), -(-n // choice.block_n)
    cols = (o.symmetric and not total) or (need_cols and not o.symmetric)
    stripes = min(blocks, _STRIPES) if cols else blocks
    cuts = cut(batch * stripes, tiles, 4 * batch * m, o.architecture)
    row = o.x.new_empty((cuts, batch, m), dtype=torch.float32)
    parts = stripes * cuts if o.symmetric else stripes
    col = row.new_zeros((parts, batch, n)) if cols else None
    row_top = torch.empty_like(row) if mode == "running" else None
    col_top = None if col is None or row_top is None else torch.full_like(col, -torch.inf)
    u, v, row_ids, col_ids = o.terms
    launch(
        sums_kernel,
        batch * stripes * cuts,
        o.x.device,
        (
            *(o.x, o.y, u, v, row_ids, col_ids, row_top, row, col_top, col, batch, m, n, stripes, cuts),
            *(*o.x.stride()[:2], *o.y.stride()[:2], o.row_shift, o.spec.scale * o.unit(mode)),
        ),
        choice,
        **o.constants(choice, mode),
        COLS=cols,
        TRIANGLE=o.symmetric,
    )
    of_rows, of_cols = _added(row, row_top), None if col is None else _added(col, col_top)
    if o.symmetric and of_cols is not None:
        pairs = zip(of_rows, of_cols, strict=True)
        of_rows, of_cols = _added(*(None if a is None or b is None else torch.stack([a, b]) for a, b in pairs)), None
    return _log_if(*of_rows), row.new_empty(batch, 0) if of_cols is None else _log_if(*of_cols)


def _added(parts: Tensor | None, tops: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The sum of partial sums; of those relative to maxima also the maximum."""
    assert parts is not None
    if tops is None:
        return add_cuts(parts), None
    top = tops.amax(0)
    return (parts * (tops - top.masked_fill(top == -torch.inf, 0)).exp_()).sum(0), top


def _log_if(total: Tensor, top: Tensor | None) -> Tensor:
    return total if top is None else top + total.log()


def contract(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    """Weighted sums for the rows of ``x`` and for those of ``y``, where needed.

    One pass for each side while a row block's sums fit in registers; panels beyond, which serve both at once. With
    ``y = x`` the row side holds everything.
    """
    if o.x.dtype != torch.float16 or (factors.a is None and factors.b is None):
        return _contract(o, mode, factors, need_x=need_x, need_y=need_y)
    # float16 has little range, so the weights must fill it: one factor on all of them, taken off the sums again. No
    # exponential of these weights is above 1.
    largest = torch.stack([factor.abs().amax() for factor in (factors.a, factors.b) if factor is not None]).sum()
    scale = FLOAT16_RANGE / largest.clamp_min(1e-30)
    a, b = (None if factor is None else factor * scale for factor in (factors.a, factors.b))
    sides = _contract(o, mode, factors._replace(a=a, b=b), need_x=need_x, need_y=need_y)
    of_x, of_y = (None if side is None else Side(*(part / scale for part in side)) for side in sides)
    return of_x, of_y


def _contract(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    if o.find("contract", mode) is None:
        return _contract_by_panels(o, mode, factors, need_x=need_x, need_y=need_y)
    of_x = _contract_rows(o, mode, factors) if need_x else None
    return of_x, _contract_rows(o.swapped(), mode, factors.swapped()) if need_y else None


def _contract_rows(o: Operands, mode: str, factors: Factors) -> Side:
    (batch, m, dim), n = o.x.shape, o.y.shape[1]
    choice = o.find("contract", mode)
    assert choice is not None
    blocks, tiles = -(-m // choice.block_m), -(-n // choice.block_n)
    cuts = cut(batch * blocks, tiles, 4 * batch * m * dim, o.architecture)
    grad = o.x.new_empty((cuts, batch, m, dim), dtype=torch.float32)
    sums = grad.new_empty((cuts, batch, m))
    value = torch.empty_like(sums) if mode == "softplus" else sums
    launch_contract(o, mode, factors, Side(grad, sums, value))
    return Side(grad, sums, value)


def launch_contract(o: Operands, mode: str, factors: Factors, out: Side) -> None:
    """Fills ``out``, whose gradient may have any stride between rows of a block of rows."""
    cuts, batch, m, _ = out.grad.shape
    choice = o.find("contract", mode)
    assert choice is not None
    u, v, row_ids, col_ids = o.terms
    launch(
        contract_kernel,
        batch * -(-m // choice.block_m) * cuts,
        o.x.device,
        (
            *(o.x, o.y, u, v, row_ids, col_ids, *factors, *out, batch, m, o.y.shape[1], cuts),
            *(*o.x.stride()[:2], *o.y.stride()[:2], out.grad.stride(2)),
            *(o.row_shift, o.spec.scale * o.unit(mode), o.shift(mode) * o.unit(mode)),
        ),
        choice,
        **o.constants(choice, mode),
    )


def _contract_by_panels(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    """The weights of one panel at a time, then the library's products with them; 3 N^2 D where ``y`` is ``x``."""
    (batch, m, dim), n = o.x.shape, o.y.shape[1]
    size = o.y.element_size()
    panel_m = min(m, _round_down(max(_PANEL_ROWS, _WORKSPACE // (size * n))))
    panel_n = min(n, _round_down(_WORKSPACE // (size * panel_m)))
    panel_b = max(1, min(batch, _WORKSPACE // (size * panel_m * panel_n)))
    # Rows of a panel start at multiples of 16 elements, or the stores and the library's loads are narrow.
    workspace = o.y.new_empty(panel_b * panel_m * (panel_n + -panel_n % 16))

    def side(rows: int, needed: bool) -> Side:
        grad = torch.zeros((1, batch, rows if needed else 0, dim), dtype=torch.float32, device=o.x.device)
        sums = grad.new_zeros((1, batch, rows))
        return Side(grad, sums, torch.zeros_like(sums) if mode == "softplus" else sums)

    of_x, of_y = side(m, need_x), side(n, need_y)
    for batches in _ranges(0, batch, panel_b):
        for rows in _ranges(0, m, panel_m):
            # With y = x: the square on the diagonal, then what is right of it and stands for its mirror image too.
            squares = [rows] if o.symmetric else []
            for cols in squares + _ranges(rows.stop if o.symmetric else 0, n, panel_n):
                mirrored = o.symmetric and cols is not rows
                panel = _panel(o, mode, factors, batches, rows, cols, workspace, need_cols=need_y or mirrored)
                w, row_sum, col_sum, value = panel
                of_x.sum[0, batches, rows] += row_sum
                if mode == "softplus":
                    of_x.value[0, batches, rows] += 2 * value if mirrored else value
                if need_x:
                    _add_product(of_x.grad[0, batches, rows], w, o.y[batches, cols])
                if mirrored:
                    of_x.sum[0, batches, cols] += col_sum
                    if need_x:
                        _add_product(of_x.grad[0, batches, cols], w.mT, o.x[batches, rows])
                if need_y:
                    of_y.sum[0, batches, cols] += col_sum
                    _add_product(of_y.grad[0, batches, cols], w.mT, o.x[batches, rows])
    if o.shift(mode):
        for part in {id(part): part for part in (*of_x, *of_y)}.values():
            part.mul_(math.exp(o.shift(mode)))
    # The potential of a pair is the same from both sides.
    return of_x if need_x else None, of_y._replace(value=of_x.value) if need_y else None


def _panel(
    o: Operands,
    mode: str,
    factors: Factors,
    batches: slice,
    rows: slice,
    cols: slice,
    workspace: Tensor,
    *,
    need_cols: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of a panel, their row and column sums, and the row sums of the potential."""
    choice = o.find("panel", mode)
    assert choice is not None
    x, y = o.x[batches, rows], o.y[batches, cols]
    (batch, m, _), n = x.shape, y.shape[1]
    stride = n + -n % 16
    w = workspace[: batch * m * stride].view(batch, m, stride)[:, :, :n]
    row_sum = x.new_empty((-(-n // choice.block_n), batch, m), dtype=torch.float32)
    col_sum = row_sum.new_empty((-(-m // choice.block_m), batch, n)) if need_cols else None
    value = torch.empty_like(row_sum) if mode == "softplus" else row_sum
    of_rows = [
        None if t is None else t[batches, rows] for t in (o.terms.u, o.terms.row_ids, factors.row_lse, factors.a)
    ]
    of_cols = [
        None if t is None else t[batches, cols] for t in (o.terms.v, o.terms.col_ids, factors.col_lse, factors.b)
    ]
    u, row_ids, row_lse, a = of_rows
    v, col_ids, col_lse, b = of_cols
    launch(
        panel_kernel,
        batch * row_sum.shape[0] * -(-m // choice.block_m),
        x.device,
        (
            *(x, y, u, v, row_ids, col_ids, row_lse, a, col_lse, b, w, row_sum, col_sum, value, batch, m, n),
            *(*x.stride()[:2], *y.stride()[:2], o.x.shape[1], o.y.shape[1], *w.stride()[:2]),
            *(o.row_shift + rows.start - cols.start, o.spec.scale * o.unit(mode), o.shift(mode) * o.unit(mode)),
        ),
        choice,
        **o.constants(choice, mode),
        GROUP=8,
    )
    added = row_sum.sum(0)
    return w, added, added if col_sum is None else col_sum.sum(0), value.sum(0) if mode == "softplus" else added


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
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


def _round_down(size: int) -> int:
    """To whole tiles, where there is more than one."""
    return size if size < 128 else size - size % 128


def _ranges(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
