"""The first kernel of whole losses: all features into the operand of the pairs."""

import triton
import triton.language as tl

from .normalize import load_unit
from .tile import narrow


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
def _store_row_constants(p_u, p_factor, p_lse, p_share, o_rows, m_rows, bias):
    """What candidates that are no anchors have: the bias; no weights of their own."""
    if p_u is not None:
        tl.store(p_u + o_rows, tl.zeros(o_rows.shape, tl.float32) + bias, mask=m_rows)
    if p_factor is not None:
        tl.store(p_factor + o_rows, tl.zeros(o_rows.shape, tl.float32), mask=m_rows)
        if p_lse is not None:
            tl.store(p_lse + o_rows, tl.zeros(o_rows.shape, tl.float32), mask=m_rows)
        if p_share is not None:
            tl.store(p_share + o_rows, tl.zeros(o_rows.shape, tl.float32), mask=m_rows)


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
        "p_share",
        "p_count",
        "p_scale",
        "p_bias",
        "p_labels",
        "p_queue_labels",
        "p_classes",
    ],
)
def prepare_rows_kernel(
    p_x, p_y, p_queue, p_scale, p_bias, p_labels, p_queue_labels, p_rows, p_positive, p_zeros, p_u, p_classes, p_factor,
    p_lse, p_share, p_count, p_unit_x, p_unit_y, p_kept_scale,
    n, further, rows, blocks, blocks_further, stride_xb, stride_xm, stride_xd, stride_yb, stride_ym, stride_yd,
    stride_qb, stride_qm, stride_qd, eps, scale, bias,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr, VIEWS: tl.constexpr,
    SYMMETRIC: tl.constexpr, TEMPERATURE: tl.constexpr,
):  # fmt: skip
    """All features into one operand, and what is row-wise besides.

    Unit rows ``(B, rows, WIDTH)`` in the dtype of the product, zeros behind D, with the scale in them where it is
    a tensor; the logits of the positives ``(B, n)``; the numbers of zero rows ``(B, blocks + blocks_further)``; the
    bias, as log-weights ``(B, rows)``; the labels ``(B, rows)``; factors, maxima and shares ``(B, rows)`` of the
    candidates, 0; counters ``(B + 1,)``, 0. Each is made where its pointer is given. A program serves a block of
    anchors with their partners, or of the queue.
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
            b_x *= b_root if SYMMETRIC else b_factor
            if p_kept_scale is not None:
                tl.store(p_kept_scale, tl.load(p_scale).to(tl.float32), mask=tl.program_id(0) == 0)
        _store_operand(p_rows, b_x, o_x, o_d, m_rows, WIDTH)
        if p_u is not None:
            tl.store(p_u + o_x, tl.zeros(o_x.shape, tl.float32) + bias, mask=m_rows)
        if p_classes is not None:
            b_labels = tl.load(p_labels + i_b * n + o_m, mask=m_rows, other=0)
            tl.store(p_classes + o_x, b_labels.to(p_classes.dtype.element_ty), mask=m_rows)
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
            _store_row_constants(p_u, p_factor, p_lse, p_share, o_y, m_rows, bias)
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
            _store_row_constants(p_u, p_factor, p_lse, p_share, o_rows, m_rows, bias)
            if p_classes is not None:
                b_labels = tl.load(p_queue_labels + i_b * further + o_k, mask=m_rows, other=0)
                tl.store(p_classes + o_rows, b_labels.to(p_classes.dtype.element_ty), mask=m_rows)
