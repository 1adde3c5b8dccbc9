"""The pairs of this rank's rows with the rows of other ranks, and sums over ranks.

A loss over a shared batch is the composition it always is, of the rank's own rows, and one part more: the rows
elsewhere. Gradients are those of the sum of what all ranks compute, with respect to the rank's own rows. None is ever
sent: a rank that has seen the columns of all others, and one number or two for each of them, has the complete
gradient of its rows.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .. import ops
from ..classes import class_index, class_sums_of
from ..distributed import Ranks, Remote, all_gather, outside_of_graphs
from ..spec import NO_TERMS, PairSpec, PairTerms
from .pairs import operand_grads, sides_requiring_grad


class RemoteLSE(NamedTuple):
    """What rows have on other ranks, ``(N,)`` or ``(B, N)`` each.

    Attributes:
        row_lse: log-sum-exp over the columns there; -inf, with gradient 0, if there are none.
        col_lse: that of the columns here over the rows there; without elements if not wanted.
        positives: with labels, the sum of ``<x_i, y_p>`` over the columns there of the same label; else without
            elements.
        number: how many these are, not differentiable.
    """

    row_lse: Tensor
    col_lse: Tensor
    positives: Tensor
    number: Tensor


def share(
    ranks: Ranks, y: Tensor, *, v: Tensor | None = None, ids: Tensor | None = None, labels: Tensor | None = None
) -> Remote | None:
    """Starts to send this rank's columns to the others: best before its own pairs are computed.

    Args:
        ranks: who shares the batch.
        y: ``(N, D)`` or ``(B, N, D)`` prepared rows.
        v: ``(N,)`` or ``(B, N)`` log-weights.
        ids: integers, for ``exclude="same_id"``.
        labels: integers, those of ``y``, for the positives of `remote_row_lse`.

    Returns:
        What the other ranks have; ``None`` where there are no others.
    """
    return None if ranks.alone else _shared(ranks, y, v, ids, labels)


@outside_of_graphs
def _shared(ranks: Ranks, y: Tensor, v: Tensor | None, ids: Tensor | None, labels: Tensor | None) -> Remote:
    is_batch = y.dim() == 3
    tensors: list[Tensor | None] = [y if is_batch else y.unsqueeze(0)]
    for t in (v, ids, labels):
        vector = t
        if t is not None:
            # Of integers the widest: the narrow ones are not sent by every library.
            vector = (t if t is v else t.to(torch.int64)).expand(y.shape[:-1])
            vector = vector if is_batch else vector.unsqueeze(0)
        tensors.append(vector)
    return Remote(ranks, tensors)


@outside_of_graphs
def remote_row_lse(
    x: Tensor,
    y: Tensor | None,
    remote: Remote,
    *,
    spec: PairSpec,
    terms: PairTerms | None = None,
    labels: Tensor | None = None,
    y_labels: Tensor | None = None,
    need_cols: bool = False,
    rows: Ranks | None = None,
    backend: str | None = None,
) -> RemoteLSE:
    """`row_lse` over the columns of all other ranks.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` rows of this rank.
        y: columns of this rank, which the others see; ``None`` for ``y = x``.
        remote: those of the others, from `share`.
        spec: the problem; ``"self"`` leaves out nothing here.
        terms: log-weights and ids of this rank.
        labels: ``(N,)`` or ``(B, N)`` integers, those of the rows, for the positives.
        y_labels: those of ``y``, as they were shared; ``None`` where they are those of the rows.
        need_cols: whether the column side is wanted.
        rows: who holds which rows of ``x``; ``None`` where each rank has as many as columns.
        backend: name of a backend to force.
    """
    operands = _operands(x, y, terms)
    both = []
    for t in (labels, y_labels):
        wide = None if t is None else t.to(torch.int64)
        both.append(wide if wide is None or x.dim() == 3 else wide.unsqueeze(0))
    found = _RemoteRowLSE.apply(*operands, *both, remote, rows or remote.ranks, _across(spec), need_cols, backend)
    if x.dim() == 3:
        return RemoteLSE(*found)
    row_lse, col_lse, positives, number = found
    return RemoteLSE(row_lse.squeeze(0), col_lse.squeeze(0), positives.squeeze(0), number.squeeze(0))


@outside_of_graphs
def remote_energy(
    x: Tensor,
    y: Tensor | None,
    remote: Remote,
    *,
    spec: PairSpec,
    potential: str = "exp",
    terms: PairTerms | None = None,
    backend: str | None = None,
) -> Tensor:
    """``sum_ij phi(l_ij)`` over the rows of this rank and the columns of all other ranks.

    It belongs into a `sum_over_ranks`: its gradient is that of the sum, in which a row here is a column elsewhere.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` rows of this rank.
        y: columns of this rank, which the others see; ``None`` for ``y = x``.
        remote: those of the others, from `share`.
        spec: the problem; ``"self"`` leaves out nothing here.
        potential: ``"exp"`` or ``"softplus"``.
        terms: log-weights and ids of this rank.
        backend: name of a backend to force.

    Returns:
        A scalar, or ``(B,)``.
    """
    operands = _operands(x, y, terms)
    needs = sides_requiring_grad(operands)
    total: Tensor = _RemoteEnergy.apply(*operands, remote, _across(spec), potential, *needs, backend)
    return total if x.dim() == 3 else total.squeeze(0)


def sum_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """The sum of ``value`` over all ranks, the same bits on each, as the loss of the whole batch.

    Every rank differentiates the same loss, with respect to its own rows: the gradient is passed on as it comes, times
    ``ranks.grad_factor``.
    """
    return value if ranks.alone else _summed(value, ranks)


@outside_of_graphs
def _summed(value: Tensor, ranks: Ranks) -> Tensor:
    total: Tensor = _SumOverRanks.apply(value, ranks)
    return total


def logsumexp_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """The log-sum-exp of ``value`` over all ranks, likewise."""
    if ranks.alone:
        return value
    top = ranks.max(value)
    return sum_over_ranks((value - top).exp(), ranks).log() + top


class _SumOverRanks(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.factor = ranks.grad_factor
        return all_gather(value, len(ranks.counts), ranks.handle)[0].sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grad, None


class _RemoteRowLSE(Function):
    """``operands, labels, y_labels -> row_lse, col_lse, positives, number``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        labels: Tensor | None,
        y_labels: Tensor | None,
        remote: Remote,
        rows: Ranks,
        spec: PairSpec,
        need_cols: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        of_row: tuple[Tensor, Tensor] | None = None
        labelled = x if labels is not None else x[:, :0]
        sums, number = torch.zeros_like(labelled), torch.zeros_like(labelled[..., :1])
        of_cols: dict[int, Tensor] = {}
        apart = _the_same_on_both(spec)
        for owners, (y_there, v_there, ids_there, labels_there) in remote.blocks(apart=apart):
            operands = x, y_there, u, v_there, row_ids, ids_there
            # The pairs with the rows of a lower rank are computed as that rank does.
            turned = y is None and apart and owners[0] < remote.ranks.rank
            if turned:
                _, part, _, rounding = ops.row_lse(*_turned(operands), *spec, True, backend)
            else:
                part, col_part, rounding, col_rounding = ops.row_lse(*operands, *spec, need_cols, backend)
            of_row = (part, rounding) if of_row is None else _joined(*of_row, part, rounding)
            if need_cols:
                lengths = map(remote.ranks.counts.__getitem__, owners)
                both = torch.cat([col_part, col_rounding]).split_with_sizes(list(lengths), 1)
                of_cols.update(zip(owners, both, strict=True))
            if labels is not None:
                sums += _sums_by_label(y_there, labels_there, labels)
                number += _sums_by_label(torch.ones_like(y_there[..., :1]), labels_there, labels)
        of_col: tuple[Tensor, Tensor] | None = None
        if need_cols:
            like = x.new_empty(2 * x.shape[0], 0 if y is None else y.shape[1])
            for arrived in remote.ranks.to_owners(of_cols, like=like):
                col_part, col_rounding = arrived.chunk(2)
                of_col = (col_part, col_rounding) if of_col is None else _joined(*of_col, col_part, col_rounding)
        row, row_rounding = of_row or _no_sum(x, x.shape[1])
        col, col_rounding = of_col or _no_sum(x, 0 if y is None or not need_cols else y.shape[1])
        y_labels = labels if y_labels is None else y_labels
        of_labels, of_pairs = (labels, y_labels, sums), (row, col, row_rounding, col_rounding)
        ctx.save_for_backward(x, y, u, v, row_ids, col_ids, *of_labels, *of_pairs, *remote.state)
        ctx.ranks, ctx.rows, ctx.kept, ctx.apart = remote.ranks, rows, remote.is_kept, apart
        ctx.spec, ctx.need_cols, ctx.backend = spec, need_cols, backend
        number = number.squeeze(2)
        ctx.mark_non_differentiable(number)
        return row, col, (labelled * sums).sum(2), number

    @staticmethod
    def backward(ctx: Any, grad_row: Tensor, grad_col: Tensor, grad_positives: Tensor, _: Tensor) -> tuple[Any, ...]:
        _refuse_second_order()
        x, y, u, v, row_ids, col_ids, labels, y_labels, sums, *saved = ctx.saved_tensors
        row, col, row_rounding, col_rounding, *state = saved
        grad_row, grad_col = grad_row * row_rounding, grad_col * col_rounding
        needs, spec = ctx.needs_input_grad, ctx.spec
        need_x, need_y = needs[0] or needs[2], needs[1] or needs[3]
        (dx, du), (dy, dv) = _zeros(x, need_x), _zeros(x if y is None else y, need_y)
        col_side = (col, grad_col) if ctx.need_cols else (None, None)
        if need_x:
            of_positives = dx[:, :0] if labels is None else grad_positives.unsqueeze(2) * sums
            # How the columns there weigh our rows: as columns, or with y = x as the rows that they are as well.
            weights = (row, grad_row) if y is None else col_side
            remote = Remote.restored(ctx.ranks, state, kept=ctx.kept)
            # With y = x our rows are positives of the rows there as well.
            of_labels = grad_positives if labels is not None and y is None else None
            for owners, tensors in remote.blocks(*weights, of_labels, apart=ctx.apart):
                y_there, v_there, ids_there, labels_there, lse_there, grad_there, positives_there = tensors
                operands = x, y_there, u, v_there, row_ids, ids_there
                if y is None and ctx.apart and owners[0] < ctx.ranks.rank:
                    pairs = lse_there, row, grad_there, grad_row
                    _, _, part, part_sum = ops.pair_grad(*_turned(operands), *spec, *pairs, False, True, ctx.backend)
                else:
                    pairs = row, lse_there, grad_row, grad_there
                    part, part_sum, _, _ = ops.pair_grad(*operands, *spec, *pairs, True, False, ctx.backend)
                dx += part
                du += part_sum
                if positives_there is not None:
                    weighted = positives_there.unsqueeze(2) * y_there
                    of_positives += _sums_by_label(weighted, labels_there, labels)
            dx.mul_(spec.scale)
            if labels is not None:
                dx += of_positives
        if need_y:
            # The rows there, with what they make of our columns.
            of_labels = None if labels is None else grad_positives
            rows = Remote(ctx.rows, [x, u, row_ids, row, grad_row, labels, of_labels])
            of_positives = dy[:, :0] if labels is None else torch.zeros_like(dy)
            for _there, tensors in rows.blocks(apart=ctx.apart):
                x_there, u_there, ids_there, lse_there, grad_there, labels_there, positives_there = tensors
                mirrored = x_there, y, u_there, v, ids_there, col_ids
                both_sides = lse_there, col_side[0], grad_there, col_side[1]
                _, _, part, part_sum = ops.pair_grad(*mirrored, *spec, *both_sides, False, True, ctx.backend)
                dy += part
                dv += part_sum
                if labels is not None:
                    weighted = positives_there.unsqueeze(2) * x_there
                    of_positives += _sums_by_label(weighted, labels_there, y_labels)
            dy.mul_(spec.scale)
            if labels is not None:
                dy += of_positives
        return *operand_grads((dx, du, dy, dv), needs), *(None,) * 7


class _RemoteEnergy(Function):
    """``operands -> total``; the gradient is computed with it, and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        remote: Remote,
        spec: PairSpec,
        potential: str,
        need_x: bool,
        need_y: bool,
        backend: str | None,
    ) -> Tensor:
        total = x.new_zeros(x.shape[0])
        (dx, du), (dy, dv) = _zeros(x, need_x), _zeros(x if y is None else y, need_y)
        for _there, (y_there, v_there, ids_there, _) in remote.blocks():
            operands = x, y_there, u, v_there, row_ids, ids_there
            part, part_x, part_u, _, _ = ops.energy(*operands, *spec, potential, need_x, False, backend)
            total += part
            dx += part_x
            du += part_u
        if need_y:
            rows = Remote(remote.ranks, [x, u, row_ids])
            for _there, (x_there, u_there, ids_there) in rows.blocks():
                mirrored = x_there, y, u_there, v, ids_there, col_ids
                _, _, _, part_y, part_v = ops.energy(*mirrored, *spec, potential, False, True, backend)
                dy += part_y
                dv += part_v
        ctx.save_for_backward(dx.mul_(spec.scale), du, dy.mul_(spec.scale), dv)
        ctx.symmetric = y is None
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_order()
        # With y = x every pair is in the sum over ranks twice, once on either rank.
        per_row = (2 * grad_total if ctx.symmetric else grad_total).unsqueeze(1)
        dx, du, dy, dv = ctx.saved_tensors
        grads = dx * per_row.unsqueeze(2), du * per_row, dy * per_row.unsqueeze(2), dv * per_row
        return *operand_grads(grads, ctx.needs_input_grad), *(None,) * 6


def _operands(x: Tensor, y: Tensor | None, terms: PairTerms | None) -> list[Tensor | None]:
    """``x, y, u, v, row_ids, col_ids`` with the leading batch dimension, ids of the dtype in which they travel."""
    found: list[Tensor | None] = []
    for t in (x, y, *(terms or NO_TERMS)):
        operand = t if t is None or t.is_floating_point() else t.to(torch.int64)
        found.append(operand if operand is None or x.dim() == 3 else operand.unsqueeze(0))
    return found


def _the_same_on_both(spec: PairSpec) -> bool:
    """Whether two ranks must have the same last bit of the logits of their pairs, which may be of any size.

    Each pair is computed on both: a sum on one, its weight on the other. A library's product has the same bits of the
    same two shards in the same order; not of shards in company, nor always of its transpose. A learned scale, 1 here,
    goes without: its logits are seldom beyond 100, and a call for every rank takes its time.
    """
    return not spec.bounded and spec.scale != 1.0


def _turned(operands: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """The same pairs with the roles of rows and columns exchanged."""
    x, y, u, v, row_ids, col_ids = operands
    return y, x, v, u, col_ids, row_ids


def _no_sum(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of nothing, and its rounding."""
    return x.new_full((x.shape[0], length), -torch.inf), x.new_ones(x.shape[0], length)


def _joined(lse: Tensor, rounding: Tensor, part: Tensor, part_rounding: Tensor) -> tuple[Tensor, Tensor]:
    """The log-sum-exp of two sets of pairs, and its rounding, see `hyperkern.backends.LogSumExp`."""
    both = torch.logaddexp(lse, part)
    finite = both.masked_fill(both == -torch.inf, 0)
    total = (lse - finite).exp_().div_(rounding) + (part - finite).exp_().div_(part_rounding)
    return both, total.masked_fill_(total == 0, 1).reciprocal_()


def _zeros(x: Tensor, needed: bool) -> tuple[Tensor, Tensor]:
    """The gradient of rows and of their log-weights to add to; without rows if not needed."""
    rows = x.shape[1] if needed else 0
    return x.new_zeros(x.shape[0], rows, x.shape[2]), x.new_zeros(x.shape[0], rows)


def _sums_by_label(rows: Tensor, row_labels: Tensor | None, labels: Tensor) -> Tensor:
    """For each of the labels the sum of the rows that have it."""
    assert row_labels is not None  # all ranks share labels, or none does
    index, of = class_index(row_labels, labels)
    return class_sums_of(rows, index, of, row_labels.shape[1] + labels.shape[1])


def _across(spec: PairSpec) -> PairSpec:
    """No row is its own column on another rank."""
    return PairSpec(spec.scale, spec.bounded, "none", spec.precision) if spec.exclude == "self" else spec


def _refuse_second_order() -> None:
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "the gradient of a loss across ranks cannot be differentiated again: create_graph=True needs group=None"
        )
