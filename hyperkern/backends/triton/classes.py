"""From sums over pairs to the loss, the factors and the shares where all of a class are positives of each other."""

import triton
import triton.language as tl

from .heads import collected, finite, lse_of, over_cuts
from .normalize import is_last, sum_range
from .tile import INF, LN2


@triton.jit(
    do_not_specialize=["batch", "n", "rows", "blocks", "cuts"],
    do_not_specialize_on_alignment=[
        *("p_row", "p_row_top", "p_positives", "p_factor", "p_lse", "p_share"),
        *("p_parts", "p_count", "p_loss", "p_anchors"),
    ],
)
def classes_head_kernel(
    p_row, p_row_top, p_positives, p_factor, p_lse, p_share, p_parts, p_count, p_loss, p_anchors,
    batch, n, rows, blocks, cuts, unit, range_of_weights,
    MEAN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss ``(B,)`` and what its sum was divided by ``(B,)``; for the gradient the factors ``(B, rows)``, the
    maxima of relative sums, and the share of an anchor in each of its positives.

    From sums over all pairs ``(cuts, B, n)`` and over the positives ``(2, cuts, B, n)``, of their logits in a unit and
    their number. An anchor without any has no loss and no weights, and does not count.
    """
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    o_a = i_block * BLOCK + tl.arange(0, BLOCK)
    m_rows = o_a < n
    o_sums = i_b * n + o_a
    stride = batch.to(tl.int64) * n
    b_zero, b_nothing = tl.zeros((BLOCK,), tl.float32), tl.full((BLOCK,), -INF, tl.float32)
    b_top, b_sum = collected(p_row, p_row_top, o_sums, m_rows, cuts, stride, b_nothing, b_zero)
    b_positive = over_cuts(p_positives, o_sums, m_rows, cuts, stride)
    b_number = over_cuts(p_positives + cuts * stride, o_sums, m_rows, cuts, stride)
    b_counts = b_number > 0
    b_mean = unit * tl.math.div_rn(b_positive, tl.maximum(b_number, 1.0))
    # Where a model is confident the maximum is about the mean: their difference first.
    b_loss = tl.where(b_counts, (finite(b_top) - b_mean) + tl.math.log2(b_sum) * LN2, 0.0)
    if p_factor is not None:
        o_rows = i_b * rows + o_a
        tl.store(p_factor + o_rows, tl.where(b_counts, range_of_weights / b_sum, 0.0), mask=m_rows)
        tl.store(p_share + o_rows, tl.where(b_counts, range_of_weights / b_number, 0.0), mask=m_rows)
        if p_lse is not None:
            tl.store(p_lse + o_rows, lse_of(b_top), mask=m_rows)
    p_numbers = p_parts + (batch + i_b) * blocks
    p_parts += i_b * blocks
    tl.store(p_parts + i_block, tl.sum(b_loss, 0))
    tl.store(p_numbers + i_block, tl.sum(tl.where(b_counts, 1.0, 0.0), 0))
    if is_last(p_count + 1 + i_b, blocks):
        anchors = 1.0
        if MEAN:
            anchors = tl.maximum(sum_range(p_numbers, blocks, 1024), 1.0)
        tl.store(p_anchors + i_b, anchors)
        tl.store(p_loss + i_b, tl.math.div_rn(sum_range(p_parts, blocks, 1024), anchors))
