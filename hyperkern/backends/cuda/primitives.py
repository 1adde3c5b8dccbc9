"""The pairwise primitives on the host: what is launched, in how many blocks, and what becomes of partial results."""

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..host.pairwise import Factors, Pairwise
from ..host.panels import contract_by_panels
from ..host.partials import Side, Sums, add_cuts, added, cut
from ..host.precision import FLOAT16_RANGE, scaled_to_float16
from .library import ops
from .operands import (
    CONTRACT_DIM,
    Operands,
    Task,
    Tile,
    Weight,
    as_operands,
    col_terms,
    multiprocessors,
    row_terms,
    tile,
)

# Partial column sums are kept for at most so many stripes of row blocks; cutting the columns fills the GPU. They take
# up to 2 groups of warps x 64 numbers a column, half as much as a row of 256 elements.
_STRIPES = 64
# What partial row sums may take.
_ROW_SUMS_BYTES = 64 << 20

SUM_TASKS = {
    "exp": Task.SUM_EXP,
    "softplus": Task.SUM_SOFTPLUS,
    "running": Task.SUM_RUNNING,
    "classes": Task.SUM_CLASSES,
}


class Weighing(NamedTuple):
    """A mode and its factors in the kernels' terms, see ``csrc/pair_tile.cuh``.

    Attributes:
        weight: the form of the weights.
        rows: ``(B, terms, M)`` or ``None``: terms of rows, in the units of the logit.
        cols: ``(B, terms, N')`` or ``None``, those of columns.
        offset: added to every exponent, in the units of the logit.
        out_scale: what takes the offset off the results.
    """

    weight: Weight
    rows: Tensor | None = None
    cols: Tensor | None = None
    offset: float = 0.0
    out_scale: float = 1.0


def pair_sums(o: Operands, mode: str, *, need_cols: bool, total: bool) -> tuple[Sums, Sums]:
    """Sums of the pairs, with ``y = x`` from the tiles on and right of the diagonal alone where possible.

    Args:
        o: the problem.
        mode: ``exp``, ``softplus`` or ``running`` (log-sum-exp with a running maximum).
        need_cols: whether column sums are wanted (where ``y`` is not ``x``).
        total: whether only the total is wanted: rows are then incomplete where ``y`` is ``x``, their sum is not.

    Returns:
        Row sums and column sums, which have no elements if not wanted; relative to maxima where the mode is
        ``running``.
    """
    nothing = Sums(o.x.new_empty((o.x.shape[0], 0), dtype=torch.float32))
    if mode == "running":
        # A column's maximum is only known when its column is done: it is a row of the same problem, turned.
        return _running_sums(o), _running_sums(o.swapped()) if need_cols and not o.symmetric else nothing
    (batch, m, _), n = o.x.shape, o.y.shape[1]
    size = tile(o.x, "sums", Weight.EXP)
    has_cols = (o.symmetric and not total) or (need_cols and not o.symmetric)
    stripes, cuts = shares(batch, m, n, size, multiprocessors(o.x.device), triangle=o.symmetric, has_cols=has_cols)
    row = nothing.total.new_empty((cuts, batch, m))
    col = row.new_zeros((stripes * size.groups, batch, n)) if has_cols else None
    _launch_sums(o, SUM_TASKS[mode], triangle=o.symmetric, stripes=stripes, row=row, col=col)
    of_rows = add_cuts(row)
    if col is None:
        return Sums(of_rows), nothing
    return (Sums(of_rows + col.sum(0)), nothing) if o.symmetric else (Sums(of_rows), Sums(col.sum(0)))


@functools.lru_cache(maxsize=1024)
def shares(
    batch: int, m: int, n: int, size: Tile, multiprocessors: int, *, triangle: bool = False, has_cols: bool = False
) -> tuple[int, int]:
    """Among how many blocks of threads a problem is shared out: stripes and cuts of ``Schedule`` in ``csrc/layout.h``.

    Where rows stay in shared memory, a stripe is a row block. With a triangle the first row block has all tiles and the
    last one a few: a long one and a short one together make all blocks of threads end at the same time. A problem of
    few tiles has one for each.
    """
    blocks, tiles = -(-m // size.rows), -(-n // size.cols)
    if size.cluster > 1:
        return _clustered(batch, blocks, tiles, size.cluster, multiprocessors, 4 * batch * m, triangle=triangle)
    stripes = -(-blocks // 2) if triangle and batch * blocks * tiles > multiprocessors else blocks
    stripes = min(stripes, _STRIPES) if has_cols else stripes
    return stripes, cut(batch * stripes, tiles, 4 * batch * m, multiprocessors)


def _clustered(
    batch: int, blocks: int, tiles: int, cluster: int, multiprocessors: int, bytes_per_cut: int, *, triangle: bool
) -> tuple[int, int]:
    """The same where rows stream: all clusters that run at once work on a window of rows and columns that is about
    square, and move it over all of them.

    Rows and columns are each fetched once for all clusters of a window, so that its sides, and not its area, are what
    memory gives in a step.
    """
    steps, at_once = -(-tiles // cluster), max(1, multiprocessors // cluster)
    if not batch * blocks * steps:
        return blocks, cluster

    def cost(cuts: int) -> tuple[float, int]:
        stripes = stripes_beside(cuts)
        rounds, waves = -(-blocks // stripes), -(-batch * stripes * cuts // at_once)
        length = float(rounds * -(-steps // cuts))
        if triangle:  # a share, half a step for every row block that is not divided evenly, and a round without return
            share = (blocks * steps - blocks * (blocks - 1) / 2) / (stripes * cuts)
            length = share + rounds * (1 - 1 / cuts) / 2 + rounds % 2 * (stripes - 1) / (2 * cuts)
        return waves * length * (1 + (stripes + cuts) / 200), cuts

    def stripes_beside(cuts: int) -> int:
        stripes = min(blocks, _STRIPES, max(1, at_once // (batch * cuts)))
        return -(-blocks // -(-blocks // stripes))  # as few as take as many rounds

    most = max(1, min(steps, at_once, _ROW_SUMS_BYTES // max(1, cluster * bytes_per_cut)))
    cuts = min(range(1, most + 1), key=cost)
    return stripes_beside(cuts), cuts * cluster


def _running_sums(o: Operands) -> Sums:
    (batch, m, _), n = o.x.shape, o.y.shape[1]
    size = tile(o.x, "sums", Weight.EXP)
    stripes, cuts = shares(batch, m, n, size, multiprocessors(o.x.device))
    row, top = o.x.new_empty((2, cuts, batch, m), dtype=torch.float32)
    # A row's log-weight is in all of its logits: it comes to the maximum last, as it does to the weights.
    _launch_sums(replace(o, terms=o.terms._replace(u=None)), Task.SUM_RUNNING, stripes=stripes, row=row, row_second=top)
    return added(row, top, o.unit)._replace(u=o.terms.u)


def _launch_sums(
    o: Operands,
    task: Task,
    *,
    stripes: int,
    row: Tensor,
    triangle: bool = False,
    row_second: Tensor | None = None,
    col: Tensor | None = None,
) -> None:
    if o.y.shape[1] == 0:
        row.zero_()
        if row_second is not None:
            row_second.fill_(-torch.inf)
    if row.numel() == 0 or o.y.shape[1] == 0:
        return
    unit, (u, v, row_ids, col_ids) = o.unit, o.terms
    ops(o.x.device).sums(
        *(o.x, o.y, None if u is None else row_terms(u * unit), None if v is None else col_terms(v * unit)),
        *(row_ids, col_ids, o.exclude, 0, 1, whole(o.x, o.y), o.spec.scale * unit, 0.0, False),
        *(task, o.split, triangle, stripes, row.shape[0], row, row_second, col, None),
    )


def contract(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    """Weighted sums for the rows of ``x`` and for those of ``y``, where needed; as long as padded rows.

    One pass for each side while a row block's sums fit in registers; panels beyond, which serve both at once. With
    ``y = x`` the row side holds everything.

    Args:
        o: the problem.
        mode: ``exp`` or ``softplus``; with factors ``bounded`` or ``running``.
        factors: those of ``bounded`` and ``running``.
        need_x: whether the row side is wanted.
        need_y: whether the column side is wanted.
    """
    if 0 in (*o.x.shape[:2], o.y.shape[1]):
        return (_no_pairs(o.x) if need_x else None, _no_pairs(o.y) if need_y else None)
    if o.x.shape[2] > CONTRACT_DIM:
        return _contract_by_panels(o, mode, factors, need_x=need_x, need_y=need_y)
    of_x = _contract_rows(o, mode, factors) if need_x else None
    return of_x, _contract_rows(o.swapped(), mode, factors.swapped()) if need_y else None


def _contract_rows(o: Operands, mode: str, factors: Factors) -> Side:
    late = factors.b is None and o.terms.v is None
    factors, scale = _in_range(o, factors, late=late)
    weighing = _weighing(o, mode, factors, late=late)
    (batch, m, dim), n = o.x.shape, o.y.shape[1]
    size = tile(o.x, "contract", weighing.weight)
    blocks = -(-m // size.rows)
    cuts = cut(batch * blocks, -(-n // size.cols), 4 * batch * m * dim, multiprocessors(o.x.device))
    grad = o.x.new_empty((cuts * batch * m, dim), dtype=torch.float32)
    sums = grad.new_empty(cuts * batch * m)
    value = torch.empty_like(sums) if mode == "softplus" else sums
    unit = o.unit
    ops(o.x.device).contract(
        *(o.x, o.y, weighing.rows, weighing.cols, o.terms.row_ids, o.terms.col_ids),
        *(o.exclude, 0, 1, whole(o.x, o.y, cuts), o.spec.scale * unit, weighing.offset, mode == "running"),
        *(weighing.weight, o.split, weighing.out_scale, grad, sums, value if mode == "softplus" else None),
    )
    shape = (cuts, batch, m)
    side = Side(grad.view(*shape, dim), sums.view(shape), value.view(shape))
    return side if scale is None else side.divided(scale)


def whole(x: Tensor, y: Tensor, cuts: int = 1) -> tuple[int, ...]:
    """All rows against all columns, as the one side of a grid: see ``Side`` in ``csrc/pair_tile.cuh``."""
    return 0, 0, x.shape[1], y.shape[1], 1, cuts


def _no_pairs(x: Tensor) -> Side:
    sums = x.new_zeros((1, *x.shape[:2]), dtype=torch.float32)
    return Side(x.new_zeros((1, *x.shape), dtype=torch.float32), sums, sums)


def _in_range(o: Operands, factors: Factors, *, late: bool) -> tuple[Factors, Tensor | None]:
    """Factors with which float16 weights fill its range, and the scale that this puts on the results."""
    if o.kind != "float16" or late or (factors.a is None and factors.b is None):
        return factors, None
    a, b, scale = scaled_to_float16(factors.a, factors.b)
    return factors._replace(a=a, b=b), scale


def _weighing(o: Operands, mode: str, factors: Factors, *, late: bool) -> Weighing:
    """How the kernels make the weights of a mode.

    Args:
        o: the problem.
        mode: see `contract`.
        factors: likewise.
        late: whether a row's factor, the only one, waits for the results; stored weights need it at once.
    """
    u, v = o.terms.u, o.terms.v
    row_lse, a, col_lse, b = factors
    weight = Weight.SOFTPLUS if mode == "softplus" else Weight.EXP
    unit = o.unit
    # Exponentials of at most 1, or of at most the scale, moved to where float16 has most room.
    narrow = o.kind == "float16" and b is None and (a is None or late)
    offset, out_scale = exp_range(0.0 if a is not None else o.spec.scale) if narrow else (0.0, 1.0)
    offset *= unit
    if mode == "exp" and u is None and v is None:
        return Weighing(Weight.EXP, None, None, offset, out_scale)

    no_rows = o.x.new_zeros(o.x.shape[:2], dtype=torch.float32)
    no_cols = o.x.new_zeros(o.y.shape[:2], dtype=torch.float32)
    of_rows, of_cols = no_rows if u is None else u, no_cols if v is None else v
    if weight == Weight.SOFTPLUS:
        return Weighing(weight, row_terms(of_rows * unit), col_terms(of_cols * unit))
    if a is not None and b is not None:
        row_top, col_top = _inf_for_empty(row_lse), _inf_for_empty(col_lse)
        if mode == "running":
            return Weighing(
                Weight.TWO,
                row_terms((of_rows - row_top) * unit, a, of_rows * unit),
                col_terms(of_cols * unit, b, (of_cols - col_top) * unit),
            )
        # exp(l - lse) = exp(l) exp(-lse): both sides share one exponential.
        return Weighing(
            Weight.FACTOR,
            row_terms(of_rows * unit, a * torch.exp(-row_top)),
            col_terms(of_cols * unit, b * torch.exp(-col_top)),
        )
    if b is not None:
        of_cols = of_cols - _inf_for_empty(col_lse)
        return Weighing(Weight.FACTOR, row_terms(of_rows * unit, no_rows), col_terms(of_cols * unit, b))
    if a is not None:
        of_rows = of_rows - _inf_for_empty(row_lse)
    rows = row_terms(of_rows * unit, torch.ones_like(no_rows) if a is None else a)
    if v is None and (a is None or late):
        return Weighing(Weight.EXP, rows, None, offset, out_scale)
    return Weighing(Weight.FACTOR, rows, col_terms(of_cols * unit, no_cols), offset, out_scale)


def exp_range(most: float) -> tuple[float, float]:
    """What moves exponentials of at most ``exp(most)`` to where float16 has most room: a summand of the exponents, and
    the factor that takes it off the results.
    """
    shift = math.log(FLOAT16_RANGE) - most
    return shift, math.exp(-shift)


def _inf_for_empty(lse: Tensor | None) -> Tensor:
    """A row without candidates has the log-sum-exp -inf; its weights must be exp(-inf) = 0, not exp(nan)."""
    assert lse is not None
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _contract_by_panels(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    factors, scale = _in_range(o, factors, late=False)
    weighing = _weighing(o, mode, factors, late=False)
    unit = o.unit
    task = Task.STORE_EXP + weighing.weight
    size = tile(o.x, "stores", weighing.weight)
    _, _, row_ids, col_ids = o.terms

    def weights(batches: slice, rows: slice, cols: slice, w: Tensor, need_cols: bool) -> tuple[Tensor, Tensor, Tensor]:
        batch, m, n = w.shape
        stripes, cuts = shares(batch, m, n, size, multiprocessors(o.x.device), has_cols=need_cols)
        row, second = o.x.new_empty((2, cuts, batch, m), dtype=torch.float32)
        col = row.new_zeros((stripes * size.groups, batch, n)) if need_cols else None
        ops(o.x.device).sums(
            *(o.x[batches, rows], o.y[batches, cols]),
            None if weighing.rows is None else weighing.rows[batches, :, rows],
            None if weighing.cols is None else weighing.cols[batches, :, cols.start :],
            None if row_ids is None else row_ids[batches, rows],
            None if col_ids is None else col_ids[batches, cols],
            *(o.exclude, rows.start - cols.start, 1, (0, 0, m, n, 1, 1), o.spec.scale * unit),
            weighing.offset,
            *(mode == "running", task, o.split, False, stripes, cuts, row),
            *(second if mode == "softplus" else None, col, w),
        )
        total = row.sum(0)
        return total, total if col is None else col.sum(0), second.sum(0) if mode == "softplus" else total

    sides = contract_by_panels(
        o.x, o.y, weights, symmetric=o.symmetric, has_value=mode == "softplus", need_x=need_x, need_y=need_y
    )
    if scale is None and weighing.out_scale == 1.0:
        return sides
    divisor = 1 / weighing.out_scale if scale is None else scale / weighing.out_scale
    of_x, of_y = (None if side is None else side.divided(divisor) for side in sides)
    return of_x, of_y


pairwise = Pairwise(as_operands, pair_sums, contract)
