"""Alignment + uniformity of two views in four launches, for batches where a launch costs as much as the arithmetic.

Forward: both views are normalised and their distances summed; the pairs of both views are contracted at once; one
block of threads per problem makes the three numbers. Backward: one kernel adds both gradients and projects them. See
``csrc/align_uniform.cuh``.
"""

import torch
from torch import Tensor

from ...spec import LossSpec, PairSpec, PairTerms, norm_eps
from ..host.precision import product_of
from .library import ops
from .operands import ALIGNMENT, Operands
from .primitives import pairwise

# Of which a block of threads makes one partial sum: kRowWarps in ``csrc/rows.cuh``.
ROWS_PER_BLOCK = 8


def align_uniform(
    x: Tensor, y: Tensor, spec: LossSpec, *, need_grad: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss, alignment and uniformity of ``(N, D)`` or ``(B, N, D)``; and what `align_uniform_grad` needs besides."""
    batch, m, dim = (1, *x.shape) if x.dim() == 2 else x.shape
    dtype, _, kind = product_of(spec.precision, "exp", spec.scale)
    per_piece = ALIGNMENT // dtype.itemsize
    operand = torch.empty((2, batch, m, dim + -dim % per_piece), dtype=dtype, device=x.device)
    parts = torch.empty((3, batch, -(-m // ROWS_PER_BLOCK)), dtype=torch.float32, device=x.device)
    align, zeros = parts[0], parts[1:]
    kernels = ops(x.device)
    kernels.prepare_views(_batched(x), _batched(y), norm_eps(x.dtype), spec.alpha, operand, align, zeros)
    pairs = PairSpec(spec.scale, bounded=True, exclude="self", precision=spec.precision)
    views = operand.view(2 * batch, m, -1)
    o = Operands(views, views, PairTerms(), pairs, True, kind)
    grad, sums = pairwise.exp_sums(o, need_grad=need_grad)
    total = parts.new_empty(2 * batch)
    # Three tensors and not three views of one, which could not be added to in place.
    results = parts.new_empty(x.shape[:-2]), parts.new_empty(x.shape[:-2]), parts.new_empty(x.shape[:-2])
    kernels.combine(
        *(align, zeros, sums, spec.scale / 2, spec.align_weight, spec.uniform_weight, total),
        *(result.view(batch) for result in results),
    )
    return results, (grad, total)


def align_uniform_grad(
    x: Tensor,
    y: Tensor,
    state: tuple[Tensor, Tensor],
    spec: LossSpec,
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """The gradients of ``x`` and ``y`` from those of loss, alignment and uniformity."""
    dx, dy = x.new_empty(x.shape), y.new_empty(y.shape)
    x, y = _batched(x), _batched(y)
    ops(x.device).finish_views(
        *(x, y, *state, *(None if c is None else c.reshape(x.shape[0]).contiguous() for c in cotangents)),
        *(norm_eps(x.dtype), spec.alpha, spec.scale / 2, spec.align_weight, spec.uniform_weight),
        *(_batched(dx), _batched(dy)),
    )
    return dx, dy


def _batched(x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == 2 else x
