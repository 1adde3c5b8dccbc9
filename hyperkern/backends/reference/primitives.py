"""The primitives in plain PyTorch, block by block: the fallback on every device and the oracle of the kernels.

One loop, `_blocks`, makes every similarity. With ``y = x`` it visits the upper triangle of blocks only, and what
a primitive does with a block it does for the mirrored block too. Nothing of size M x N is ever allocated.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import (
    DTYPES,
    PairSpec,
    PairTerms,
    accumulate_dtype,
    excluded_pairs,
    gradient_limit,
    longer_than_eps,
    norm_eps,
)
from .. import LogSumExp, Problem
from ..common.partials import Sums

# Rows and columns of a block. On a CPU a block and its operands have to stay in the cache of a core, and the product
# of a narrow block loses too much to its edges: 512 measured best, or equal within the noise, for N = 1024 ... 32768
# and D = 64 ... 1024. Elsewhere the block only has to be large enough to fill the device.
_BLOCK_CPU = 512
_BLOCK_DEVICE = 4096


class _Block(NamedTuple):
    batch: slice
    rows: slice
    cols: slice
    logits: Tensor  # (batch, rows, cols), a buffer: its user may overwrite it, and the next block does
    mirrored: bool  # y = x, off the diagonal: the block stands for its transpose as well


def unsupported(problem: Problem) -> list[str]:
    """The reference serves every device and every floating dtype that the losses accept."""
    if problem.dtype not in DTYPES:
        return [f"dtype {problem.dtype} is not a floating dtype it knows"]
    return []


def unverified(problem: Problem) -> list[str]:
    """It is what the others are verified against."""
    return []


def prepare(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and reciprocal norms; each row is scaled by its largest element first, so no square overflows."""
    dtype = accumulate_dtype(x.dtype)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=dtype)
    unit = torch.div(x, largest.masked_fill(largest == 0, 1), out=x.new_empty(x.shape, dtype=dtype))
    norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    unit.div_(norm.masked_fill(norm == 0, 1))
    return unit, (norm * largest).clamp_min_(norm_eps(x.dtype)).reciprocal_().squeeze(-1)


def finish(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """Tangent projection and rescale, within the limit of rows that are too short for it."""
    out = torch.mul(grad, unit, out=unit.new_empty(unit.shape))
    radial = out.sum(-1, keepdim=True)
    torch.addcmul(grad, unit, radial, value=-1, out=out).mul_(rstd.unsqueeze(-1))
    # One more pass over the gradient, where there may be such rows: on a CPU it is free to look.
    if out.device.type != "cpu" or not longer_than_eps(rstd, dtype).all():
        limit = gradient_limit(rstd, dtype)
        out.clamp_(-limit, limit)
    return out.to(dtype)


def row_lse(x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, need_cols: bool) -> LogSumExp:
    """Row and column log-sum-exp: plain sums in the bounded regime, relative to a running maximum otherwise."""
    x, y, terms, symmetric = _operands(x, y, terms)
    row_sum, row_top = _no_sums(x, x.shape[1], spec)
    # With y = x a mirrored block's columns are rows: both sides are one vector.
    col_sum, col_top = (row_sum, row_top) if symmetric else _no_sums(x, y.shape[1] if need_cols else 0, spec)
    for block in _blocks(x, y, terms, spec, symmetric):
        batch, rows, cols = block[:3]
        cols_too = block.mirrored if symmetric else need_cols
        if row_top is None or col_top is None:
            kernel = block.logits.exp_()
            row_sum[batch, rows] += kernel.sum(2)
            if cols_too:
                col_sum[batch, cols] += kernel.sum(1)
        else:
            _add_relative(row_sum[batch, rows], row_top[batch, rows], block.logits, 2)
            if cols_too:
                _add_relative(col_sum[batch, cols], col_top[batch, cols], block.logits, 1)
    row_lse, row_rounding = Sums(row_sum, row_top).logarithm()
    if symmetric:  # two tensors: those that an operator returns may not share their memory
        col_lse, col_rounding = x.new_empty(x.shape[0], 0), x.new_empty(x.shape[0], 0)
    else:
        col_lse, col_rounding = Sums(col_sum, col_top).logarithm()
    return LogSumExp(row_lse, col_lse, row_rounding, col_rounding)


def _no_sums(x: Tensor, length: int, spec: PairSpec) -> tuple[Tensor, Tensor | None]:
    """Sums of exponentials to add to, and the maxima that they are relative to."""
    sums = x.new_zeros(x.shape[0], length)
    return sums, None if spec.bounded else torch.full_like(sums, -torch.inf)


def _add_relative(sums: Tensor, top: Tensor, logits: Tensor, dim: int) -> None:
    new_top = torch.maximum(top, logits.amax(dim))
    base = new_top.masked_fill(new_top == -torch.inf, 0)
    sums.mul_((top - base).exp_()).add_((logits - base.unsqueeze(dim)).exp_().sum(dim))
    top.copy_(new_top)


def pair_grad(
    x: Tensor,
    y: Tensor | None,
    terms: PairTerms,
    spec: PairSpec,
    row_lse: Tensor,
    col_lse: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weighted sums of rows and columns; in the bounded regime one exponential serves both weights."""
    x, y, terms, symmetric = _operands(x, y, terms)
    if symmetric:
        col_lse, b = row_lse, a
    sums = _WeightedSums(x, y, symmetric, need_x, need_y)
    a, row_lse = a.unsqueeze(2), _inf_for_empty(row_lse).unsqueeze(2)
    if b is not None and col_lse is not None:
        b, col_lse = b.unsqueeze(1), _inf_for_empty(col_lse).unsqueeze(1)
    if spec.bounded:  # exp(l - lse) = exp(l) exp(-lse)
        a = a * torch.exp(-row_lse)
        b = b * torch.exp(-col_lse) if b is not None and col_lse is not None else None
    for block in _blocks(x, y, terms, spec, symmetric):
        logits, (batch, rows, cols) = block.logits, block[:3]
        # On the diagonal the column side is the mirror image of the row side, and so are its weights: the library's
        # product does not give l_ij and l_ji the same last bit, and a row's sum holds l_ij.
        on_diagonal = symmetric and not block.mirrored
        of_col = None
        if spec.bounded:
            weights = logits.exp_()
            weights *= a[batch, rows] if b is None or on_diagonal else a[batch, rows] + b[batch, :, cols]
        else:
            if b is not None and col_lse is not None and not on_diagonal:
                of_col = (logits - col_lse[batch, :, cols]).exp_().mul_(b[batch, :, cols])
            weights = logits.sub_(row_lse[batch, rows]).exp_().mul_(a[batch, rows])
        if on_diagonal:
            weights = weights + weights.mT
        elif of_col is not None:
            weights += of_col
        sums.add(block, weights)
    return sums.results()


def energy(
    x: Tensor,
    y: Tensor | None,
    terms: PairTerms,
    spec: PairSpec,
    potential: str,
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total and both gradients from one visit of each block."""
    x, y, terms, symmetric = _operands(x, y, terms)
    sums = _WeightedSums(x, y, symmetric, need_x, need_y)
    row_total = x.new_zeros(x.shape[:2])
    for block in _blocks(x, y, terms, spec, symmetric):
        if potential == "exp":
            value = weights = block.logits.exp_()
        else:
            value = torch.logaddexp(block.logits, block.logits.new_zeros(()))
            weights = block.logits.sigmoid_()
        row_sum = value.sum(2)
        row_total[block.batch, block.rows] += 2 * row_sum if block.mirrored else row_sum
        sums.add(block, weights, row_sum if value is weights else None)
    return row_total.sum(1), *sums.results()


class _WeightedSums:
    """``sum_j w_ij y_j`` and ``sum_j w_ij`` for the rows, and the same for the columns, over all blocks."""

    def __init__(self, x: Tensor, y: Tensor, symmetric: bool, need_x: bool, need_y: bool) -> None:
        self.x, self.y, self.symmetric = x, y, symmetric
        self.need_x, self.need_y = need_x, need_y
        self.grad_x = x.new_zeros(x.shape if need_x else (x.shape[0], 0, x.shape[2]))
        self.sum_x = x.new_zeros(self.grad_x.shape[:2])
        self.grad_y = y.new_zeros(y.shape if need_y else (y.shape[0], 0, y.shape[2]))
        self.sum_y = y.new_zeros(self.grad_y.shape[:2])

    def add(self, block: _Block, weights: Tensor, row_sum: Tensor | None = None) -> None:
        batch, rows, cols = block[:3]
        if self.need_x:
            self.grad_x[batch, rows].baddbmm_(weights, self.y[batch, cols])
            self.sum_x[batch, rows] += weights.sum(2) if row_sum is None else row_sum
        if block.mirrored and self.need_x:
            self.grad_x[batch, cols].baddbmm_(weights.mT, self.x[batch, rows])
            self.sum_x[batch, cols] += weights.sum(1)
        if self.need_y:
            self.grad_y[batch, cols].baddbmm_(weights.mT, self.x[batch, rows])
            self.sum_y[batch, cols] += weights.sum(1)

    def results(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.grad_x, self.sum_x, self.grad_y, self.sum_y


def _operands(x: Tensor, y: Tensor | None, terms: PairTerms) -> tuple[Tensor, Tensor, PairTerms, bool]:
    """Operands in the accumulation dtype, with the columns spelt out, and whether they are the rows."""
    x = x.to(accumulate_dtype(x.dtype)).contiguous()
    # Log-weights that are all zero cost two passes over every block. On a CPU it is free to look.
    if x.device.type == "cpu":
        terms = terms._replace(
            u=None if terms.u is None or not terms.u.any() else terms.u,
            v=None if terms.v is None or not terms.v.any() else terms.v,
        )
    if y is None:
        return x, x, terms.as_columns(), True
    return x, y.to(x.dtype).contiguous(), terms, False


def _blocks(x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, symmetric: bool) -> Iterator[_Block]:
    """Visits every block of logits once, in a fixed order; the upper triangle only where ``y`` is ``x``."""
    size = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_DEVICE
    m, n = min(size, x.shape[1]), min(size, y.shape[1])
    batch_size = max(1, min(x.shape[0], size * size // max(1, m * n)))
    buffer = x.new_empty(batch_size * m * n)
    for batch in _slices(x.shape[0], batch_size):
        in_batch = PairTerms(*(None if term is None else term[batch] for term in terms))
        for rows in _slices(x.shape[1], m):
            for cols in _slices(y.shape[1], n):
                if symmetric and cols.start < rows.start:
                    continue
                x_block, y_block = x[batch, rows], y[batch, cols]
                shape = (x_block.shape[0], x_block.shape[1], y_block.shape[1])
                logits = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
                torch.baddbmm(logits, x_block, y_block.mT, beta=0, alpha=spec.scale, out=logits)
                if in_batch.u is not None:
                    logits += in_batch.u[:, rows, None]
                if in_batch.v is not None:
                    logits += in_batch.v[:, None, cols]
                if spec.exclude == "self":  # a diagonal of the block, much cheaper than the mask
                    shift = spec.row_offset + rows.start - spec.col_offset - cols.start
                    if -shape[1] < shift < shape[2]:
                        logits.diagonal(shift, dim1=1, dim2=2).fill_(-torch.inf)
                elif (mask := excluded_pairs(in_batch, spec, rows, cols, x.device)) is not None:
                    logits.masked_fill_(mask, -torch.inf)
                yield _Block(batch, rows, cols, logits, mirrored=symmetric and cols.start > rows.start)


def _inf_for_empty(lse: Tensor) -> Tensor:
    """A row without candidates has the log-sum-exp -inf; its weights must be exp(-inf) = 0, not exp(nan)."""
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, max(step, 1)))
