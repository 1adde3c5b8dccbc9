"""The pairwise primitives on the host: what is launched, in how many programs, and what becomes of partial results."""

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import PairTerms
from ..host.pairwise import Factors, Pairwise
from ..host.panels import contract_by_panels
from ..host.partials import Side, Sums, added, cut
from ..host.precision import scaled_to_float16
from .contract import contract_kernel
from .launch import Launch, launch
from .operands import Operands, as_operands, strides
from .panel import panel_kernel
from .specialised import specialised
from .sums import sums_kernel
from .two_way import two_way_sums_kernel

# Partial column sums are kept for at most so many stripes of row blocks, little beside D: cutting the columns fills the
# GPU.
_STRIPES = 64


def pair_sums(o: Operands, mode: str, *, need_cols: bool, total: bool) -> tuple[Sums, Sums]:
    """Sums of the pairs, with ``y = x`` from the tiles on and right of the diagonal alone.

    Args:
        o: the problem.
        mode: ``exp``, ``softplus`` or ``running`` (log-sum-exp with a running maximum).
        need_cols: whether column sums are wanted (where ``y`` is not ``x``).
        total: whether only the total is wanted: rows are then incomplete where ``y`` is ``x``, their sum is not.

    Returns:
        Row sums and column sums, which have no elements if not wanted; relative to maxima where the mode is
        ``running``.
    """
    planned = plan_sums(o, mode, need_cols=need_cols, total=total)
    row, row_top, col, col_top, *_ = sum_parts(planned, o.x, o.y, o.terms)
    of_rows, nothing = added(row, row_top), Sums(row.new_empty(row.shape[1], 0))
    if col is None:
        return of_rows, nothing
    of_cols = added(col, col_top)
    if not o.symmetric:
        return of_rows, of_cols
    tops = None if of_rows.top is None or of_cols.top is None else torch.stack([of_rows.top, of_cols.top])
    return added(torch.stack([of_rows.total, of_cols.total]), tops), nothing


class PlannedSums(NamedTuple):
    """All of the launch of a kernel of sums but the tensors, and the shapes of its outputs, see `SumParts`."""

    launch: Launch
    row: tuple[int, int, int]
    col: tuple[int, int, int] | None


class SumParts(NamedTuple):
    """What is left to be added. With ``y = x`` the sums of a row are those of the row and of its column.

    Attributes:
        row: ``(parts, B, M)``.
        row_top: what these are relative to.
        col: ``(parts, B, N)``, perhaps another number of them.
        col_top: likewise.
        positive: ``(2, cuts, B, M)``, the sums of the logits of pairs of one class, and the numbers of these.
    """

    row: Tensor
    row_top: Tensor | None
    col: Tensor | None
    col_top: Tensor | None
    positive: Tensor | None


def plan_sums(o: Operands, mode: str, *, need_cols: bool, total: bool, classes: bool = False) -> PlannedSums:
    """The launch of `pair_sums`, or with ``classes`` of the sums that take those of all rows of an operand.

    Of the operands only shapes, strides and options are read.
    """
    symmetric = o.symmetric and not classes  # for three sums of columns registers are too few
    (batch, m, _), n = o.x.shape, o.y.shape[1]
    cols = (symmetric and not total) or (need_cols and not symmetric)
    two_way = cols and mode == "exp"
    labels = classes or (two_way and o.spec.exclude == "same_id")  # they take registers
    choice = o.find("two_way" if two_way else "sums", "classes" if labels else mode)
    assert choice is not None
    blocks, tiles = -(-m // choice.block_m), -(-n // choice.block_n)
    if two_way:  # columns stay, and rows stream
        blocks, tiles = -(-n // choice.block_n), -(-m // choice.block_m)
    stripes = min(blocks, _STRIPES) if cols else blocks
    cuts = cut(batch * stripes, tiles, 4 * batch * (n if two_way else m), o.architecture.multiprocessors)
    numbers = (
        *(batch, m, n, stripes, cuts, *strides(o.x)[:2], *strides(o.y)[:2]),
        o.spec.scale * o.unit(mode),
    )
    constants = o.constants(choice, mode) | {"TRIANGLE": symmetric}
    parts = stripes * cuts if symmetric else stripes
    if two_way:
        launched = Launch(two_way_sums_kernel, batch * stripes * cuts, numbers, choice, **constants)
        return PlannedSums(launched, (parts, batch, m), (cuts, batch, n))
    launched = Launch(sums_kernel, batch * stripes * cuts, numbers, choice, **constants, COLS=cols)
    launched = specialised(launched) if choice.specialised else launched
    return PlannedSums(launched, (cuts, batch, m), (parts, batch, n) if cols else None)


def sum_parts(planned: PlannedSums, x: Tensor, y: Tensor, terms: PairTerms, classes: Tensor | None = None) -> SumParts:
    """The parts of `pair_sums`, with the classes of all rows of an operand also those of the positives.

    These are ``(B, M)``, or ``(B, M + N)`` where ``y`` stands behind ``x``.
    """
    row = x.new_empty(planned.row, dtype=torch.float32)
    col = None if planned.col is None else row.new_empty(planned.col)
    running = planned.launch.constants["MODE"] == "running"
    row_top = torch.empty_like(row) if running else None
    col_top = torch.empty_like(col) if running and col is not None else None
    positive = None if classes is None else row.new_empty((2, *planned.row))
    launch(planned.launch, x.device, x, y, *terms, row_top, row, col_top, col, classes, positive)
    return SumParts(row, row_top, col, col_top, positive)


def contract(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    """Weighted sums for the rows of ``x`` and for those of ``y``, where needed.

    One pass for each side while a row block's sums fit in registers; panels beyond, which serve both at once. With
    ``y = x`` the row side holds everything.
    """
    factors = Factors(*(None if t is None else t.contiguous() for t in factors))
    if o.x.dtype != torch.float16 or (factors.a is None and factors.b is None):
        return _contract(o, mode, factors, need_x=need_x, need_y=need_y)
    a, b, scale = scaled_to_float16(factors.a, factors.b)
    of_x, of_y = _contract(o, mode, factors._replace(a=a, b=b), need_x=need_x, need_y=need_y)
    return None if of_x is None else of_x.divided(scale), None if of_y is None else of_y.divided(scale)


def _as_kernels_take(factors: Factors, mode: str) -> Factors:
    """See ``tile.py``: log-sum-exps are inf for rows without candidates, and in the bounded regime in the factors."""
    row_lse, a, col_lse, b = factors
    row_lse, col_lse = (None if t is None else t.masked_fill(t == -math.inf, math.inf) for t in (row_lse, col_lse))
    if mode != "bounded":
        return Factors(row_lse, a, col_lse, b)
    a, b = (t if t is None or lse is None else t * torch.exp(-lse) for t, lse in ((a, row_lse), (b, col_lse)))
    return Factors(a=a, b=b)


def _contract(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    factors = _as_kernels_take(factors, mode)
    if o.find("contract", mode) is None:
        return _contract_by_panels(o, mode, factors, need_x=need_x, need_y=need_y)
    of_x = _contract_rows(o, mode, factors) if need_x else None
    return of_x, _contract_rows(o.swapped(), mode, factors.swapped()) if need_y else None


def _contract_rows(o: Operands, mode: str, factors: Factors) -> Side:
    (batch, m, dim), n = o.x.shape, o.y.shape[1]
    choice = o.find("contract", mode)
    assert choice is not None
    blocks, tiles = -(-m // choice.block_m), -(-n // choice.block_n)
    cuts = cut(batch * blocks, tiles, 4 * batch * m * dim, o.architecture.multiprocessors)
    grad = o.x.new_empty((cuts, batch, m, dim), dtype=torch.float32)
    sums = grad.new_empty((cuts, batch, m))
    value = torch.empty_like(sums) if mode == "softplus" else sums
    launch_contract(o, mode, factors, Side(grad, sums, value))
    return Side(grad, sums, value)


def launch_contract(o: Operands, mode: str, factors: Factors, out: Side) -> None:
    """Fills ``out``; the rows of a block of rows end within 2^31 elements of the gradient."""
    cuts, batch, m, _ = out.grad.shape
    choice = o.find("contract", mode)
    assert choice is not None
    numbers = (
        *(batch, m, o.y.shape[1], cuts, *strides(o.x)[:2], *strides(o.y)[:2], out.grad.stride(2)),
        *(o.spec.scale * o.unit(mode), o.shift(mode) * o.unit(mode)),
    )
    programs = batch * -(-m // choice.block_m) * cuts
    planned = Launch(contract_kernel, programs, numbers, choice, **o.constants(choice, mode))
    planned = specialised(planned) if choice.specialised else planned
    launch(planned, o.x.device, o.x, o.y, *o.terms, *factors, *out)


def _contract_by_panels(
    o: Operands, mode: str, factors: Factors, *, need_x: bool, need_y: bool
) -> tuple[Side | None, Side | None]:
    weights = functools.partial(_panel, o, mode, factors)
    has_value = mode == "softplus"
    sides = contract_by_panels(
        o.x, o.y, weights, symmetric=o.symmetric, has_value=has_value, need_x=need_x, need_y=need_y
    )
    if o.shift(mode):
        # Sums and values may be one tensor, and both sides have the same values.
        for part in {id(part): part for side in sides if side is not None for part in side}.values():
            part.mul_(math.exp(o.shift(mode)))
    return sides


def _panel(
    o: Operands,
    mode: str,
    factors: Factors,
    batches: slice,
    rows: slice,
    cols: slice,
    w: Tensor,
    need_cols: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fills ``w`` with the weights of a panel; their row and column sums, and the row sums of the potential."""
    choice = o.find("panel", mode)
    assert choice is not None
    x, y = o.x[batches, rows], o.y[batches, cols]
    (batch, m, _), n = x.shape, y.shape[1]
    row_sum = x.new_empty((-(-n // choice.block_n), batch, m), dtype=torch.float32)
    col_sum = row_sum.new_empty((-(-m // choice.block_m), batch, n)) if need_cols else None
    value = torch.empty_like(row_sum) if mode == "softplus" else row_sum
    of_rows = [
        None if t is None else t[batches, rows] for t in (o.terms.u, o.terms.row_ids, factors.row_lse, factors.a)
    ]
    of_cols = [
        None if t is None else t[batches, cols] for t in (o.terms.v, o.terms.col_ids, factors.col_lse, factors.b)
    ]
    u, row_ids, row_lse, a = of_rows
    v, col_ids, col_lse, b = of_cols
    numbers = (
        *(batch, m, n, *strides(x)[:2], *strides(y)[:2], o.x.shape[1], o.y.shape[1], *w.stride()[:2]),
        *(rows.start - cols.start, o.spec.scale * o.unit(mode), o.shift(mode) * o.unit(mode)),
    )
    programs = batch * row_sum.shape[0] * -(-m // choice.block_m)
    planned = Launch(panel_kernel, programs, numbers, choice, **o.constants(choice, mode), GROUP=8)
    of_pairs = (u, v, row_ids, col_ids, row_lse, a, col_lse, b, None, None)
    launch(planned, x.device, x, y, *of_pairs, w, row_sum, col_sum, value)
    total = row_sum.sum(0)
    return total, total if col_sum is None else col_sum.sum(0), value.sum(0) if mode == "softplus" else total


pairwise = Pairwise(as_operands, pair_sums, contract)
