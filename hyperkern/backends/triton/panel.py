"""`panel_kernel`: the weights of a panel of pairs, stored for the library's matrix product.

Where a row is too long to keep a block's gradient in registers (D > 256) the second product is left to the library.
A panel is a limited workspace: of a large problem a part, of a small one all pairs.
"""

import triton
import triton.language as tl

from .tile import (
    INF,
    load_ids,
    load_log_weights,
    load_vector,
    load_whole,
    logits,
    narrow,
    natural,
    positives,
    similarity,
    weights,
)


@triton.jit(
    do_not_specialize=["m", "n", "batch", "row_shift", "stride_row_b", "stride_col_b"],
    # Those of whole losses start at any row.
    do_not_specialize_on_alignment=[
        *("p_u", "p_v", "p_row_ids", "p_col_ids", "p_row_lse", "p_a", "p_col_lse", "p_b", "p_row_share", "p_col_share")
    ],
)
def panel_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, p_row_share, p_col_share,
    p_weights, p_row_sum, p_col_sum, p_value,
    batch, m, n, stride_xb, stride_xm, stride_yb, stride_yn, stride_row_b, stride_col_b, stride_wb, stride_wm,
    row_shift, scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
    EXCLUDE: tl.constexpr, MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Weights ``(B, M, N)``, whose rows have room for N rounded up to a multiple of 16; and for each tile its row sums
    ``(tiles of N, B, M)`` and column sums ``(of M, B, N)``, where they are wanted.

    For softplus also the row sums of the potential, like the row sums. The vectors of rows have the batch stride
    ``stride_row_b``, those of columns ``stride_col_b``; shares are those of positives, the pairs of equal ids. A
    program makes one tile.
    """
    blocks_m, blocks_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    i_b = (tl.program_id(0) // (blocks_m * blocks_n)).to(tl.int64)
    i_tile = tl.program_id(0) % (blocks_m * blocks_n)
    # Programs that run together share their rows and columns in the L2 cache: GROUP row blocks by all columns.
    group_start = i_tile // (GROUP * blocks_n) * GROUP
    group_rows = tl.minimum(blocks_m - group_start, GROUP)
    i_m = group_start + i_tile % (GROUP * blocks_n) % group_rows
    i_n = i_tile % (GROUP * blocks_n) // group_rows
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)

    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    row, col = i_b * stride_row_b, i_b * stride_col_b
    b_x = load_whole(p_x, o_m, m, stride_xm, DIM, BLOCK_D, True)
    b_y = load_whole(p_y, o_n, n, stride_yn, DIM, BLOCK_D, True)
    b_s = similarity(
        b_x, b_y, p_x, p_y, o_m, o_n, m, n, stride_xm, stride_yn, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    # Behind the product, which needs the registers; in another order they spill.
    b_a, b_row_lse = load_vector(p_a, row, o_m, m, 0.0, True), load_vector(p_row_lse, row, o_m, m, INF, True)
    b_b, b_col_lse = load_vector(p_b, col, o_n, n, 0.0, True), load_vector(p_col_lse, col, o_n, n, INF, True)
    b_u, b_v = load_log_weights(p_u, row, o_m, m, LOG2, True), load_log_weights(p_v, col, o_n, n, LOG2, True)
    b_row_ids, b_col_ids = load_ids(p_row_ids, row, o_m, m, True), load_ids(p_col_ids, col, o_n, n, True)
    b_l = logits(
        b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, row_shift, scale,
        p_u is not None, p_v is not None, EXCLUDE, True,
    )  # fmt: skip
    b_w, b_phi = weights(b_l, b_a, b_row_lse, b_b, b_col_lse, shift, p_a is not None, p_b is not None, MODE, LOG2)
    m_rows, m_cols = o_m < m, o_n < n
    if p_row_share is not None:
        # In float32: what is rounded is the small difference, and the weights of an anchor add up to 0 before.
        b_shares = load_vector(p_row_share, row, o_m, m, 0.0, True)[:, None]
        b_shares += load_vector(p_col_share, col, o_n, n, 0.0, True)[None, :]
        b_w -= tl.where(positives(b_l, b_row_ids, b_col_ids, True), b_shares, 0.0)
    b_w = tl.where(m_rows[:, None], b_w, 0.0)

    o_row_sum = (i_n.to(tl.int64) * batch + i_b) * m + o_m
    o_col_sum = (i_m.to(tl.int64) * batch + i_b) * n + o_n
    if p_row_sum is not None:
        tl.store(p_row_sum + o_row_sum, tl.sum(b_w, 1), mask=m_rows)
    if p_col_sum is not None:
        tl.store(p_col_sum + o_col_sum, tl.sum(b_w, 0), mask=m_cols)
    if MODE == "softplus":
        tl.store(p_value + o_row_sum, natural(tl.sum(b_phi, 1), LOG2), mask=m_rows)
    # Rows have room for a multiple of 16 weights, of which those over the end are 0: stores are as wide as they get.
    m_room = m_rows[:, None] & (o_n < tl.cdiv(n, 16) * 16)[None, :]
    p_weights += i_b * stride_wb + (i_m * BLOCK_M).to(tl.int64) * stride_wm + i_n * BLOCK_N
    o_weights = tl.arange(0, BLOCK_M)[:, None] * stride_wm + tl.arange(0, BLOCK_N)[None, :]
    tl.store(p_weights + o_weights, narrow(b_w, p_weights.dtype.element_ty), mask=m_room)
