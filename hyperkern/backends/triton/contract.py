"""`contract_kernel`, `contract_sides_kernel`: weighted sums of rows in one pass, attention without its maximum.

For a block of rows it walks over the column tiles; a tile of weights lives in registers, between two products that
share one tile of columns in shared memory. Each program owns its outputs: no atomics, and a fixed order of sums.
"""

import triton
import triton.language as tl

from .tile import (
    INF,
    dot,
    exp,
    load_block,
    load_ids,
    load_log_weights,
    load_vector,
    logits_of_columns,
    masked_tiles,
    narrow,
    natural,
    place,
    positives,
    range_of,
    rounds,
    tile_of,
    weights,
)


@triton.jit
def _add_tile(
    b_grad, b_sum, b_value, i_n, b_x, p_y, p_v, p_col_ids, p_col_lse, p_b, p_col_share, col,
    o_m, b_u, b_row_ids, b_a, b_row_lse, b_share, m, n, stride_yn, row_shift, scale, shift,
    HAS_U: tl.constexpr, HAS_A: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr, MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    b_l, o_n, b_y, b_col_ids = logits_of_columns(
        i_n, b_x, p_y, p_y, p_v, p_col_ids, col, o_m, b_u, b_row_ids, m, n, stride_yn, stride_yn, row_shift, scale,
        HAS_U, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, PRECISION, MASK,
    )  # fmt: skip
    b_b = load_vector(p_b, col, o_n, n, 0.0, MASK)
    b_col_lse = load_vector(p_col_lse, col, o_n, n, INF, MASK)
    b_w, b_phi = weights(b_l, b_a, b_row_lse, b_b, b_col_lse, shift, HAS_A, p_b is not None, MODE, LOG2)
    if p_col_share is not None:
        # In float32: what is rounded is the small difference, and the weights of an anchor add up to 0 before.
        b_shares = b_share[:, None] + load_vector(p_col_share, col, o_n, n, 0.0, MASK)[None, :]
        b_w -= tl.where(positives(b_l, b_row_ids, b_col_ids, MASK), b_shares, 0.0)
    b_sum += tl.sum(b_w, 1)
    if MODE == "softplus":
        b_value += tl.sum(b_phi, 1)
    b_grad = dot(narrow(b_w, b_y.dtype), b_y, b_grad, PRECISION)
    return b_grad, b_sum, b_value


@triton.jit
def _contract_block(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, p_row_share, p_col_share, row, col,
    p_grad, p_sum, p_value, i_m, i_split, m, n, splits, stride_xm, stride_yn, stride_gm, row_shift, scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of rows against a range of columns of one batch element; outputs from the range's first row on.

    Of the vectors the numbers of the rows start at ``row``, those of the columns at ``col``.
    """
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    b_x = load_block(p_x, i_m, m, stride_xm, DIM, BLOCK_M, BLOCK_D, True)
    b_u = load_log_weights(p_u, row, o_m, m, LOG2, True)
    b_row_ids = load_ids(p_row_ids, row, o_m, m, True)
    b_a, b_row_lse = load_vector(p_a, row, o_m, m, 0.0, True), load_vector(p_row_lse, row, o_m, m, INF, True)
    b_share = load_vector(p_row_share, row, o_m, m, 0.0, True)
    # Factors of rows alone can wait, but float16 may not hold the weights without them.
    ROWS_LAST: tl.constexpr = (
        MODE == "bounded" and p_a is not None and p_b is None and p_y.dtype.element_ty != tl.float16
    )
    HAS_A: tl.constexpr = p_a is not None and not ROWS_LAST
    b_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_value = tl.zeros((BLOCK_M,), tl.float32)

    t_start, t_stop = range_of(i_split, splits, 0, tl.cdiv(n, BLOCK_N))
    lo, hi, ragged = masked_tiles(i_m * BLOCK_M, row_shift, n, t_start, t_stop, BLOCK_M, BLOCK_N, EXCLUDE)
    for MASK in tl.static_range(1, -1, -1):  # the tiles with a mask, then the others
        if MASK or EXCLUDE != "same_id":
            start, stop = rounds(t_start, t_stop, lo, hi, ragged, MASK)
            for i_round in range(start, stop):
                b_grad, b_sum, b_value = _add_tile(
                    b_grad, b_sum, b_value, tile_of(i_round, t_stop, lo, hi, MASK),
                    b_x, p_y, p_v, p_col_ids, p_col_lse, p_b, p_col_share, col,
                    o_m, b_u, b_row_ids, b_a, b_row_lse, b_share, m, n, stride_yn, row_shift, scale, shift,
                    p_u is not None, HAS_A, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION, MASK,
                )  # fmt: skip

    if MODE == "exp":
        b_grad *= exp(shift, LOG2)
        b_sum *= exp(shift, LOG2)
    if ROWS_LAST:
        b_grad *= b_a[:, None]
        b_sum *= b_a
    m_rows = o_m < m
    m_grad = m_rows[:, None] & (o_d < DIM)[None, :]
    p_grad += (i_m * BLOCK_M).to(tl.int64) * stride_gm
    tl.store(p_grad + tl.arange(0, BLOCK_M)[:, None] * stride_gm + o_d[None, :], b_grad, mask=m_grad)
    tl.store(p_sum + o_m, b_sum, mask=m_rows)
    if MODE == "softplus":
        tl.store(p_value + o_m, natural(b_value, LOG2), mask=m_rows)


@triton.jit(do_not_specialize=["m", "n", "splits", "batch"])
def contract_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, p_grad, p_sum, p_value,
    batch, m, n, splits, stride_xb, stride_xm, stride_yb, stride_yn, stride_gm, scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``sum_j w_ij y_j`` ``(splits, B, M, D)``, ``sum_j w_ij`` and, for softplus, ``sum_j phi_ij`` ``(splits, B, M)``.

    ``x``, ``y`` have unit stride along D; the vectors and outputs are contiguous but for the row stride of the
    gradient. A program serves one block of rows of one batch element and one of ``splits`` ranges of columns.
    """
    i_m, i_split, i_b = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), splits)
    out = (i_split * batch + i_b) * m
    _contract_block(
        p_x + i_b * stride_xb, p_y + i_b * stride_yb,
        p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, None, None, i_b * m, i_b * n,
        p_grad + out * stride_gm, p_sum + out, p_value + out,
        i_m, i_split, m, n, splits, stride_xm, stride_yn, stride_gm, 0, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION,
    )  # fmt: skip


@triton.jit
def side_of_program(
    batch, rows, programs, m_0, n_0, row_0, col_0, shift_0, splits_0, m_1, n_1, row_1, col_1, shift_1, splits_1,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of a program of `contract_sides_kernel` the side: its place, its numbers, its first row, column and output."""
    second = tl.program_id(0) >= programs
    i_program = tl.where(second, tl.program_id(0) - programs, tl.program_id(0))
    m, n = tl.where(second, m_1, m_0), tl.where(second, n_1, n_0)
    splits, row_shift = tl.where(second, splits_1, splits_0), tl.where(second, shift_1, shift_0)
    i_m, i_split, i_b = place(i_program, tl.cdiv(m, BLOCK_M), splits)
    row = i_b * rows + tl.where(second, row_1, row_0)
    col = i_b * rows + tl.where(second, col_1, col_0)
    out = tl.where(second, splits_0.to(tl.int64) * batch * m_0, 0) + (i_split * batch + i_b) * m
    return i_m, i_split, m, n, splits, row_shift, row, col, out


@triton.jit(
    do_not_specialize=[
        *("batch", "rows", "programs", "m_0", "n_0", "row_0", "col_0", "shift_0", "splits_0"),
        *("m_1", "n_1", "row_1", "col_1", "shift_1", "splits_1"),
    ]
)
def contract_sides_kernel(
    p_rows, p_u, p_lse, p_factor, p_classes, p_share, p_grad, p_sum, p_value,
    batch, rows, programs, m_0, n_0, row_0, col_0, shift_0, splits_0, m_1, n_1, row_1, col_1, shift_1, splits_1,
    scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Two contractions of rows of one operand ``(B, rows, D)``, those of both sides: the first ``programs`` programs
    take ``m_0`` rows from ``row_0`` on against ``n_0`` from ``col_0`` on, the others likewise.

    Outputs as those of `contract_kernel`, the second behind the first. The vectors are ``(B, rows)``, for rows and
    columns, but for the log-weights, which are those of rows; shares are those of positives, the pairs of one class.
    ``shift_0`` is the row shift of the exclusion.
    """
    i_m, i_split, m, n, splits, row_shift, row, col, out = side_of_program(
        batch, rows, programs, m_0, n_0, row_0, col_0, shift_0, splits_0, m_1, n_1, row_1, col_1, shift_1, splits_1,
        BLOCK_M,
    )  # fmt: skip
    _contract_block(
        p_rows + row * DIM, p_rows + col * DIM,
        p_u, None, p_classes, p_classes, p_lse, p_factor, p_lse, p_factor, p_share, p_share, row, col,
        p_grad + out * DIM, p_sum + out, p_value + out,
        i_m, i_split, m, n, splits, DIM, DIM, DIM, row_shift, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION,
    )  # fmt: skip
