"""`sums_kernel`: sums over pairs without a second product, the log-sum-exps and the value of an energy.

With ``TRIANGLE`` (``y = x``) it visits the tiles on and right of the diagonal only. Column sums are made of the same
logits as row sums, relative to maxima: plain exponentials are for `two_way_sums_kernel`. Each program keeps its own
partial sums of the columns, for the stripe of row blocks it serves, and the few partials are added afterwards in a
fixed order.
"""

import triton
import triton.language as tl

from .tile import (
    INF,
    LOG2E,
    exp,
    load_ids,
    load_log_weights,
    load_whole,
    logits_of_columns,
    masked_tiles,
    natural,
    place,
    positives,
    range_of,
    rounds,
    softplus,
    tile_of,
)


@triton.jit
def _add_to_lse(b_top, b_sum, b_l, AXIS: tl.constexpr):
    """The running maximum and the sum relative to it, one tile further."""
    b_new = tl.maximum(b_top, tl.max(b_l, AXIS))
    b_finite = tl.where(b_new == -INF, 0.0, b_new)
    if AXIS == 1:
        b_e = tl.math.exp2((b_l - b_finite[:, None]) * LOG2E)
    else:
        b_e = tl.math.exp2((b_l - b_finite[None, :]) * LOG2E)
    return b_new, b_sum * tl.math.exp2((b_top - b_finite) * LOG2E) + tl.sum(b_e, AXIS)


@triton.jit
def _add_tile(
    b_top, b_sum, b_positive, b_number, i_n, b_x, p_x, p_y, p_v, p_col_ids, col, p_col_top, p_col, o_m, b_u, b_row_ids,
    m, n, stride_xm, stride_yn, scale, beyond,
    HAS_U: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr, MODE: tl.constexpr, LOG2: tl.constexpr, COLS: tl.constexpr, TRIANGLE: tl.constexpr,
    PRECISION: tl.constexpr, CLASSES: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    b_l, o_n, _, b_col_ids = logits_of_columns(
        i_n, b_x, p_x, p_y, p_v, p_col_ids, col, o_m, b_u, b_row_ids, m, n, stride_xm, stride_yn, 0, scale,
        HAS_U, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, PRECISION, MASK,
    )  # fmt: skip
    if COLS:
        b_l = tl.where((o_m < m)[:, None], b_l, -INF)  # rows over the end count for no column
        m_cols = o_n < n
        if TRIANGLE:  # a tile beyond the diagonal stands for its mirror image too: its column sums are row sums
            m_cols = m_cols & (o_n >= beyond)
    if CLASSES:
        b_same = positives(b_l, b_row_ids, b_col_ids, MASK)
        b_positive += tl.sum(tl.where(b_same, b_l, 0.0), 1)
        b_number += tl.sum(tl.where(b_same, 1.0, 0.0), 1)
    if MODE == "running":
        b_top, b_sum = _add_to_lse(b_top, b_sum, b_l, 1)
        if COLS:
            b_col = tl.load(p_col + o_n, mask=m_cols, other=0.0)
            b_col_top = tl.load(p_col_top + o_n, mask=m_cols, other=-INF)
            b_col_top, b_col = _add_to_lse(b_col_top, b_col, b_l, 0)
            tl.store(p_col_top + o_n, b_col_top, mask=m_cols)
            tl.store(p_col + o_n, b_col, mask=m_cols)
    else:
        if MODE == "softplus":
            b_e, _ = softplus(b_l, LOG2)
        else:
            b_e = exp(b_l, LOG2)
        if TRIANGLE:  # only the total is wanted
            b_sum += tl.sum(b_e, 1) * tl.where(i_n * BLOCK_N >= beyond, 2.0, 1.0)
        else:
            b_sum += tl.sum(b_e, 1)
    return b_top, b_sum, b_positive, b_number


@triton.jit(do_not_specialize=["m", "n", "batch", "stripes", "splits"])
def sums_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_top, p_row, p_col_top, p_col, p_classes, p_positives,
    batch, m, n, stripes, splits, stride_xb, stride_xm, stride_yb, stride_yn, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, COLS: tl.constexpr, TRIANGLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Row sums ``(splits, B, M)``, column sums ``(parts, B, N)``; with the mode ``running`` relative to maxima.

    With classes, one for each row of the operand that holds x and, unless rows leave themselves out, behind them y,
    also the sums of the logits of pairs of one class, and the numbers of these, ``(2, splits, B, M)``.

    A program serves one stripe of row blocks of one batch element and one of ``splits`` ranges of columns. There are
    ``stripes`` parts, and with ``TRIANGLE``, which needs ``BLOCK_M % BLOCK_N == 0``, as many for each range.
    """
    i_stripe, i_split, i_b = place(tl.program_id(0), stripes, splits)
    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    p_row += (i_split * batch + i_b) * m
    # The ranges of a triangle differ from round to round: there each range has partial sums of columns of its own.
    i_part = i_stripe + i_split * stripes if TRIANGLE else i_stripe
    if COLS:
        p_col += (i_part * batch + i_b) * n
    if MODE == "running":
        p_row_top += (i_split * batch + i_b) * m
        if COLS:
            p_col_top += (i_part * batch + i_b) * n
    row, col = i_b * m, i_b * n
    if p_classes is not None:
        p_row_ids, p_col_ids = p_classes, p_classes
        row = i_b * (stride_xb // DIM)
        col = row if EXCLUDE == "self" else row + m
        p_positives += (i_split * batch + i_b) * m

    blocks = tl.cdiv(m, BLOCK_M)
    tiles = tl.cdiv(n, BLOCK_N)
    if COLS:
        # Its own partial sums, to be added to.
        z_start, z_stop = 0, tiles
        if not TRIANGLE:
            z_start, z_stop = range_of(i_split, splits, 0, tiles)
        for i_n in range(z_start, z_stop):
            o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
            tl.store(p_col + o_n, tl.zeros((BLOCK_N,), tl.float32), mask=o_n < n)
            if MODE == "running":
                tl.store(p_col_top + o_n, tl.full((BLOCK_N,), -INF, tl.float32), mask=o_n < n)
        tl.debug_barrier()
    for i_round in range(tl.cdiv(blocks, stripes)):
        # Every other round backwards: with a triangle the rows near the top have more tiles.
        i_m = i_round * stripes + tl.where(i_round % 2 == 0, i_stripe, stripes - 1 - i_stripe)
        if i_m < blocks:
            o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
            b_x = load_whole(p_x, o_m, m, stride_xm, DIM, BLOCK_D, True)
            b_u = load_log_weights(p_u, row, o_m, m, LOG2, True)
            b_row_ids = load_ids(p_row_ids, row, o_m, m, True)
            b_top = tl.full((BLOCK_M,), -INF, tl.float32)
            b_sum = tl.zeros((BLOCK_M,), tl.float32)
            b_positive = tl.zeros((BLOCK_M,), tl.float32)
            b_number = tl.zeros((BLOCK_M,), tl.float32)

            first = i_m * (BLOCK_M // BLOCK_N) if TRIANGLE else 0
            beyond = (i_m + 1) * BLOCK_M
            t_start, t_stop = range_of(i_split, splits, first, tiles)
            lo, hi, ragged = masked_tiles(i_m * BLOCK_M, 0, n, t_start, t_stop, BLOCK_M, BLOCK_N, EXCLUDE)
            for MASK in tl.static_range(1, -1, -1):  # the tiles with a mask, then the others
                if MASK or EXCLUDE != "same_id":
                    start, stop = rounds(t_start, t_stop, lo, hi, ragged, MASK)
                    for i_tile in range(start, stop):
                        b_top, b_sum, b_positive, b_number = _add_tile(
                            b_top, b_sum, b_positive, b_number, tile_of(i_tile, t_stop, lo, hi, MASK),
                            b_x, p_x, p_y, p_v, p_col_ids, col, p_col_top, p_col, o_m, b_u, b_row_ids,
                            m, n, stride_xm, stride_yn, scale, beyond,
                            p_u is not None, DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, MODE, LOG2, COLS, TRIANGLE,
                            PRECISION, p_classes is not None, MASK,
                        )  # fmt: skip
            if MODE == "softplus":
                b_sum = natural(b_sum, LOG2)
            tl.store(p_row + o_m, b_sum, mask=o_m < m)
            if MODE == "running":
                tl.store(p_row_top + o_m, b_top, mask=o_m < m)
            if p_classes is not None:
                tl.store(p_positives + o_m, b_positive, mask=o_m < m)
                tl.store(p_positives + splits.to(tl.int64) * batch * m + o_m, b_number, mask=o_m < m)
            if COLS:
                # Another thread may have written the partial sums that the next block of rows reads.
                tl.debug_barrier()
