"""The last kernel of whole losses: all gradients out of the weighted sums of rows."""

import triton
import triton.language as tl

from .normalize import is_last, load_unit, project, sum_range
from .tile import exp
from .whole_rows import factor_of_logits


@triton.jit
def _added(p_grad, o_rows, o_d, mask, cuts, rows, WIDTH: tl.constexpr):
    """The sum of the partial results of some rows, of which each range of columns has so many."""
    b_grad = tl.zeros(mask.shape, tl.float32)
    for i_cut in range(cuts):
        p_block = p_grad + (i_cut * rows + o_rows)[:, None] * WIDTH + o_d[None, :]
        b_grad += tl.load(p_block, mask=mask, other=0.0)
    return b_grad


@triton.jit
def _gradient_factor(b_unit, c, p_total, i_b, scale):
    """What multiplies a row's weighted sum: the incoming gradient, and for an energy its logarithm's derivative.

    A row at the origin is at distance 1 from those on the sphere, where its similarity of 0 stands for more.
    """
    if p_total is None:
        b_factor = tl.zeros((b_unit.shape[0],), tl.float32) + c
    else:
        c /= tl.load(p_total + i_b)
        b_factor = tl.where(tl.max(tl.abs(b_unit), 1) == 0, c * exp(0.5 * scale, False), c)
    return b_factor[:, None]


@triton.jit(
    do_not_specialize=[
        *("batch", "n", "further", "blocks", "blocks_further", "rows_x", "rows_y", "cuts_x", "cuts_y", "first_further")
    ],
    do_not_specialize_on_alignment=[
        *("p_scale", "p_own", "p_total", "p_anchors", "p_bias_sums", "p_c", "p_dscale", "p_dbias", "p_parts", "p_count")
    ],
)
def finish_rows_kernel(
    p_x, p_y, p_queue, p_scale, p_grad_x, p_grad_y, p_grad_queue, p_own, p_total, p_anchors, p_bias_sums, p_c, p_dx,
    p_dy, p_dqueue, p_dscale, p_dbias, p_parts, p_count,
    batch, n, further, blocks, blocks_further, rows_x, rows_y, cuts_x, cuts_y, first_further, stride_xb, stride_xm,
    stride_xd, stride_yb, stride_ym, stride_yd, stride_qb, stride_qm, stride_qd, eps, scale, share, inverse_range,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VIEWS: tl.constexpr,
    SYMMETRIC: tl.constexpr, TEMPERATURE: tl.constexpr,
):  # fmt: skip
    """The gradients of all inputs that have one, from partial sums ``(cuts, B, rows, WIDTH)`` of both sides.

    The unit rows are made again, which reads less than keeping them; of inputs without a gradient they are kept.
    ``p_own (B, n)``, with views ``(B, 2 n)``, are the weights of the positives, which are not among the pairs;
    ``p_total (B,)`` is an energy, ``p_anchors (B,)`` what a loss was divided by. Of the
    gradient of the scale each program has a part; the last one adds them.
    """
    i_b = (tl.program_id(0) // (blocks + blocks_further)).to(tl.int64)
    i_block = tl.program_id(0) % (blocks + blocks_further)
    o_d = tl.arange(0, BLOCK_D)
    c = tl.load(p_c + i_b) * share
    if p_anchors is not None:
        c /= tl.load(p_anchors + i_b)
    b_factor, b_root = factor_of_logits(p_scale, scale, TEMPERATURE)
    if i_block < blocks:
        o_m = i_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        o_rows = i_b * n + o_m
        m_rows = o_m < n
        mask = m_rows[:, None] & (o_d < DIM)[None, :]
        b_x, b_rstd_x = load_unit(p_x, o_rows, o_d, mask, n, stride_xb, stride_xm, stride_xd, eps)
        b_y, b_rstd_y = b_x, b_rstd_x
        b_own = tl.zeros((BLOCK_ROWS,), tl.float32)
        if p_y is not None:
            b_y, b_rstd_y = load_unit(p_y, o_rows, o_d, mask, n, stride_yb, stride_ym, stride_yd, eps)
            p_pair = p_own + o_rows * VIEWS
            b_own = tl.load(p_pair, mask=m_rows, other=0.0)
            if VIEWS == 2:
                b_own += tl.load(p_pair + 1, mask=m_rows, other=0.0)
            b_own *= c
        o_out = o_rows[:, None] * DIM + o_d[None, :]
        b_part = 0.0
        if p_grad_x is not None:
            b_g = _added(p_grad_x, i_b * rows_x + o_m * VIEWS, o_d, mask, cuts_x, batch.to(tl.int64) * rows_x, WIDTH)
            b_g *= _gradient_factor(b_x, c * inverse_range, p_total, i_b, scale)
            if p_scale is not None and SYMMETRIC:
                b_g /= b_root  # the rows of the operand have it
            if p_y is not None:
                b_g += b_own[:, None] * b_y
            if p_dx is not None:
                tl.store(p_dx + o_out, project(b_factor * b_g, b_x, b_rstd_x, eps, p_dx.dtype.element_ty), mask=mask)
            b_part += tl.sum(tl.sum(b_g * b_x, 1), 0)
            if p_y is None and SYMMETRIC:
                b_part *= 0.5  # each pair from either side
        if p_y is not None and (p_dy is not None or VIEWS == 2):
            b_g = tl.zeros(mask.shape, tl.float32)
            if p_grad_y is not None:
                first = 1 if VIEWS == 2 else 0
                o_g = i_b * rows_y + o_m * VIEWS + first
                b_g = _added(p_grad_y, o_g, o_d, mask, cuts_y, batch.to(tl.int64) * rows_y, WIDTH)
                b_g *= c * inverse_range
            if p_scale is not None and VIEWS == 1:  # it is in the rows of x
                b_g += (b_factor * b_own)[:, None] * b_x
            else:
                if p_scale is not None:
                    b_g /= b_root
                b_g += b_own[:, None] * b_x
                if VIEWS == 2:
                    b_part = 0.5 * (b_part + tl.sum(tl.sum(b_g * b_y, 1), 0))  # each pair from either side
                b_g *= b_factor
            if p_dy is not None:
                tl.store(p_dy + o_out, project(b_g, b_y, b_rstd_y, eps, p_dy.dtype.element_ty), mask=mask)
        if p_dscale is not None:
            tl.store(p_parts + i_b * blocks + i_block, b_part)
            if is_last(p_count, batch * blocks):
                b_dscale = sum_range(p_parts, batch * blocks, 1024)
                if TEMPERATURE:
                    b_dscale *= -b_factor * b_factor
                tl.store(p_dscale, b_dscale)
    else:
        if p_dqueue is not None:
            o_k = (i_block - blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            o_rows = i_b * further + o_k
            mask = (o_k < further)[:, None] & (o_d < DIM)[None, :]
            b_q, b_rstd_q = load_unit(p_queue, o_rows, o_d, mask, further, stride_qb, stride_qm, stride_qd, eps)
            o_g = i_b * rows_y + first_further + o_k
            b_g = _added(p_grad_queue, o_g, o_d, mask, cuts_y, batch.to(tl.int64) * rows_y, WIDTH)
            b_g *= _gradient_factor(b_q, c * inverse_range, p_total, i_b, scale)
            if p_scale is None:
                b_g *= b_factor
            o_out = o_rows[:, None] * DIM + o_d[None, :]
            tl.store(p_dqueue + o_out, project(b_g, b_q, b_rstd_q, eps, p_dqueue.dtype.element_ty), mask=mask)
    if p_dbias is not None:  # noqa: SIM102
        if tl.program_id(0) == 0:
            b_dbias = 0.0
            for i in range(batch):
                b_dbias += tl.load(p_c + i) * share * tl.load(p_bias_sums + i)
            tl.store(p_dbias, b_dbias)
