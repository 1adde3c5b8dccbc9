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
    load_ids,
    load_log_weights,
    load_rows,
    load_vector,
    logits,
    masked_tiles,
    narrow,
    natural,
    positives,
    similarity,
    weights,
)


@triton.jit
def _add_tile(
    b_grad,
    b_sum,
    b_value,
    i_n,
    b_x,
    p_y,
    p_v,
    p_col_ids,
    p_col_lse,
    p_b,
    p_col_share,
    o_m,
    o_d,
    b_u,
    b_row_ids,
    b_a,
    b_row_lse,
    b_share,
    m,
    n,
    stride_yn,
    row_shift,
    scale,
    shift,
    HAS_U: tl.constexpr,
    HAS_A: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MODE: tl.constexpr,
    LOG2: tl.constexpr,
    PRECISION: tl.constexpr,
    MASK: tl.constexpr,
):
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    p_tile = p_y + (i_n * BLOCK_N).to(tl.int64) * stride_yn
    b_y = load_rows(p_tile, tl.arange(0, BLOCK_N), o_d, n - i_n * BLOCK_N, stride_yn, DIM, DIM == BLOCK_D, MASK)
    b_s = similarity(
        b_x, b_y, p_y, p_y, o_m, o_n, m, n, stride_yn, stride_yn, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    b_v = load_log_weights(p_v, o_n, n, LOG2, MASK)
    b_col_ids = load_ids(p_col_ids, o_n, n, MASK)
    b_l = logits(
        b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, row_shift, scale, HAS_U, p_v is not None, EXCLUDE, MASK
    )
    b_b = load_vector(p_b, o_n, n, 0.0, MASK)
    b_col_lse = load_vector(p_col_lse, o_n, n, INF, MASK)
    b_w, b_phi = weights(b_l, b_a, b_row_lse, b_b, b_col_lse, shift, HAS_A, p_b is not None, MODE, LOG2)
    if p_col_share is not None:
        # In float32: what is rounded is the small difference, and the weights of an anchor add up to 0 before.
        b_shares = b_share[:, None] + load_vector(p_col_share, o_n, n, 0.0, MASK)[None, :]
        b_w -= tl.where(positives(b_l, b_row_ids, b_col_ids, MASK), b_shares, 0.0)
    b_sum += tl.sum(b_w, 1)
    if MODE == "softplus":
        b_value += tl.sum(b_phi, 1)
    b_grad = dot(narrow(b_w, b_y.dtype), b_y, b_grad, PRECISION)
    return b_grad, b_sum, b_value


@triton.jit
def _contract_block(
    p_x,
    p_y,
    p_u,
    p_v,
    p_row_ids,
    p_col_ids,
    p_row_lse,
    p_a,
    p_col_lse,
    p_b,
    p_row_share,
    p_col_share,
    p_grad,
    p_sum,
    p_value,
    i_m,
    i_split,
    m,
    n,
    splits,
    stride_xm,
    stride_yn,
    stride_gm,
    row_shift,
    scale,
    shift,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MODE: tl.constexpr,
    LOG2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows against a range of columns of one batch element; outputs from the range's first row on."""
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.arange(0, BLOCK_D)
    # Offsets inside of the block are small numbers, which take fewer registers.
    p_x += (i_m * BLOCK_M).to(tl.int64) * stride_xm
    b_x = load_rows(p_x, tl.arange(0, BLOCK_M), o_d, m - i_m * BLOCK_M, stride_xm, DIM, DIM == BLOCK_D, True)
    b_u = load_log_weights(p_u, o_m, m, LOG2, True)
    b_row_ids = load_ids(p_row_ids, o_m, m, True)
    b_a, b_row_lse = load_vector(p_a, o_m, m, 0.0, True), load_vector(p_row_lse, o_m, m, INF, True)
    b_share = load_vector(p_row_share, o_m, m, 0.0, True)
    # Factors of rows alone can wait, but float16 may not hold the weights without them.
    ROWS_LAST: tl.constexpr = (
        MODE == "bounded" and p_a is not None and p_b is None and p_y.dtype.element_ty != tl.float16
    )
    HAS_A: tl.constexpr = p_a is not None and not ROWS_LAST
    b_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    b_sum = tl.zeros((BLOCK_M,), tl.float32)
    b_value = tl.zeros((BLOCK_M,), tl.float32)

    tiles = tl.cdiv(n, BLOCK_N)
    t_start = (i_split.to(tl.int64) * tiles // splits).to(tl.int32)
    t_stop = ((i_split + 1).to(tl.int64) * tiles // splits).to(tl.int32)
    lo, hi, ragged = masked_tiles(i_m * BLOCK_M, row_shift, n, t_start, t_stop, BLOCK_M, BLOCK_N, EXCLUDE)
    for i_tile in range(hi - lo + ragged):
        i_n = tl.where(i_tile < hi - lo, lo + i_tile, t_stop - 1)
        b_grad, b_sum, b_value = _add_tile(
            b_grad, b_sum, b_value, i_n,
            b_x, p_y, p_v, p_col_ids, p_col_lse, p_b, p_col_share,
            o_m, o_d, b_u, b_row_ids, b_a, b_row_lse, b_share,
            m, n, stride_yn, row_shift, scale, shift,
            p_u is not None, HAS_A, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION, True,
        )  # fmt: skip
    if EXCLUDE != "same_id":
        for i_tile in range(t_start, t_stop - ragged - (hi - lo)):
            i_n = tl.where(i_tile < lo, i_tile, i_tile + (hi - lo))
            b_grad, b_sum, b_value = _add_tile(
                b_grad, b_sum, b_value, i_n,
                b_x, p_y, p_v, p_col_ids, p_col_lse, p_b, p_col_share,
                o_m, o_d, b_u, b_row_ids, b_a, b_row_lse, b_share,
                m, n, stride_yn, row_shift, scale, shift,
                p_u is not None, HAS_A, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION, False,
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


@triton.jit(do_not_specialize=["m", "n", "splits", "row_shift", "batch"])
def contract_kernel(
    p_x,
    p_y,
    p_u,
    p_v,
    p_row_ids,
    p_col_ids,
    p_row_lse,
    p_a,
    p_col_lse,
    p_b,
    p_grad,
    p_sum,
    p_value,
    batch,
    m,
    n,
    splits,
    stride_xb,
    stride_xm,
    stride_yb,
    stride_yn,
    stride_gm,
    row_shift,
    scale,
    shift,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MODE: tl.constexpr,
    LOG2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``sum_j w_ij y_j`` ``(splits, B, M, D)``, ``sum_j w_ij`` and, for softplus, ``sum_j phi_ij`` ``(splits, B, M)``.

    ``x``, ``y`` have unit stride along D; the vectors and outputs are contiguous but for the row stride of the
    gradient. A program serves one block of rows of one batch element and one of ``splits`` ranges of columns.
    """
    blocks = tl.cdiv(m, BLOCK_M)
    i_m = tl.program_id(0) % blocks
    i_split = tl.program_id(0) // blocks % splits
    i_b = (tl.program_id(0) // blocks // splits).to(tl.int64)
    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    if p_u is not None:
        p_u += i_b * m
    if p_v is not None:
        p_v += i_b * n
    if EXCLUDE == "same_id":
        p_row_ids += i_b * m
        p_col_ids += i_b * n
    if p_a is not None:
        p_a += i_b * m
    if p_b is not None:
        p_b += i_b * n
    if p_row_lse is not None:
        p_row_lse += i_b * m
    if p_col_lse is not None:
        p_col_lse += i_b * n
    out = (i_split * batch + i_b) * m
    _contract_block(
        p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, None, None,
        p_grad + out * stride_gm, p_sum + out, p_value + out,
        i_m, i_split, m, n, splits, stride_xm, stride_yn, stride_gm, row_shift, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        *("batch", "rows", "programs", "m_0", "n_0", "row_0", "col_0", "shift_0", "splits_0"),
        *("m_1", "n_1", "row_1", "col_1", "shift_1", "splits_1"),
    ]
)
def contract_sides_kernel(
    p_rows,
    p_u,
    p_lse,
    p_factor,
    p_classes,
    p_share,
    p_grad,
    p_sum,
    p_value,
    batch,
    rows,
    programs,
    m_0,
    n_0,
    row_0,
    col_0,
    shift_0,
    splits_0,
    m_1,
    n_1,
    row_1,
    col_1,
    shift_1,
    splits_1,
    scale,
    shift,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MODE: tl.constexpr,
    LOG2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Two contractions of rows of one operand ``(B, rows, D)``, those of both sides: the first ``programs`` programs
    take ``m_0`` rows from ``row_0`` on against ``n_0`` from ``col_0`` on, the others likewise.

    Outputs as those of `contract_kernel`, the second behind the first. The vectors are ``(B, rows)``, for rows and
    columns, but for the log-weights, which are those of rows; shares are those of positives, the pairs of one class.
    ``shift_0`` is the row shift of the exclusion.
    """
    second = tl.program_id(0) >= programs
    i_program = tl.where(second, tl.program_id(0) - programs, tl.program_id(0))
    m, n = tl.where(second, m_1, m_0), tl.where(second, n_1, n_0)
    splits, row_shift = tl.where(second, splits_1, splits_0), tl.where(second, shift_1, shift_0)
    blocks = tl.cdiv(m, BLOCK_M)
    i_m = i_program % blocks
    i_split = i_program // blocks % splits
    i_b = (i_program // blocks // splits).to(tl.int64)
    row = i_b * rows + tl.where(second, row_1, row_0)
    col = i_b * rows + tl.where(second, col_1, col_0)
    out = tl.where(second, splits_0.to(tl.int64) * batch * m_0, 0) + (i_split * batch + i_b) * m
    if p_u is not None:
        p_u += row
    p_row_lse, p_a, p_col_lse, p_b = p_lse, p_factor, p_lse, p_factor
    if p_lse is not None:
        p_row_lse += row
        p_col_lse += col
    if p_factor is not None:
        p_a += row
        p_b += col
    p_row_ids, p_col_ids, p_row_share, p_col_share = p_classes, p_classes, p_share, p_share
    if p_share is not None:
        p_row_ids += row
        p_col_ids += col
        p_row_share += row
        p_col_share += col
    _contract_block(
        p_rows + row * DIM, p_rows + col * DIM, p_u, None, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b,
        p_row_share, p_col_share,
        p_grad + out * DIM, p_sum + out, p_value + out,
        i_m, i_split, m, n, splits, DIM, DIM, DIM, row_shift, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, PRECISION,
    )  # fmt: skip
