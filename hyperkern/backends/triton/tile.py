"""One tile of similarities: the product, the logit, the exclusion, the weight. Every pairwise kernel is built of it.

Names: ``i_`` program or tile index, ``o_`` offsets, ``p_`` pointer, ``b_`` block value. Row and column indices are
32-bit, addresses 64-bit.

The regimes of `hyperkern.spec.PairSpec` and the potentials are one compile-time ``MODE``:

============ ==========================================
MODE         weight of a pair
============ ==========================================
``exp``      ``exp(l - shift)``
``bounded``  ``exp(l) (a_i + b_j)``
``running``  ``a_i exp(l - r_i) + b_j exp(l - c_j)``
``single``   ``(a_i + b_j) exp(l - r_i - c_j)``
``softplus`` ``sigmoid(l)``
============ ==========================================

``single`` is ``running`` where either ``a_i = r_i = 0`` or ``b_j = c_j = 0``: one exponential for each pair. The
factors of ``bounded`` have their log-sum-exps in them, ``exp(-r_i)`` and ``exp(-c_j)``. Those of rows alone a
contraction multiplies its sums by, and not each pair. Rows without candidates, whose log-sum-exp is -inf, have inf in
its place: their weights are exp(-inf) = 0 and not exp(nan).

In ``exp``, ``bounded`` and ``softplus`` the logit may be made in units of log 2 at once (``LOG2``), which saves a
multiplication for each pair. The price is that ``scale / log 2`` is rounded where ``scale`` was before: a relative 6e-8
of every logit, nothing beside operands of half precision, but not what float32 promises.

Loads of ``MASK`` may reach beyond the end; of a tile without one nobody asks, for each column, whether it is there.

``EXCLUDE`` is an exclusion of `hyperkern.spec.PairSpec`, or ``views``: the rows 2i and 2i + 1 of a symmetric problem
show one sample, and no pair of them counts.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)
INF: tl.constexpr = tl.constexpr(float("inf"))

# The interpreter computes products of half precision wrongly, and rounds to bfloat16 by cutting off; there operands are
# widened after the load, and rounded before the cut.
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def load_rows(p_rows, o_rows, o_d, rows, stride, DIM: tl.constexpr, EVEN_D: tl.constexpr, MASK_ROWS: tl.constexpr):
    """The block ``(rows, D)`` of a matrix with unit stride along D; zero outside."""
    p_block = p_rows + o_rows[:, None].to(tl.int64) * stride + o_d[None, :]
    if MASK_ROWS:
        if EVEN_D:
            b_rows = tl.load(p_block, mask=(o_rows < rows)[:, None], other=0.0)
        else:
            b_rows = tl.load(p_block, mask=(o_rows < rows)[:, None] & (o_d < DIM)[None, :], other=0.0)
    else:
        if EVEN_D:
            b_rows = tl.load(p_block)
        else:
            b_rows = tl.load(p_block, mask=(o_d < DIM)[None, :], other=0.0)
    return b_rows


@triton.jit
def load_whole(p_rows, o_rows, rows, stride, DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASK_ROWS: tl.constexpr):
    """Whole rows; nothing where they go chunk by chunk, see `similarity`."""
    if BLOCK_D >= DIM:
        b_rows = load_rows(p_rows, o_rows, tl.arange(0, BLOCK_D), rows, stride, DIM, DIM == BLOCK_D, MASK_ROWS)
    else:
        b_rows = tl.zeros((1, 1), tl.float32)
    return b_rows


@triton.jit
def load_block(
    p_rows, i_block, rows, stride,
    DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, MASK_ROWS: tl.constexpr,
):  # fmt: skip
    """The same of a block. Offsets inside of it are small numbers, which take fewer registers in a loop."""
    p_block = p_rows + (i_block * BLOCK).to(tl.int64) * stride
    return load_whole(p_block, tl.arange(0, BLOCK), rows - i_block * BLOCK, stride, DIM, BLOCK_D, MASK_ROWS)


@triton.jit
def dot(b_left, b_right, b_sum, PRECISION: tl.constexpr):
    """``b_sum + b_left b_right`` with float32 sums.

    Of three tf32 products Triton adds ``b_sum`` outside of the tensor cores, which would round it towards zero.
    """
    if INTERPRETED:  # as good as exact, where NumPy's last bit would depend on the shape
        b_exact = tl.dot(b_left.to(tl.float64), b_right.to(tl.float64), out_dtype=tl.float64)
        return b_sum + b_exact.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision=PRECISION)


@triton.jit
def high(b_value):
    """float32 rounded to the nearest number of tf32."""
    return ((b_value.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)


@triton.jit
def product(b_x, b_y, b_s, PRECISION: tl.constexpr):
    """``b_s + b_x b_y^T``, to the last bit the transpose of what it is with the roles of rows and columns exchanged.

    A row's sum holds the logits of one side and its weights are made on the other. Of a single product the tensor
    cores add up the same numbers either way. Of three the two small ones are added up apart, to be joined by one sum.
    """
    if PRECISION == "tf32x3":
        b_x_high, b_y_high = high(b_x), high(b_y)
        b_zero = tl.zeros_like(b_s)
        b_small = dot(b_x - b_x_high, tl.trans(b_y_high), b_zero, "tf32")
        b_small += dot(b_x_high, tl.trans(b_y - b_y_high), b_zero, "tf32")
        return b_s + dot(b_x_high, tl.trans(b_y_high), b_small, "tf32")
    else:
        return dot(b_x, tl.trans(b_y), b_s, PRECISION)


@triton.jit
def narrow(b_value, DTYPE: tl.constexpr):
    """float32 rounded to the nearest number of a dtype."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        b_bits = b_value.to(tl.uint32, bitcast=True)
        b_rounded = ((b_bits + 0x7FFF + ((b_bits >> 16) & 1)) & 0xFFFF0000).to(tl.uint32)
        b_value = tl.where(b_value == b_value, b_rounded.to(tl.float32, bitcast=True), b_value)
    return b_value.to(DTYPE)


@triton.jit
def similarity(
    b_x, b_y, p_x, p_y, o_m, o_n, m, n, stride_x, stride_y,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Inner products ``(BLOCK_M, BLOCK_N)``: of the blocks given, or chunk by chunk where a row is longer."""
    b_s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BLOCK_D >= DIM:
        b_s = product(b_x, b_y, b_s, PRECISION)
    else:
        for i_d in range(0, tl.cdiv(DIM, BLOCK_D)):
            o_d = i_d * BLOCK_D + tl.arange(0, BLOCK_D)
            b_x_chunk = load_rows(p_x, o_m, o_d, m, stride_x, DIM, DIM % BLOCK_D == 0, True)
            b_y_chunk = load_rows(p_y, o_n, o_d, n, stride_y, DIM, DIM % BLOCK_D == 0, True)
            b_s = product(b_x_chunk, b_y_chunk, b_s, PRECISION)
    return b_s


@triton.jit
def exp(b_l, LOG2: tl.constexpr):
    """``e^l`` of logits in their units."""
    if LOG2:
        return tl.math.exp2(b_l)
    else:
        return tl.math.exp2(b_l * LOG2E)


@triton.jit
def load_vector(p_vector, first, o, count, none, MASK: tl.constexpr):
    """Numbers of rows or columns, counted from the ``first`` on; ``none`` outside and where there are none."""
    if p_vector is None:
        b_vector = tl.full(o.shape, none, tl.float32)
    elif MASK:
        b_vector = tl.load(p_vector + first + o, mask=o < count, other=none)
    else:
        b_vector = tl.load(p_vector + first + o)
    return b_vector


@triton.jit
def load_log_weights(p_log_weights, first, o, count, LOG2: tl.constexpr, MASK: tl.constexpr):
    """Log-weights of rows or columns, in the units of the logit; 0 outside and where there are none."""
    b_w = load_vector(p_log_weights, first, o, count, 0.0, MASK)
    if LOG2:
        b_w *= LOG2E
    return b_w


@triton.jit
def load_ids(p_ids, first, o, count, MASK: tl.constexpr):
    """The ids of rows or columns, where an exclusion or positives ask for them."""
    if p_ids is None:
        b_ids = tl.zeros(o.shape, tl.int32)
    elif MASK:
        b_ids = tl.load(p_ids + first + o, mask=o < count, other=0)
    else:
        b_ids = tl.load(p_ids + first + o)
    return b_ids


@triton.jit
def positives(b_l, b_row_ids, b_col_ids, MASK: tl.constexpr):
    """Which pairs are of one class, without those left out."""
    b_same = b_row_ids[:, None] == b_col_ids[None, :]
    if MASK:
        b_same = b_same & (b_l != -INF)
    return b_same


@triton.jit
def logits(
    b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, row_shift, scale,
    HAS_U: tl.constexpr, HAS_V: tl.constexpr, EXCLUDE: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """``scale s_ij + u_i + v_j``; -inf for a pair left out, which only a tile with ``MASK`` can hold."""
    b_l = b_s * scale
    if HAS_U:
        b_l += b_u[:, None]
    if HAS_V:
        b_l += b_v[None, :]
    if MASK:
        b_keep = (o_n < n)[None, :]
        if EXCLUDE == "self":
            b_keep = b_keep & ((o_m + row_shift)[:, None] != o_n[None, :])
        if EXCLUDE == "views":
            b_keep = b_keep & ((o_m // 2)[:, None] != (o_n // 2)[None, :])
        if EXCLUDE == "same_id":
            b_keep = b_keep & (b_row_ids[:, None] != b_col_ids[None, :])
        b_l = tl.where(b_keep, b_l, -INF)
    return b_l


@triton.jit
def logits_of_columns(
    i_n, b_x, p_x, p_y, p_v, p_col_ids, col, o_m, b_u, b_row_ids, m, n, stride_xm, stride_yn, row_shift, scale,
    HAS_U: tl.constexpr, DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The logits of a block of rows and a tile of columns, and of the columns the indices, the rows and the ids."""
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    b_y = load_block(p_y, i_n, n, stride_yn, DIM, BLOCK_N, BLOCK_D, MASK)
    b_s = similarity(
        b_x, b_y, p_x, p_y, o_m, o_n, m, n, stride_xm, stride_yn, DIM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    b_v = load_log_weights(p_v, col, o_n, n, LOG2, MASK)
    b_col_ids = load_ids(p_col_ids, col, o_n, n, MASK)
    b_l = logits(
        b_s, o_m, o_n, n, b_u, b_v, b_row_ids, b_col_ids, row_shift, scale, HAS_U, p_v is not None, EXCLUDE, MASK
    )
    return b_l, o_n, b_y, b_col_ids


@triton.jit
def log2_of_one_plus(b_e, SHORT: tl.constexpr):
    """``log2(1 + e)`` for ``0 <= e <= 1``: polynomials of least relative error, 1.3e-6 and 3e-8, times ``e``."""
    if SHORT:
        b_p = 0.020401185 * b_e - 0.095797546
        b_p = b_p * b_e + 0.21528454
        b_p = b_p * b_e - 0.33908904
        b_p = b_p * b_e + 0.47766837
        b_p = b_p * b_e - 0.72115946
        b_p = b_p * b_e + 1.4426932
    else:
        b_p = 0.007549182 * b_e - 0.042567063
        b_p = b_p * b_e + 0.112856194
        b_p = b_p * b_e - 0.19711897
        b_p = b_p * b_e + 0.27564141
        b_p = b_p * b_e - 0.35840848
        b_p = b_p * b_e + 0.48069295
        b_p = b_p * b_e - 0.72134018
        b_p = b_p * b_e + 1.442695
    return b_p * b_e


@triton.jit
def softplus(b_l, LOG2: tl.constexpr):
    """``log(1 + e^l)``, in the units of the logit, and its derivative.

    No division, and nan needs no case of its own: the polynomial hands it on, which a maximum would drop. The
    derivative is ``e^(min(l, 0) - log(1 + e^-|l|))``. With ``LOG2`` a shorter polynomial does, beside such operands.
    """
    b_l2 = b_l if LOG2 else b_l * LOG2E
    b_q = log2_of_one_plus(tl.math.exp2(-tl.abs(b_l2)), LOG2)
    b_derivative = tl.math.exp2(tl.minimum(b_l2, 0.0) - b_q)
    b_value = tl.maximum(b_l, 0.0) + (b_q if LOG2 else b_q * LN2)
    return b_value, b_derivative


@triton.jit
def natural(b_value, LOG2: tl.constexpr):
    """Sums of `softplus` in natural units."""
    if LOG2:
        b_value *= LN2
    return b_value


@triton.jit
def weights(
    b_l, b_a, b_row_lse, b_b, b_col_lse, shift,
    HAS_A: tl.constexpr, HAS_B: tl.constexpr, MODE: tl.constexpr, LOG2: tl.constexpr,
):  # fmt: skip
    """The weights of the pairs, and the values of the potential where they differ from the weights."""
    b_value = b_l
    if MODE == "exp":
        b_w = exp(b_l - shift, LOG2)
    elif MODE == "bounded":
        b_w = exp(b_l, LOG2)
        if HAS_A and HAS_B:
            b_w *= b_a[:, None] + b_b[None, :]
        elif HAS_A:
            b_w *= b_a[:, None]
        elif HAS_B:
            b_w *= b_b[None, :]
    elif MODE == "running":
        b_w = tl.zeros(b_l.shape, tl.float32)
        if HAS_A:
            b_w += b_a[:, None] * tl.math.exp2((b_l - b_row_lse[:, None]) * LOG2E)
        if HAS_B:
            b_w += b_b[None, :] * tl.math.exp2((b_l - b_col_lse[None, :]) * LOG2E)
    elif MODE == "single":
        b_w = (b_a[:, None] + b_b[None, :]) * tl.math.exp2((b_l - (b_row_lse[:, None] + b_col_lse[None, :])) * LOG2E)
    else:
        b_value, b_w = softplus(b_l, LOG2)
    return b_w, b_value


@triton.jit
def masked_tiles(
    row_start, row_shift, n, t_start, t_stop, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXCLUDE: tl.constexpr
):
    """Which of the column tiles ``[t_start, t_stop)`` need a mask: ``[lo, hi)``, and perhaps the last one.

    Those on the diagonal of ``exclude="self"``, every one for ids, and the tile that runs over the end. The rows of two
    views that alternate are pairs of which no tile has a half.
    """
    lo, hi = t_start, t_start
    if EXCLUDE == "self" or EXCLUDE == "views":
        lo = tl.maximum(row_start + row_shift, 0) // BLOCK_N
        hi = tl.cdiv(tl.maximum(row_start + BLOCK_M + row_shift, 0), BLOCK_N)
        lo = tl.minimum(tl.maximum(lo, t_start), t_stop).to(tl.int32)
        hi = tl.minimum(tl.maximum(hi, lo), t_stop).to(tl.int32)
    if EXCLUDE == "same_id":
        hi = t_stop
    ragged = (t_stop * BLOCK_N > n) & ((hi < t_stop) | (lo == hi)) & (t_start < t_stop)
    return lo, hi, ragged.to(tl.int32)


@triton.jit
def place(i_program, blocks, splits):
    """Which block, which of ``splits`` ranges of tiles and which batch element a program serves."""
    return i_program % blocks, i_program // blocks % splits, (i_program // blocks // splits).to(tl.int64)


@triton.jit
def range_of(i_split, splits, first, tiles):
    """The tiles ``[start, stop)`` of one of ``splits`` ranges of those from ``first`` to ``tiles``."""
    start = first + (i_split.to(tl.int64) * (tiles - first) // splits).to(tl.int32)
    stop = first + ((i_split + 1).to(tl.int64) * (tiles - first) // splits).to(tl.int32)
    return start, stop


@triton.jit
def rounds(t_start, t_stop, lo, hi, ragged, MASK: tl.constexpr):
    """What a loop over the tiles with a mask counts, those of `masked_tiles`, or one over the others."""
    if MASK:
        start, stop = 0, hi - lo + ragged
    else:
        start, stop = t_start, t_stop - ragged - (hi - lo)
    return start, stop


@triton.jit
def tile_of(i_round, t_stop, lo, hi, MASK: tl.constexpr):
    """The tile of a round of such a loop."""
    if MASK:
        i_tile = tl.where(i_round < hi - lo, lo + i_round, t_stop - 1)
    else:
        i_tile = tl.where(i_round < lo, i_round, i_round + (hi - lo))
    return i_tile
