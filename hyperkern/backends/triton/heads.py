"""From sums over pairs to losses and to the factors of the weights.

A softmax has its factors made of the sums before the contraction. The other losses have weights without factors: their
sums come out of the contraction itself.
"""

import triton
import triton.language as tl

from .normalize import is_last, sum_range
from .tile import INF, LN2, exp, softplus
from .whole_rows import factor_of_logits


@triton.jit
def finite(b_top):
    """A maximum, 0 where there is none."""
    return tl.where(b_top == -INF, 0.0, b_top)


@triton.jit
def lse_of(b_top):
    """What weights subtract: a maximum, inf where there is none."""
    return tl.where(b_top == -INF, INF, b_top)


@triton.jit
def collected(p_sums, p_tops, o, m_rows, parts, stride, b_top, b_sum):
    """Partial sums, and those there are, relative to the largest logit of all where they are relative to any."""
    b_all = b_top
    if p_tops is not None:
        for i in range(parts):
            b_all = tl.maximum(b_all, tl.load(p_tops + i * stride + o, mask=m_rows, other=-INF))
        b_sum *= exp(b_top - finite(b_all), False)
    for i in range(parts):
        b_part = tl.load(p_sums + i * stride + o, mask=m_rows, other=0.0)
        if p_tops is not None:
            b_part *= exp(tl.load(p_tops + i * stride + o, mask=m_rows, other=-INF) - finite(b_all), False)
        b_sum += b_part
    return b_all, b_sum


@triton.jit
def _softmax(b_top, b_sum, b_positive, b_weight, HEAD: tl.constexpr):
    """Of anchors, from the sums over all other candidates: the losses, the factors of the exponentials relative to the
    top, and the weights of the positives.

    All weights of an anchor are made of the same numbers, so that they add up to 0, however large the logits.
    """
    b_unit = finite(b_top)
    b_others = b_unit + tl.math.log2(b_sum) * LN2
    if HEAD == "softmax":
        # Not of the sum with the positive in it: the loss of a confident model is the small difference.
        b_loss, _ = softplus(b_others - b_positive, False)
        # An anchor without others has no weights, whatever its positive.
        b_factor = tl.where(b_sum == 0, 0.0, 1.0 / (b_sum + exp(b_positive - b_unit, False)))
        b_own = -b_sum * b_factor
    else:
        b_loss = b_others - b_weight * b_positive
        b_factor = 1.0 / b_sum
        b_own = -b_weight
    return b_loss, b_factor, b_own


@triton.jit
def _sum_of_exponentials(p_values, count, factor, BLOCK: tl.constexpr):
    """The largest number and the sum of ``exp(factor (value - largest))``, ``factor > 0``."""
    b_top = tl.full((BLOCK,), -INF, tl.float32)
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        b_top = tl.maximum(b_top, tl.load(p_values + o, mask=o < count, other=-INF))
    top = tl.max(b_top, 0)
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        b_sum += exp((tl.load(p_values + o, mask=o < count, other=-INF) - top) * factor, False)
    return top, tl.sum(b_sum, 0)


@triton.jit
def _store_mean(p_parts, p_count, p_mean, part, i_b, i_block, blocks, count):
    """The total ``(B,)`` of what each block has a part of, over a count, by whichever block comes last."""
    tl.store(p_parts + i_b * blocks + i_block, part)
    if is_last(p_count + 1 + i_b, blocks):
        tl.store(p_mean + i_b, tl.math.div_rn(sum_range(p_parts + i_b * blocks, blocks, 1024), count))


@triton.jit(
    do_not_specialize=["batch", "n", "anchors", "rows", "blocks", "row_parts", "col_parts"],
    do_not_specialize_on_alignment=[
        *("p_row", "p_row_top", "p_col", "p_col_top", "p_positive", "p_scale", "p_factor", "p_lse", "p_own"),
        *("p_parts", "p_count", "p_loss"),
    ],
)
def softmax_head_kernel(
    p_row, p_row_top, p_col, p_col_top, p_positive, p_scale, p_factor, p_lse, p_own, p_parts, p_count, p_loss,
    batch, n, anchors, rows, blocks, row_parts, col_parts, scale, sigma, count, range_of_weights,
    HEAD: tl.constexpr, VIEWS: tl.constexpr, TWO_WAY: tl.constexpr, TEMPERATURE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss ``(B,)``, a sum over ``count``; for the gradient the factors ``(B, rows)``, the maxima of relative sums,
    and the weights of the positives ``(B, anchors)``.

    Row sums ``(row_parts, B, anchors)``, column sums ``(col_parts, B, anchors)``: those of the same anchors where views
    alternate, of their partners with ``TWO_WAY``.
    """
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    o_a = i_block * BLOCK + tl.arange(0, BLOCK)
    m_rows = o_a < anchors
    o_sums = i_b * anchors + o_a
    stride = batch.to(tl.int64) * anchors
    b_positive = tl.load(p_positive + i_b * n + o_a // VIEWS, mask=m_rows, other=0.0)
    b_weight = tl.full((BLOCK,), 1.0, tl.float32)
    if HEAD == "weighted":
        b_scale, _ = factor_of_logits(p_scale, scale, TEMPERATURE)
        inverse = 1.0 / (b_scale * sigma)
        top, total = _sum_of_exponentials(p_positive + i_b * n, n, inverse, 1024)
        b_weight = 2.0 - n * exp((b_positive - top) * inverse, False) / total

    b_zero, b_nothing = tl.zeros((BLOCK,), tl.float32), tl.full((BLOCK,), -INF, tl.float32)
    b_top, b_sum = collected(p_row, p_row_top, o_sums, m_rows, row_parts, stride, b_nothing, b_zero)
    if VIEWS == 2:
        b_top, b_sum = collected(p_col, p_col_top, o_sums, m_rows, col_parts, stride, b_top, b_sum)
    b_loss, b_factor, b_own = _softmax(b_top, b_sum, b_positive, b_weight, HEAD)
    o_rows = i_b * rows + o_a
    if p_factor is not None:
        tl.store(p_factor + o_rows, b_factor * range_of_weights, mask=m_rows)
        if p_lse is not None:
            tl.store(p_lse + o_rows, lse_of(b_top), mask=m_rows)
    if TWO_WAY:
        b_top, b_sum = collected(p_col, p_col_top, o_sums, m_rows, col_parts, stride, b_nothing, b_zero)
        b_more, b_factor, b_more_own = _softmax(b_top, b_sum, b_positive, b_weight, HEAD)
        b_loss += b_more
        b_own += b_more_own
        if p_factor is not None:
            tl.store(p_factor + n + o_rows, b_factor * range_of_weights, mask=m_rows)
            if p_lse is not None:
                tl.store(p_lse + n + o_rows, lse_of(b_top), mask=m_rows)
    if p_own is not None:
        tl.store(p_own + o_sums, b_own, mask=m_rows)
    part = tl.sum(tl.where(m_rows, b_loss, 0.0), 0)
    _store_mean(p_parts, p_count, p_loss, part, i_b, i_block, blocks, count)


@triton.jit
def over_cuts(p_sums, o, mask, cuts, stride):
    """The sum of partial sums."""
    b_sum = tl.zeros(o.shape, tl.float32)
    for i in range(cuts):
        b_sum += tl.load(p_sums + i * stride + o, mask=mask, other=0.0)
    return b_sum


@triton.jit(
    do_not_specialize=["batch", "n", "blocks", "cuts"],
    do_not_specialize_on_alignment=[
        *("p_value", "p_sum", "p_positive", "p_bias", "p_own", "p_parts", "p_count", "p_loss", "p_bias_sums")
    ],
)
def sigmoid_head_kernel(
    p_value, p_sum, p_positive, p_bias, p_own, p_parts, p_count, p_loss, p_bias_sums,
    batch, n, blocks, cuts, bias, count,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss ``(B,)`` from the values of all other pairs ``(cuts, B, n)``; with their weights those of the positives
    ``(B, n)``, and all added up.
    """
    i_b = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    o = i_block * BLOCK + tl.arange(0, BLOCK)
    m_rows = o < n
    stride = batch.to(tl.int64) * n
    if p_bias is not None:
        bias = tl.load(p_bias).to(tl.float32)
    b_partners, b_own = softplus(-(tl.load(p_positive + i_b * n + o, mask=m_rows, other=0.0) + bias), False)
    b_value = over_cuts(p_value, i_b * n + o, m_rows, cuts, stride)
    if p_sum is not None:
        tl.store(p_own + i_b * n + o, -b_own, mask=m_rows)
        b_weights = over_cuts(p_sum, i_b * n + o, m_rows, cuts, stride) - tl.where(m_rows, b_own, 0.0)
        tl.store(p_parts + (batch + i_b) * blocks + i_block, tl.sum(b_weights, 0))
    tl.store(p_parts + i_b * blocks + i_block, tl.sum(b_value + tl.where(m_rows, b_partners, 0.0), 0))
    if is_last(p_count + 1 + i_b, blocks):
        tl.store(p_loss + i_b, tl.math.div_rn(sum_range(p_parts + i_b * blocks, blocks, 1024), count))
        if p_sum is not None:
            tl.store(p_bias_sums + i_b, sum_range(p_parts + (batch + i_b) * blocks, blocks, 1024))


@triton.jit(
    do_not_specialize=["batch", "n", "further", "blocks", "blocks_further", "cuts_queue", "cuts_distinct"],
    do_not_specialize_on_alignment=["p_queue", "p_distinct", "p_zeros", "p_total", "p_loss"],
)
def energy_head_kernel(
    p_queue, p_distinct, p_zeros, p_total, p_loss,
    batch, n, further, blocks, blocks_further, cuts_queue, cuts_distinct, t, pairs,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``log(mean of exp(-t d^2))`` ``(B,)``; its sum is kept for the gradient.

    From the sums of rows with those of the queue, and with each other in both orders ``(cuts, B, n)``.
    """
    i_b = tl.program_id(0).to(tl.int64)
    stride = batch.to(tl.int64) * n
    p_zeros += i_b * (blocks + blocks_further)
    zeros, total = sum_range(p_zeros, blocks, BLOCK), 0.0
    # A zero row is at distance 1 from the sphere and at 0 from another one: e^t and e^2t instead of 1.
    one, both = exp(t, False) - 1.0, exp(2.0 * t, False) - 1.0
    if p_queue is not None:
        for i in range(cuts_queue):
            total += sum_range(p_queue + i * stride + i_b * n, n, BLOCK)
        zeros_queue = sum_range(p_zeros + blocks, blocks_further, BLOCK)
        of_one = zeros * (further - zeros_queue) + (n - zeros) * zeros_queue
        total += of_one * one + zeros * zeros_queue * both
    if p_distinct is not None:
        distinct = 0.0
        for i in range(cuts_distinct):
            distinct += sum_range(p_distinct + i * stride + i_b * n, n, BLOCK)
        total += 0.5 * distinct + zeros * (n - zeros) * one + 0.5 * zeros * (zeros - 1.0) * both
    tl.store(p_total + i_b, total)
    tl.store(p_loss + i_b, tl.math.log2(total / pairs) * LN2 - 2.0 * t)
