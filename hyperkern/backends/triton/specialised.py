"""`contract_kernel`, `contract_sides_kernel` and `sums_kernel` of exponentials, with warps that only load.

One group of warps fetches tiles of columns by tensor descriptors; two others, each with half of the rows, compute. A
configuration chooses them (`config.Config.specialised`). What takes part is limited by the compiler (Triton 3.6 to
3.9), which specialises a whole kernel for one loop: it has no branch, loads by descriptors only, and no product stands
outside of the loop. Hence problems without vectors, and a second launch, not specialised, for the tiles with a mask,
``REST``, which adds to what the first has stored.
"""

from typing import Any

import triton
import triton.language as tl

from .config import Config
from .contract import contract_kernel, contract_sides_kernel, side_of_program
from .launch import Launch
from .sums import sums_kernel
from .tile import dot, exp, logits, masked_tiles, narrow, place, product, range_of, rounds, tile_of


@triton.jit
def _load_rows(p_rows, i_row, rows, stride, DIM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """A block of rows from some on; zero beyond the last, and beyond ``DIM``."""
    d_rows = tl.make_tensor_descriptor(p_rows, [rows, DIM], [stride, 1], [BLOCK, BLOCK_D])
    return d_rows.load([i_row, 0])


@triton.jit
def _weights(
    b_x, b_y, i_m, i_n, n, row_shift, scale, shift,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXCLUDE: tl.constexpr, LOG2: tl.constexpr,
    PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """``exp(l - shift)`` of a tile."""
    b_s = product(b_x, b_y, tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    if MASK:
        o_m += i_m * BLOCK_M
        o_n += i_n * BLOCK_N
    b_l = logits(b_s, o_m, o_n, n, 0, 0, 0, 0, row_shift, scale, False, False, EXCLUDE, MASK)
    return exp(b_l - shift, LOG2)


@triton.jit
def _add_rows(
    b_grad, b_sum, b_x, d_y, i_m, i_n, n, row_shift, scale, shift,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXCLUDE: tl.constexpr, LOG2: tl.constexpr,
    PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    b_y = d_y.load([i_n * BLOCK_N, 0])
    b_w = _weights(b_x, b_y, i_m, i_n, n, row_shift, scale, shift, BLOCK_M, BLOCK_N, EXCLUDE, LOG2, PRECISION, MASK)
    b_sum += tl.sum(b_w, 1)
    return dot(narrow(b_w, b_y.dtype), b_y, b_grad, PRECISION), b_sum


@triton.jit
def _contract_block(
    p_x, p_y, p_grad, p_sum, out, i_m, i_split, m, n, splits, stride_xm, stride_yn, stride_gm, row_shift, scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    EXCLUDE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """A block of rows against a range of columns; the outputs of the range start with row ``out``."""
    t_start, t_stop = range_of(i_split, splits, 0, tl.cdiv(n, BLOCK_N))
    lo, hi, ragged = masked_tiles(i_m * BLOCK_M, row_shift, n, t_start, t_stop, BLOCK_M, BLOCK_N, EXCLUDE)
    start, stop = rounds(t_start, t_stop, lo, hi, ragged, REST)
    d_y = tl.make_tensor_descriptor(p_y, [n, DIM], [stride_yn, 1], [BLOCK_N, BLOCK_D])
    # Where the compiler gives each group of warps half of the rows, it moves the coordinate of the rows loaded and with
    # it (3.6 to 3.9) what else is made of the same number: every other use is of a number computed from it.
    o_m, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    m_rows = o_m < m - i_m * BLOCK_M
    m_block = m_rows[:, None] & (o_d < DIM)[None, :]
    p_grad += (out + i_m * BLOCK_M) * stride_gm
    p_sum += out + i_m * BLOCK_M
    if REST:
        if stop > 0:
            b_x = _load_rows(p_x, i_m * BLOCK_M, m, stride_xm, DIM, BLOCK_M, BLOCK_D)
            b_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            b_sum = tl.zeros((BLOCK_M,), tl.float32)
            for i_round in range(start, stop):
                b_grad, b_sum = _add_rows(
                    b_grad, b_sum, b_x, d_y, i_m, tile_of(i_round, t_stop, lo, hi, True), n, row_shift, scale, shift,
                    BLOCK_M, BLOCK_N, EXCLUDE, LOG2, PRECISION, True,
                )  # fmt: skip
            p_block = p_grad + o_m[:, None] * stride_gm + o_d[None, :]
            b_grad = tl.load(p_block, mask=m_block, other=0.0) + b_grad * exp(shift, LOG2)
            b_sum = tl.load(p_sum + o_m, mask=m_rows, other=0.0) + b_sum * exp(shift, LOG2)
            tl.store(p_block, b_grad, mask=m_block)
            tl.store(p_sum + o_m, b_sum, mask=m_rows)
    else:
        b_x = _load_rows(p_x, i_m * BLOCK_M, m, stride_xm, DIM, BLOCK_M, BLOCK_D)
        b_grad = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        b_sum = tl.zeros((BLOCK_M,), tl.float32)
        for i_round in tl.range(start, stop, warp_specialize=True):
            b_grad, b_sum = _add_rows(
                b_grad, b_sum, b_x, d_y, i_m, tile_of(i_round, t_stop, lo, hi, False), n, row_shift, scale, shift,
                BLOCK_M, BLOCK_N, EXCLUDE, LOG2, PRECISION, False,
            )  # fmt: skip
        tl.store(p_grad + o_m[:, None] * stride_gm + o_d[None, :], b_grad * exp(shift, LOG2), mask=m_block)
        tl.store(p_sum + o_m, b_sum * exp(shift, LOG2), mask=m_rows)


@triton.jit(do_not_specialize=["m", "n", "splits", "batch"])
def contract_specialised_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_lse, p_a, p_col_lse, p_b, p_grad, p_sum, p_value,
    batch, m, n, splits, stride_xb, stride_xm, stride_yb, stride_yn, stride_gm, scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """`contract_kernel` of the mode ``exp``, with its arguments: the vectors and the value are None."""
    i_m, i_split, i_b = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), splits)
    _contract_block(
        p_x + i_b * stride_xb, p_y + i_b * stride_yb, p_grad, p_sum, (i_split * batch + i_b) * m,
        i_m, i_split, m, n, splits, stride_xm, stride_yn, stride_gm, 0, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, PRECISION, REST,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        *("batch", "rows", "programs", "m_0", "n_0", "row_0", "col_0", "shift_0", "splits_0"),
        *("m_1", "n_1", "row_1", "col_1", "shift_1", "splits_1"),
    ]
)
def contract_sides_specialised_kernel(
    p_rows, p_u, p_lse, p_factor, p_classes, p_share, p_grad, p_sum, p_value,
    batch, rows, programs, m_0, n_0, row_0, col_0, shift_0, splits_0, m_1, n_1, row_1, col_1, shift_1, splits_1,
    scale, shift,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, PRECISION: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """`contract_sides_kernel` of the mode ``exp``, with its arguments: the vectors and the value are None."""
    i_m, i_split, m, n, splits, row_shift, row, col, out = side_of_program(
        batch, rows, programs, m_0, n_0, row_0, col_0, shift_0, splits_0, m_1, n_1, row_1, col_1, shift_1, splits_1,
        BLOCK_M,
    )  # fmt: skip
    _contract_block(
        p_rows + row * DIM, p_rows + col * DIM, p_grad, p_sum, out,
        i_m, i_split, m, n, splits, DIM, DIM, DIM, row_shift, scale, shift,
        DIM, BLOCK_M, BLOCK_N, BLOCK_D, EXCLUDE, LOG2, PRECISION, REST,
    )  # fmt: skip


@triton.jit
def _add_sums(
    b_sum, b_x, d_y, i_m, i_n, n, scale, beyond,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EXCLUDE: tl.constexpr, LOG2: tl.constexpr, TRIANGLE: tl.constexpr,
    PRECISION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    b_y = d_y.load([i_n * BLOCK_N, 0])
    b_e = _weights(b_x, b_y, i_m, i_n, n, 0, scale, 0.0, BLOCK_M, BLOCK_N, EXCLUDE, LOG2, PRECISION, MASK)
    if TRIANGLE:
        b_sum += tl.sum(b_e, 1) * tl.where(i_n * BLOCK_N >= beyond, 2.0, 1.0)
    else:
        b_sum += tl.sum(b_e, 1)
    return b_sum


@triton.jit(do_not_specialize=["m", "n", "batch", "stripes", "splits"])
def sums_specialised_kernel(
    p_x, p_y, p_u, p_v, p_row_ids, p_col_ids, p_row_top, p_row, p_col_top, p_col, p_classes, p_positives,
    batch, m, n, stripes, splits, stride_xb, stride_xm, stride_yb, stride_yn, scale,
    DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EXCLUDE: tl.constexpr,
    MODE: tl.constexpr, LOG2: tl.constexpr, COLS: tl.constexpr, TRIANGLE: tl.constexpr, PRECISION: tl.constexpr,
    REST: tl.constexpr,
):  # fmt: skip
    """`sums_kernel` of the mode ``exp`` without column sums, with its arguments: all but ``p_row`` behind y are None.

    There are as many stripes as row blocks.
    """
    i_m, i_split, i_b = place(tl.program_id(0), stripes, splits)
    p_x += i_b * stride_xb
    p_y += i_b * stride_yb
    out = (i_split * batch + i_b) * m
    first = i_m * (BLOCK_M // BLOCK_N) if TRIANGLE else 0
    beyond = (i_m + 1) * BLOCK_M
    t_start, t_stop = range_of(i_split, splits, first, tl.cdiv(n, BLOCK_N))
    lo, hi, ragged = masked_tiles(i_m * BLOCK_M, 0, n, t_start, t_stop, BLOCK_M, BLOCK_N, EXCLUDE)
    start, stop = rounds(t_start, t_stop, lo, hi, ragged, REST)
    d_y = tl.make_tensor_descriptor(p_y, [n, DIM], [stride_yn, 1], [BLOCK_N, BLOCK_D])
    o_m = tl.arange(0, BLOCK_M)
    m_rows = o_m < m - i_m * BLOCK_M  # of a number computed from the coordinate, see `_contract_block`
    p_row += out + i_m * BLOCK_M
    if REST:
        if stop > 0:
            b_x = _load_rows(p_x, i_m * BLOCK_M, m, stride_xm, DIM, BLOCK_M, BLOCK_D)
            b_sum = tl.load(p_row + o_m, mask=m_rows, other=0.0)
            for i_round in range(start, stop):
                b_sum = _add_sums(
                    b_sum, b_x, d_y, i_m, tile_of(i_round, t_stop, lo, hi, True), n, scale, beyond,
                    BLOCK_M, BLOCK_N, EXCLUDE, LOG2, TRIANGLE, PRECISION, True,
                )  # fmt: skip
            tl.store(p_row + o_m, b_sum, mask=m_rows)
    else:
        b_x = _load_rows(p_x, i_m * BLOCK_M, m, stride_xm, DIM, BLOCK_M, BLOCK_D)
        b_sum = tl.zeros((BLOCK_M,), tl.float32)
        for i_round in tl.range(start, stop, warp_specialize=True):
            b_sum = _add_sums(
                b_sum, b_x, d_y, i_m, tile_of(i_round, t_stop, lo, hi, False), n, scale, beyond,
                BLOCK_M, BLOCK_N, EXCLUDE, LOG2, TRIANGLE, PRECISION, False,
            )  # fmt: skip
        tl.store(p_row + o_m, b_sum, mask=m_rows)


# In place of which kernel.
_KERNELS: dict[Any, Any] = {
    contract_kernel: contract_specialised_kernel,
    contract_sides_kernel: contract_sides_specialised_kernel,
    sums_kernel: sums_specialised_kernel,
}


def rest_of(choice: Config) -> Config:
    """The configuration of the tiles with a mask. They are few: none is fetched while another one is computed."""
    return choice._replace(num_warps=8, num_stages=1, specialised=False)


def specialised(planned: Launch) -> Launch:
    """A launch whose configuration is specialised, of the kernels here: the tiles without a mask, then the rest."""
    choice = planned.choice
    assert choice is not None
    kernel, shape = _KERNELS[planned.kernel], (planned.programs, planned.numbers)
    planned.parts = (
        Launch(kernel, *shape, choice, **planned.constants, REST=False),
        Launch(kernel, *shape, rest_of(choice), **planned.constants, REST=True),
    )
    return planned
