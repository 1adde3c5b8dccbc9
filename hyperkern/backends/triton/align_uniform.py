"""Alignment + uniformity of two views in four launches, for batches where a launch costs as much as the arithmetic.

Forward: both views are normalised and their distances summed; the pairs of both views are contracted at once; one
program per problem makes the three numbers. Backward: one kernel adds both gradients and projects them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import LossSpec, PairSpec, PairTerms, norm_eps
from ..host.precision import product_of
from .launch import Launch, launch
from .normalize import COMBINED, load_unit, project, row_block, sum_range
from .operands import Operands, architecture_of, strides, width
from .primitives import pairwise
from .tile import LN2, exp, narrow


@triton.jit
def _distance_power(b_difference, alpha, SQUARE: tl.constexpr):
    """``|d|^alpha`` of each row and its gradient of ``d``, ``alpha |d|^(alpha - 1)`` along ``d``; 0 at distance 0."""
    if SQUARE:
        b_value = tl.sum(b_difference * b_difference, 1)
        b_grad = 2.0 * b_difference
    else:
        # In units of the largest component no square over- or underflows.
        b_unit = tl.max(tl.abs(b_difference), 1)
        b_same = b_unit == 0
        b_unit = tl.where(b_same, 1.0, b_unit)
        b_scaled = b_difference / b_unit[:, None]
        b_log = 0.5 * tl.math.log2(tl.where(b_same, 1.0, tl.sum(b_scaled * b_scaled, 1)))
        b_value = tl.where(b_same, 0.0, tl.math.exp2(alpha * (tl.math.log2(b_unit) + b_log)))
        # |d|^(alpha - 2) alone would overflow for a small distance.
        b_slope = alpha * tl.math.exp2((alpha - 1.0) * (tl.math.log2(b_unit) + b_log) - b_log)
        b_grad = b_scaled * b_slope[:, None]
    return b_value, b_grad


# The numbers of zero rows stand behind the distances, at a multiple of the number of blocks.
@triton.jit(do_not_specialize=["batch", "m", "blocks", "p_zeros"])
def prepare_views_kernel(
    p_x, p_y, p_operand, p_align, p_zeros,
    batch, m, blocks, stride_xb, stride_xm, stride_xd, stride_yb, stride_ym, stride_yd, eps, alpha,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """Unit rows of both views ``(2, B, M, WIDTH)`` in the dtype of the product, with zeros behind D; and for each
    block of rows the sum of the distances ``(B, blocks)`` and the numbers of zero rows ``(2, B, blocks)``.
    """
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    o_m = i_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_rows = i_b * m + o_m
    o_d = tl.arange(0, BLOCK_D)
    m_rows = o_m < m
    mask = m_rows[:, None] & (o_d < DIM)[None, :]
    b_x, _ = load_unit(p_x, o_rows, o_d, mask, m, stride_xb, stride_xm, stride_xd, eps)
    b_y, _ = load_unit(p_y, o_rows, o_d, mask, m, stride_yb, stride_ym, stride_yd, eps)
    rows = batch.to(tl.int64) * m
    o_out = o_rows[:, None] * WIDTH + o_d[None, :]
    m_out = m_rows[:, None] & (o_d < WIDTH)[None, :]
    tl.store(p_operand + o_out, narrow(b_x, p_operand.dtype.element_ty), mask=m_out)
    tl.store(p_operand + rows * WIDTH + o_out, narrow(b_y, p_operand.dtype.element_ty), mask=m_out)

    b_distance, _ = _distance_power(b_x - b_y, alpha, SQUARE)
    o_part = i_b * blocks + i_block
    tl.store(p_align + o_part, tl.sum(tl.where(m_rows, b_distance, 0.0), 0))
    b_zero_x = tl.where(m_rows & (tl.max(tl.abs(b_x), 1) == 0), 1.0, 0.0)
    b_zero_y = tl.where(m_rows & (tl.max(tl.abs(b_y), 1) == 0), 1.0, 0.0)
    tl.store(p_zeros + o_part, tl.sum(b_zero_x, 0))
    tl.store(p_zeros + batch.to(tl.int64) * blocks + o_part, tl.sum(b_zero_y, 0))


@triton.jit
def _uniformity(p_sums, p_zeros, p_total, i_view, batch, m, blocks, cuts, t, pairs, BLOCK: tl.constexpr):
    """``log(mean of exp(-t d^2))`` of one view; its sum is kept for the gradient."""
    total = 0.0
    for i_cut in range(cuts):
        total += sum_range(p_sums + (i_cut * 2 * batch.to(tl.int64) + i_view) * m, m, BLOCK)
    # A zero row is at distance 1 from the sphere and at 0 from another one: e^t and e^2t instead of 1.
    zeros = sum_range(p_zeros + i_view * blocks, blocks, BLOCK)
    total += 2.0 * zeros * (m - zeros) * (exp(t, False) - 1.0) + zeros * (zeros - 1.0) * (exp(2.0 * t, False) - 1.0)
    tl.store(p_total + i_view, total)
    return tl.math.log2(total / pairs) * LN2 - 2.0 * t


@triton.jit(do_not_specialize=["batch", "m", "blocks", "cuts", "p_zeros"])
def combine_kernel(
    p_align, p_zeros, p_sums, p_total, p_loss, p_alignment, p_uniformity,
    batch, m, blocks, cuts, t, align_weight, uniform_weight, pairs,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss, alignment and uniformity ``(B,)`` and the sums over pairs ``(2, B)`` from the parts."""
    i_b = tl.program_id(0).to(tl.int64)
    align = sum_range(p_align + i_b * blocks, blocks, BLOCK) / m
    of_x = _uniformity(p_sums, p_zeros, p_total, i_b, batch, m, blocks, cuts, t, pairs, BLOCK)
    of_y = _uniformity(p_sums, p_zeros, p_total, batch + i_b, batch, m, blocks, cuts, t, pairs, BLOCK)
    uniform = 0.5 * (of_x + of_y)
    tl.store(p_loss + i_b, align_weight * align + uniform_weight * uniform)
    tl.store(p_alignment + i_b, align)
    tl.store(p_uniformity + i_b, uniform)


@triton.jit
def _cotangent(p_of_loss, p_of_term, weight, i_b):
    """What a term receives: directly, and through the weighted sum."""
    c = 0.0
    if p_of_loss is not None:
        c += weight * tl.load(p_of_loss + i_b)
    if p_of_term is not None:
        c += tl.load(p_of_term + i_b)
    return c


@triton.jit
def _pair_gradient(p_grad, p_total, o_rows, o_d, mask, i_view, rows, cuts, zero, c_uniform, t, WIDTH: tl.constexpr):
    """The gradient of one view's half of the uniformity with respect to its unit rows."""
    b_grad = tl.zeros(mask.shape, tl.float32)
    for i_cut in range(cuts):
        p_block = p_grad + (i_cut * 2 * rows + o_rows)[:, None] * WIDTH + o_d[None, :]
        b_grad += tl.load(p_block, mask=mask, other=0.0)
    factor = c_uniform * 2.0 * t / tl.load(p_total + i_view)
    return b_grad * tl.where(zero, factor * exp(t, False), factor)[:, None]


@triton.jit(do_not_specialize=["batch", "m", "blocks", "cuts"])
def finish_views_kernel(
    p_x, p_y, p_grad, p_total, p_of_loss, p_of_align, p_of_uniform, p_dx, p_dy,
    batch, m, blocks, cuts, stride_xb, stride_xm, stride_xd, stride_yb, stride_ym, stride_yd, eps, alpha, t,
    align_weight, uniform_weight,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    """The gradients of both inputs; their unit rows are made again, which reads less than keeping them."""
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    o_m = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_rows = i_b * m + o_m
    o_d = tl.arange(0, BLOCK_D)
    mask = (o_m < m)[:, None] & (o_d < DIM)[None, :]
    b_x, b_rstd_x = load_unit(p_x, o_rows, o_d, mask, m, stride_xb, stride_xm, stride_xd, eps)
    b_y, b_rstd_y = load_unit(p_y, o_rows, o_d, mask, m, stride_yb, stride_ym, stride_yd, eps)
    c_align = _cotangent(p_of_loss, p_of_align, align_weight, i_b)
    c_uniform = _cotangent(p_of_loss, p_of_uniform, uniform_weight, i_b)

    _, b_align = _distance_power(b_x - b_y, alpha, SQUARE)
    b_align *= c_align / m
    rows = batch.to(tl.int64) * m
    zero_x, zero_y = tl.max(tl.abs(b_x), 1) == 0, tl.max(tl.abs(b_y), 1) == 0
    b_gx = _pair_gradient(p_grad, p_total, o_rows, o_d, mask, i_b, rows, cuts, zero_x, c_uniform, t, WIDTH)
    b_gy = _pair_gradient(
        p_grad, p_total, rows + o_rows, o_d, mask, batch + i_b, rows, cuts, zero_y, c_uniform, t, WIDTH
    )
    o_out = o_rows[:, None] * DIM + o_d[None, :]
    tl.store(p_dx + o_out, project(b_gx + b_align, b_x, b_rstd_x, eps, p_dx.dtype.element_ty), mask=mask)
    tl.store(p_dy + o_out, project(b_gy - b_align, b_y, b_rstd_y, eps, p_dy.dtype.element_ty), mask=mask)


def align_uniform(
    x: Tensor, y: Tensor, spec: LossSpec, *, need_grad: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Loss, alignment and uniformity of ``(N, D)`` or ``(B, N, D)``; and what `align_uniform_grad` needs besides."""
    batch, m, dim = (1, *x.shape) if x.dim() == 2 else x.shape
    blocks = -(-m // row_block(dim)[0])
    dtype, product, kind = product_of(spec.precision, "exp", spec.scale)
    operand = torch.empty((2 * batch, m, width(dim)), dtype=dtype, device=x.device)
    parts = torch.empty((3, batch, blocks), dtype=torch.float32, device=x.device)
    align, zeros = parts[0], parts[1:]
    numbers = (batch, m, blocks, *_strides(x), *_strides(y), norm_eps(x.dtype), spec.alpha)
    rows = Launch(prepare_views_kernel, batch * blocks, numbers, None, **_shape(dim, spec.alpha))
    launch(rows, x.device, x, y, operand, align, zeros)
    pairs = PairSpec(spec.scale, bounded=True, exclude="self", precision=spec.precision)
    o = Operands(operand, operand, PairTerms(), pairs, True, kind, product, architecture_of(x, m * m))
    grad, sums = pairwise.exp_sums(o, need_grad=need_grad)
    total = parts.new_empty(2 * batch)
    # Three tensors and not three views of one, which could not be added to in place.
    results = parts.new_empty(x.shape[:-2]), parts.new_empty(x.shape[:-2]), parts.new_empty(x.shape[:-2])
    options = (spec.scale / 2, spec.align_weight, spec.uniform_weight, float(m * (m - 1)))
    head = Launch(combine_kernel, batch, (batch, m, blocks, sums.shape[0], *options), None, BLOCK=COMBINED)
    launch(head, x.device, align, zeros, sums, total, *results)
    return results, (grad, total)


def align_uniform_grad(
    x: Tensor,
    y: Tensor,
    state: tuple[Tensor, Tensor],
    spec: LossSpec,
    cotangents: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> tuple[Tensor, Tensor]:
    """The gradients of ``x`` and ``y`` from those of loss, alignment and uniformity."""
    batch, m, dim = (1, *x.shape) if x.dim() == 2 else x.shape
    blocks = -(-m // row_block(dim)[0])
    grad, total = state
    dx, dy = x.new_empty(x.shape), y.new_empty(y.shape)
    options = (spec.alpha, spec.scale / 2, spec.align_weight, spec.uniform_weight)
    numbers = (batch, m, blocks, grad.shape[0], *_strides(x), *_strides(y), norm_eps(x.dtype), *options)
    rows = Launch(finish_views_kernel, batch * blocks, numbers, None, **_shape(dim, spec.alpha))
    given = (None if c is None else c.contiguous() for c in cotangents)
    launch(rows, x.device, x, y, grad, total, *given, dx, dy)
    return dx, dy


def _strides(x: Tensor) -> tuple[int, ...]:
    return (0, *x.stride()) if x.dim() == 2 else strides(x)


def _shape(dim: int, alpha: float) -> dict[str, int]:
    block_rows, block_d = row_block(dim)
    shape = {"DIM": dim, "WIDTH": width(dim), "BLOCK_ROWS": block_rows, "BLOCK_D": block_d}
    return shape | {"SQUARE": alpha == 2}
