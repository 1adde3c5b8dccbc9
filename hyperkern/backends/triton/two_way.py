"""`two_way_sums_kernel`: sums of exponentials over rows and over columns at once, each pair visited once.

A program holds a block of columns, and rows stream past it. Their sums stay within a warp. Those of the columns are
kept pair by pair in a tile of registers, and added up across warps once for all row tiles, not once for each.
"""

import triton
import triton.language as tl

from .tile import INF, exp, load_ids, load_log_weights, load_rows, logits, masked_tiles, similarity


@triton.jit
def _add_tile(
    b_held,
    i_m,
    p_x,
    p_y,
    b_y,
    p_u,
    p_row_ids,
    p_row,
    o_n,
    b_v,
    b_col_ids,
    m,
    n,
    stride_xm,
    stride_yn,
    row_shift,
    scale,
    beyond,
    HAS_V: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    LOG2: tl.constexpr,
    TRIANGLE: tl.constexpr,
    PRECISION: tl.constexpr,
    MASK: tl.constexpr,
):
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b_x = b_y
    if BLOCK_D >= DIM:
        p_tile = p_x + (i_m * BLOCK_M).to(tl.int64) * stride_xm
        o_d = tl.arange(0, BLOCK_D)
        b_x = load_rows(p_tile, tl.arange(0, BLOCK_M), o_d, m - i_m * BLOCK_M, stride_xm, DIM, DIM == BLOCK_D, MASK)
    b_s = similarity(
        b_x, b_y, p_x, p_y, o_m, o_n, m, n, stride_xm, stride_yn, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    b_u = load_log_weights(p_u, o_m, m, LOG2, MASK)
    b_row_ids = load_ids(p_row_ids, o_m, m, MASK)
    b_l = logits(
        b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, row_shift, scale, p_u is not None, HAS_V, EXCLUDE, MASK
    )
    if MASK:
        b_l = tl.where((o_m < m)[:, None], b_l, -INF)
    b_e = exp(b_l, LOG2)
    # Within the square on the diagonal each pair is met in both orders: there the sums of columns are all.
    m_rows = (o_m < m) & (o_m >= beyond) if TRIANGLE else o_m < m
    b_row = tl.load(p_row + o_m, mask=m_rows, other=0.0)
    tl.store(p_row + o_m, b_row + tl.sum(b_e, 1), mask=m_rows)
    return b_held + b_e


@triton.jit(do_not_specialize=["m", "n", "batch", "stripes", "splits", "row_shift"])
def two_way_sums_kernel(
    p_x,
    p_y,
    p_u,
    p_v,
    p_row_ids,
    p_col_ids,
    p_row,
    p_col,
    batch,
    m,
    n,
    stripes,
    splits,
    stride_xb,
    stride_xm,
    stride_yb,
    stride_yn,
    row_shift,
    scale,
    DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr,
    MODE: tl.constexpr,
    LOG2: tl.constexpr,
    TRIANGLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Row sums ``(parts, B, M)`` and column sums ``(splits, B, N)`` of exponentials.

    A program serves one stripe of column blocks of one batch element and one of ``splits`` ranges of rows. There are
    ``stripes`` parts, and with ``TRIANGLE`` (``y = x``, the tiles on and below the diagonal alone), which needs
    ``BLOCK_N % BLOCK_M == 0``, as many for each range.
    """
    tl.static_assert(MODE == "exp")
    i_stripe = tl.program_id(0) % stripes
    i_split = tl.program_id(0) // stripes % splits
    i_b = (tl.program_id(0) // stripes // splits).to(tl.int64)
    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    # The ranges of a triangle differ from round to round: there each range has partial sums of rows of its own.
    i_part = i_stripe + i_split * stripes if TRIANGLE else i_stripe
    p_row += (i_part * batch + i_b) * m
    p_col += (i_split * batch + i_b) * n
    if p_u is not None:
        p_u += i_b * m
    if p_v is not None:
        p_v += i_b * n
    if EXCLUDE == "same_id":
        p_row_ids += i_b * m
        p_col_ids += i_b * n

    blocks = tl.cdiv(n, BLOCK_N)
    tiles = tl.cdiv(m, BLOCK_M)
    # Its own partial sums, to be added to.
    z_start = 0 if TRIANGLE else (i_split.to(tl.int64) * tiles // splits).to(tl.int32)
    z_stop = tiles if TRIANGLE else ((i_split + 1).to(tl.int64) * tiles // splits).to(tl.int32)
    for i_m in range(z_start, z_stop):
        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(p_row + o_m, tl.zeros((BLOCK_M,), tl.float32), mask=o_m < m)
    tl.debug_barrier()
    for i_round in range(tl.cdiv(blocks, stripes)):
        # Every other round backwards: with a triangle the first blocks have more tiles.
        i_n = i_round * stripes + tl.where(i_round % 2 == 0, i_stripe, stripes - 1 - i_stripe)
        if i_n < blocks:
            o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
            if BLOCK_D >= DIM:
                b_y = load_rows(p_y, o_n, tl.arange(0, BLOCK_D), n, stride_yn, DIM, DIM == BLOCK_D, True)
            else:
                b_y = tl.zeros((1, 1), tl.float32)
            b_v = load_log_weights(p_v, o_n, n, LOG2, True)
            b_col_ids = load_ids(p_col_ids, o_n, n, True)
            b_held = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

            first = i_n * (BLOCK_N // BLOCK_M) if TRIANGLE else 0
            beyond = (i_n + 1) * BLOCK_N
            t_start = first + (i_split.to(tl.int64) * (tiles - first) // splits).to(tl.int32)
            t_stop = first + ((i_split + 1).to(tl.int64) * (tiles - first) // splits).to(tl.int32)
            lo, hi, ragged = masked_tiles(i_n * BLOCK_N, -row_shift, m, t_start, t_stop, BLOCK_N, BLOCK_M, EXCLUDE)
            if beyond > n:  # columns over the end count for no row
                lo, hi, ragged = t_start, t_stop, 0
            for i_tile in range(hi - lo + ragged):
                i_m = tl.where(i_tile < hi - lo, lo + i_tile, t_stop - 1)
                b_held = _add_tile(
                    b_held, i_m, p_x, p_y, b_y, p_u, p_row_ids, p_row, o_n, b_v, b_col_ids,
                    m, n, stride_xm, stride_yn, row_shift, scale, beyond,
                    p_v is not None, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, TRIANGLE, PRECISION, True,
                )  # fmt: skip
            if EXCLUDE != "same_id":
                for i_tile in range(t_start, t_stop - ragged - (hi - lo)):
                    i_m = tl.where(i_tile < lo, i_tile, i_tile + (hi - lo))
                    b_held = _add_tile(
                        b_held, i_m, p_x, p_y, b_y, p_u, p_row_ids, p_row, o_n, b_v, b_col_ids,
                        m, n, stride_xm, stride_yn, row_shift, scale, beyond,
                        p_v is not None, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, TRIANGLE, PRECISION, False,
                    )  # fmt: skip
            tl.store(p_col + o_n, tl.sum(b_held, 0), mask=o_n < n)
            # Another thread may have written the partial sums that the next block of columns adds to.
            tl.debug_barrier()
