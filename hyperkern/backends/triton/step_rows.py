"""The row-wise kernels of whole losses: all features into the operand of the pairs, and all gradients out of it."""

import triton
import triton.language as tl

from .rows import is_last, load_unit, project, sum_range
from .tile import exp, narrow


@triton.jit
def factor_of_logits(p_scale, scale, TEMPERATURE: tl.constexpr):
    """The factor of the inner products, a number or of a tensor, and its root."""
    if p_scale is None:
        b_factor, b_root = scale, scale
    else:
        b_factor = tl.load(p_scale).to(tl.float32)
        if TEMPERATURE:
            b_factor = tl.math.div_rn(1.0, b_factor)
        b_root = tl.math.sqrt_rn(b_factor)
    return b_factor, b_root


@triton.jit
def _store_operand(p_rows, b_unit, o_rows, o_d, m_rows, WIDTH: tl.constexpr):
    p_block = p_rows + o_rows[:, None] * WIDTH + o_d[None, :]
    tl.store(p_block, narrow(b_unit, p_rows.dtype.element_ty), mask=m_rows[:, None] & (o_d < WIDTH)[None, :])


@triton.jit
def _store_row_constants(p_u, p_factor, p_lse, o_rows, m_rows, bias):
    """What candidates that are no anchors have: the bias; no weights of their own."""
    if p_u is not None:
        tl.store(p_u + o_rows, tl.zeros(o_rows.shape, tl.float32) + bias, mask=m_rows)
    if p_factor is not None:
        tl.store(p_factor + o_rows, tl.zeros(o_rows.shape, tl.float32), mask=m_rows)
        if p_lse is not None:
            tl.store(p_lse + o_rows, tl.zeros(o_rows.shape, tl.float32), mask=m_rows)


@triton.jit
def _store_zeros(p_zeros, b_unit, m_rows):
    if p_zeros is not None:
        b_zero = tl.where(m_rows & (tl.max(tl.abs(b_unit), 1) == 0), 1.0, 0.0)
        tl.store(p_zeros, tl.sum(b_zero, 0))


@triton.jit(
    do_not_specialize=["n", "further", "rows", "blocks", "blocks_further"],
    do_not_specialize_on_alignment=[
        "p_positive",
        "p_zeros",
        "p_u",
        "p_factor",
        "p_lse",
        "p_count",
        "p_scale",
        "p_bias",
    ],
)
def prepare_rows_kernel(
    p_x,
    p_y,
    p_queue,
    p_scale,
    p_bias,
    p_rows,
    p_positive,
    p_zeros,
    p_u,
    p_factor,
    p_lse,
    p_count,
    p_unit_x,
    p_unit_y,
    p_kept_scale,
    n,
    further,
    rows,
    blocks,
    blocks_further,
    stride_xb,
    stride_xm,
    stride_xd,
    stride_yb,
    stride_ym,
    stride_yd,
    stride_qb,
    stride_qm,
    stride_qd,
    eps,
    scale,
    bias,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VIEWS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
):
    """All features into one operand, and what is row-wise besides.

    Unit rows ``(B, rows, WIDTH)`` in the dtype of the product, zeros behind D, with the scale in them where it is
    a tensor; the logits of the positives ``(B, n)``; the numbers of zero rows ``(B, blocks + blocks_further)``; the
    bias, as log-weights ``(B, rows)``; factors and maxima ``(B, rows)`` of the candidates, 0; counters ``(B + 1,)``, 0.
    Each is made where its pointer is given. A program serves a block of anchors with their partners, or of the queue.
    """
    i_b = (tl.program_id(0) // (blocks + blocks_further)).to(tl.int64)
    i_block = tl.program_id(0) % (blocks + blocks_further)
    o_d = tl.arange(0, BLOCK_D)
    if i_block == 0:
        tl.store(p_count + 1 + i_b, 0)
        tl.store(p_count, 0, mask=i_b == 0)
    if p_bias is not None:
        bias = tl.load(p_bias).to(tl.float32)
    if p_zeros is not None:
        p_zeros += i_b * (blocks + blocks_further) + i_block
    if i_block < blocks:
        o_m = i_block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        m_rows = o_m < n
        mask = m_rows[:, None] & (o_d < DIM)[None, :]
        o_x = i_b * rows + o_m * VIEWS
        b_x, _ = load_unit(p_x, i_b * n + o_m, o_d, mask, n, stride_xb, stride_xm, stride_xd, eps)
        _store_zeros(p_zeros, b_x, m_rows)
        o_unit = (i_b * n + o_m)[:, None] * DIM + o_d[None, :]
        if p_unit_x is not None:
            tl.store(p_unit_x + o_unit, b_x, mask=mask)
        b_factor, b_root = factor_of_logits(p_scale, scale, TEMPERATURE)
        if p_scale is not None:
            b_x *= b_root if VIEWS == 2 else b_factor
            if p_kept_scale is not None:
                tl.store(p_kept_scale, tl.load(p_scale).to(tl.float32), mask=tl.program_id(0) == 0)
        _store_operand(p_rows, b_x, o_x, o_d, m_rows, WIDTH)
        if p_u is not None:
            tl.store(p_u + o_x, tl.zeros(o_x.shape, tl.float32) + bias, mask=m_rows)
        if p_y is not None:
            o_y = o_x + 1 if VIEWS == 2 else o_x + n
            b_y, _ = load_unit(p_y, i_b * n + o_m, o_d, mask, n, stride_yb, stride_ym, stride_yd, eps)
            if p_unit_y is not None:
                tl.store(p_unit_y + o_unit, b_y, mask=mask)
            if p_scale is not None and VIEWS == 2:
                b_y *= b_root
            _store_operand(p_rows, b_y, o_y, o_d, m_rows, WIDTH)
            b_positive = tl.sum(b_x * b_y, 1)
            if p_scale is None:
                b_positive *= scale
            tl.store(p_positive + i_b * n + o_m, b_positive, mask=m_rows)
            _store_row_constants(p_u, p_factor, p_lse, o_y, m_rows, bias)
    else:
        if p_queue is not None:
            o_k = (i_block - blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
            m_rows = o_k < further
            mask = m_rows[:, None] & (o_d < DIM)[None, :]
            o_rows = (i_b + 1) * rows - further + o_k
            b_rows, _ = load_unit(
                p_queue, i_b * further + o_k, o_d, mask, further, stride_qb, stride_qm, stride_qd, eps
            )
            _store_zeros(p_zeros, b_rows, m_rows)
            _store_operand(p_rows, b_rows, o_rows, o_d, m_rows, WIDTH)
            _store_row_constants(p_u, p_factor, p_lse, o_rows, m_rows, bias)


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
        *("p_scale", "p_own", "p_total", "p_bias_sums", "p_c", "p_dscale", "p_dbias", "p_parts", "p_count")
    ],
)
def finish_rows_kernel(
    p_x,
    p_y,
    p_queue,
    p_scale,
    p_grad_x,
    p_grad_y,
    p_grad_queue,
    p_own,
    p_total,
    p_bias_sums,
    p_c,
    p_dx,
    p_dy,
    p_dqueue,
    p_dscale,
    p_dbias,
    p_parts,
    p_count,
    batch,
    n,
    further,
    blocks,
    blocks_further,
    rows_x,
    rows_y,
    cuts_x,
    cuts_y,
    first_further,
    stride_xb,
    stride_xm,
    stride_xd,
    stride_yb,
    stride_ym,
    stride_yd,
    stride_qb,
    stride_qm,
    stride_qd,
    eps,
    scale,
    share,
    inverse_range,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    VIEWS: tl.constexpr,
    TEMPERATURE: tl.constexpr,
):
    """The gradients of all inputs that have one, from partial sums ``(cuts, B, rows, WIDTH)`` of both sides.

    The unit rows are made again, which reads less than keeping them; of inputs without a gradient they are kept.
    ``p_own (B, n)``, with views ``(B, 2 n)``, are the weights of the positives, which are not among the pairs;
    ``p_total (B,)`` is an energy. Of the gradient of the scale each program has a part; the last one adds them.
    """
    i_b = (tl.program_id(0) // (blocks + blocks_further)).to(tl.int64)
    i_block = tl.program_id(0) % (blocks + blocks_further)
    o_d = tl.arange(0, BLOCK_D)
    c = tl.load(p_c + i_b) * share
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
            if p_scale is not None and VIEWS == 2:
                b_g /= b_root  # the rows of the operand have it
            if p_y is not None:
                b_g += b_own[:, None] * b_y
            if p_dx is not None:
                tl.store(p_dx + o_out, project(b_factor * b_g, b_x, b_rstd_x, eps, p_dx.dtype.element_ty), mask=mask)
            b_part += tl.sum(tl.sum(b_g * b_x, 1), 0)
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
