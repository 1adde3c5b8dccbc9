"""`two_way_sums_kernel`: sums of exponentials over rows and over columns at once, each pair visited once.

A program holds a block of columns, and rows stream past it. Their sums stay within a warp. Those of the columns are
kept pair by pair in a tile of registers, and added up across warps once for all row tiles, not once for each.
"""

import triton
import triton.language as tl

from .tile import (
    INF,
    exp,
    load_block,
    load_ids,
    load_log_weights,
    load_whole,
    logits,
    masked_tiles,
    place,
    range_of,
    rounds,
    similarity,
    tile_of,
)


@triton.jit
def _add_tile(
    b_held, i_m, p_x, p_y, b_y, p_u, p_row_ids, row, p_row, o_n, b_v, b_col_ids,
    m, n, stride_xm, stride_yn, scale, beyond,
    HAS_V: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr, LOG2: tl.constexpr, TRIANGLE: tl.constexpr, PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    b_x = load_block(p_x, i_m, m, stride_xm, DIM, BLOCK_M, BLOCK_D, MASK)
    b_s = similarity(
        b_x, b_y, p_x, p_y, o_m, o_n, m, n, stride_xm, stride_yn, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    b_u = load_log_weights(p_u, row, o_m, m, LOG2, MASK)
    b_row_ids = load_ids(p_row_ids, row, o_m, m, MASK)
    b_l = logits(b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, 0, scale, p_u is not None, HAS_V, EXCLUDE, MASK)
    if MASK:
        b_l = tl.where((o_m < m)[:, None], b_l, -INF)
    b_e = exp(b_l, LOG2)
    # Within the square on the diagonal each pair is met in both orders: there the sums of columns are all.
    m_rows = (o_m < m) & (o_m >= beyond) if TRIANGLE else o_m < m
    b_row = tl.load(p_row + o_m, mask=m_rows, other=0.0)
    tl.store(p_row + o_m, b_row + tl.sum(b_e, 1), mask=m_rows)
    return b_held + b_e


@triton.jit(do_not_specialize=["m", "n", "batch", "stripes", "splits"])
def two_way_sums_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_top, p_row, p_col_top, p_col, p_classes, p_positives,
    batch, m, n, stripes, splits, stride_xb, stride_xm, stride_yb, stride_yn, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, TRIANGLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row sums ``(parts, B, M)`` and column sums ``(splits, B, N)`` of exponentials.

    A program serves one stripe of column blocks of one batch element and one of ``splits`` ranges of rows. There are
    ``stripes`` parts, and with ``TRIANGLE`` (``y = x``, the tiles on and below the diagonal alone), which needs
    ``BLOCK_N % BLOCK_M == 0``, as many for each range. The arguments are those of `sums_kernel`, of which there are
    no maxima, classes and positives here.
    """
    tl.static_assert(MODE == "exp")
    i_stripe, i_split, i_b = place(tl.program_id(0), stripes, splits)
    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    # The ranges of a triangle differ from round to round: there each range has partial sums of rows of its own.
    i_part = i_stripe + i_split * stripes if TRIANGLE else i_stripe
    p_row += (i_part * batch + i_b) * m
    p_col += (i_split * batch + i_b) * n
    row, col = i_b * m, i_b * n

    blocks = tl.cdiv(n, BLOCK_N)
    tiles = tl.cdiv(m, BLOCK_M)
    # Its own partial sums, to be added to.
    z_start, z_stop = 0, tiles
    if not TRIANGLE:
        z_start, z_stop = range_of(i_split, splits, 0, tiles)
    for i_m in range(z_start, z_stop):
        o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(p_row + o_m, tl.zeros((BLOCK_M,), tl.float32), mask=o_m < m)
    tl.debug_barrier()
    for i_round in range(tl.cdiv(blocks, stripes)):
        # Every other round backwards: with a triangle the first blocks have more tiles.
        i_n = i_round * stripes + tl.where(i_round % 2 == 0, i_stripe, stripes - 1 - i_stripe)
        if i_n < blocks:
            o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
            b_y = load_whole(p_y, o_n, n, stride_yn, DIM, BLOCK_D, True)
            b_v = load_log_weights(p_v, col, o_n, n, LOG2, True)
            b_col_ids = load_ids(p_col_ids, col, o_n, n, True)
            b_held = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

            first = i_n * (BLOCK_N // BLOCK_M) if TRIANGLE else 0
            beyond = (i_n + 1) * BLOCK_N
            t_start, t_stop = range_of(i_split, splits, first, tiles)
            lo, hi, ragged = masked_tiles(i_n * BLOCK_N, 0, m, t_start, t_stop, BLOCK_N, BLOCK_M, EXCLUDE)
            if beyond > n:  # columns over the end count for no row
                lo, hi, ragged = t_start, t_stop, 0
            for MASK in tl.static_range(1, -1, -1):  # the tiles with a mask, then the others
                if MASK or EXCLUDE != "same_id":
                    start, stop = rounds(t_start, t_stop, lo, hi, ragged, MASK)
                    for i_tile in range(start, stop):
                        b_held = _add_tile(
                            b_held, tile_of(i_tile, t_stop, lo, hi, MASK),
                            p_x, p_y, b_y, p_u, p_row_ids, row, p_row, o_n, b_v, b_col_ids,
                            m, n, stride_xm, stride_yn, scale, beyond, p_v is not None,
                            DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, TRIANGLE, PRECISION, MASK,
                        )  # fmt: skip
            tl.store(p_col + o_n, tl.sum(b_held, 0), mask=o_n < n)
            # Another thread may have written the partial sums that the next block of columns adds to.
            tl.debug_barrier()
