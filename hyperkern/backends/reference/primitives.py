"""The primitives in plain PyTorch, block by block: the fallback on every device and the oracle of the kernels.

One loop, `_blocks`, makes every similarity. With ``y = x`` it visits the upper triangle of blocks only, and what
a primitive does with a block it does for the mirrored block too. Nothing of size M x N is ever allocated.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...spec import (
    DTYPES,
    PairSpec,
    PairTerms,
    accumulate_dtype,
    gradient_limit,
    longer_than_eps,
    norm_eps,
)
from .. import LogSumExp, Problem, log_sum_exp

# Rows and columns of a block. On a CPU a block and its operands have to stay in the cache of a core, and the product
# of a narrow block loses too much to its edges: 512 measured best, or equal within the noise, for N = 1024 ... 32768
# and D = 64 ... 1024. Elsewhere the block only has to be large enough to fill the device.
_BLOCK_CPU = 512
_BLOCK_DEVICE = 4096


_split_copy: Any = torch.split_with_sizes_copy  # declared without a result

# Batch elements, rows and columns of a block, its logits, and whether it is mirrored: with y = x, off the diagonal, it
# stands for its transpose as well. The logits ``(batch, rows, cols)`` are a buffer: who gets them may overwrite it, and
# the next block does.
_Block = tuple[slice, slice, slice, Tensor, bool]


def unsupported(problem: Problem) -> list[str]:
    """The reference serves every device and every floating dtype that the losses accept."""
    if problem.dtype not in DTYPES:
        return [f"dtype {problem.dtype} is not a floating dtype it knows"]
    return []


def unverified(problem: Problem) -> list[str]:
    """It is what the others are verified against."""
    return []


def evidence(device: torch.device) -> str:
    """That of the tests, which run on a CPU: it launches nothing but PyTorch's own kernels."""
    return "tests"


def prepare(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and reciprocal norms; each row is scaled by its largest element first, so no square overflows."""
    dtype = accumulate_dtype(x.dtype)
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=dtype)
    unit = torch.div(x, largest.masked_fill(largest == 0, 1), out=x.new_empty(x.shape, dtype=dtype))
    norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    unit.div_(norm.masked_fill(norm == 0, 1))
    return unit, (norm * largest).clamp_min_(norm_eps(x.dtype)).reciprocal_().squeeze(-1)


def normalize_backward(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
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
    # One vector for both sides; with y = x a mirrored block's columns are rows.
    lengths = [x.shape[1], y.shape[1] if need_cols and not symmetric else 0]
    sums = x.new_zeros(x.shape[0], sum(lengths))
    tops = None if spec.bounded else torch.full_like(sums, -torch.inf)  # the maxima that sums are relative to
    row_sum, col_sum = (sums, sums) if symmetric else sums.split_with_sizes(lengths, 1)
    row_top, col_top = (tops, tops) if symmetric or tops is None else tops.split_with_sizes(lengths, 1)
    for batch, rows, cols, logits, mirrored in _blocks(x, y, terms, spec, symmetric):
        cols_too = mirrored if symmetric else need_cols
        if row_top is None or col_top is None:
            kernel = logits.exp_()
            row_sum[batch, rows] += kernel.sum(2)
            if cols_too:
                col_sum[batch, cols] += kernel.sum(1)
        else:
            _add_relative(row_sum[batch, rows], row_top[batch, rows], logits, 2)
            if cols_too:
                _add_relative(col_sum[batch, cols], col_top[batch, cols], logits, 1)
    lse, rounding = log_sum_exp(sums, tops)
    # Copies: tensors that an operator returns may not share their memory.
    row_lse, col_lse = _split_copy(lse, lengths, 1)
    row_rounding, col_rounding = _split_copy(rounding, lengths, 1)
    return LogSumExp(row_lse, col_lse, row_rounding, col_rounding)


def _add_relative(sums: Tensor, top: Tensor, logits: Tensor, dim: int) -> None:
    new_top = torch.maximum(top, logits.amax(dim))
    base = new_top.masked_fill(new_top == -torch.inf, 0)
    sums.mul_((top - base).exp_()).add_((logits - base.unsqueeze(dim)).exp_().sum(dim))
    top.copy_(new_top)


def pair_grad(
    x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec,
    row_lse: Tensor, col_lse: Tensor | None, a: Tensor, b: Tensor | None, *, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The weighted sums of rows and columns; in the bounded regime one exponential serves both weights."""
    x, y, terms, symmetric = _operands(x, y, terms)
    if symmetric:
        col_lse, b = row_lse, a
    sums = _WeightedSums(x, y, need_x, need_y)
    # A row without candidates has the log-sum-exp -inf; its weights must be exp(-inf) = 0, not exp(nan).
    row_lse = row_lse.masked_fill(row_lse == -torch.inf, torch.inf)
    a, row_lse = a.unsqueeze(2), row_lse.unsqueeze(2)
    if b is not None and col_lse is not None:
        b, col_lse = b.unsqueeze(1), col_lse.masked_fill(col_lse == -torch.inf, torch.inf).unsqueeze(1)
    if spec.bounded:  # exp(l - lse) = exp(l) exp(-lse)
        a = a * torch.exp(-row_lse)
        b = b * torch.exp(-col_lse) if b is not None and col_lse is not None else None
    for block in _blocks(x, y, terms, spec, symmetric):
        batch, rows, cols, logits, mirrored = block
        # On the diagonal the column side is the mirror image of the row side, and so are its weights: the library's
        # product does not give l_ij and l_ji the same last bit, and a row's sum holds l_ij.
        on_diagonal = symmetric and not mirrored
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
    return sums.results


def energy(
    x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, potential: str, *, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total and both gradients from one visit of each block."""
    x, y, terms, symmetric = _operands(x, y, terms)
    sums = _WeightedSums(x, y, need_x, need_y)
    row_total = x.new_zeros(x.shape[:2])
    for block in _blocks(x, y, terms, spec, symmetric):
        batch, rows, _, logits, mirrored = block
        if potential == "exp":
            value = weights = logits.exp_()
        else:
            value = torch.logaddexp(logits, logits.new_zeros(()))
            weights = logits.sigmoid_()
        row_sum = value.sum(2)
        row_total[batch, rows] += 2 * row_sum if mirrored else row_sum
        sums.add(block, weights, row_sum if value is weights else None)
    return row_total.sum(1), *sums.results


class _WeightedSums:
    """``sum_j w_ij y_j`` and ``sum_j w_ij`` for the rows, and the same for the columns, over all blocks."""

    def __init__(self, x: Tensor, y: Tensor, need_x: bool, need_y: bool) -> None:
        self.x, self.y = x, y
        self.need_x, self.need_y = need_x, need_y
        grad_x = x.new_zeros(x.shape if need_x else (x.shape[0], 0, x.shape[2]))
        grad_y = y.new_zeros(y.shape if need_y else (y.shape[0], 0, y.shape[2]))
        self.results = grad_x, x.new_zeros(grad_x.shape[:2]), grad_y, y.new_zeros(grad_y.shape[:2])

    def add(self, block: _Block, weights: Tensor, row_sum: Tensor | None = None) -> None:
        batch, rows, cols, _, mirrored = block
        grad_x, sum_x, grad_y, sum_y = self.results
        if self.need_x:
            grad_x[batch, rows].baddbmm_(weights, self.y[batch, cols])
            sum_x[batch, rows] += weights.sum(2) if row_sum is None else row_sum
        if mirrored and self.need_x:
            grad_x[batch, cols].baddbmm_(weights.mT, self.x[batch, rows])
            sum_x[batch, cols] += weights.sum(1)
        if self.need_y:
            grad_y[batch, cols].baddbmm_(weights.mT, self.x[batch, rows])
            sum_y[batch, cols] += weights.sum(1)


def _operands(x: Tensor, y: Tensor | None, terms: PairTerms) -> tuple[Tensor, Tensor, PairTerms, bool]:
    """Operands in the accumulation dtype, with the columns spelt out, and whether they are the rows."""
    x = (x if x.dtype == torch.float64 else x.float()).contiguous()
    u, v, row_ids, col_ids = terms
    # Log-weights that are all zero cost two passes over every block. On a CPU it is free to look.
    if x.device.type == "cpu" and not (u is None and v is None):
        u, v = None if u is None or not u.any() else u, None if v is None or not v.any() else v
        terms = PairTerms(u, v, row_ids, col_ids)
    if y is None:
        return x, x, terms.as_columns(), True
    return x, y.to(x.dtype).contiguous(), terms, False


def _blocks(x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, symmetric: bool) -> Iterator[_Block]:
    """Visits every block of logits once, in a fixed order; the upper triangle only where ``y`` is ``x``."""
    size = _BLOCK_CPU if x.device.type == "cpu" else _BLOCK_DEVICE
    m, n = min(size, x.shape[1]), min(size, y.shape[1])
    batch_size = max(1, min(x.shape[0], size * size // max(1, m * n)))
    buffer = x.new_empty(batch_size * m * n)
    u, v, row_ids, col_ids = terms
    for batch in _slices(x.shape[0], batch_size):
        for rows in _slices(x.shape[1], m):
            for cols in _slices(y.shape[1], n):
                if symmetric and cols.start < rows.start:
                    continue
                x_block, y_block = x[batch, rows], y[batch, cols]
                shape = (x_block.shape[0], x_block.shape[1], y_block.shape[1])
                logits = buffer[: shape[0] * shape[1] * shape[2]].view(shape)
                torch.baddbmm(logits, x_block, y_block.mT, beta=0, alpha=spec.scale, out=logits)
                if u is not None:
                    logits += u[batch, rows, None]
                if v is not None:
                    logits += v[batch, None, cols]
                # Blocks of rows and columns are of one size, unless one is all there are: the diagonal hits its own.
                if spec.exclude == "self" and rows.start == cols.start:  # much cheaper than a mask
                    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
                elif spec.exclude == "same_id":
                    assert row_ids is not None
                    assert col_ids is not None
                    logits.masked_fill_(row_ids[batch, rows, None] == col_ids[batch, None, cols], -torch.inf)
                yield batch, rows, cols, logits, symmetric and cols.start > rows.start


@functools.lru_cache(maxsize=256)
def _slices(length: int, step: int) -> tuple[slice, ...]:
    return tuple([slice(start, min(start + step, length)) for start in range(0, length, max(step, 1))])
