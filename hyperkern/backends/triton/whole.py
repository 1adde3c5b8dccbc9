"""Whole losses in few launches, for batches where a launch costs as much as the arithmetic: what is launched.

Rows, sums of the pairs and head make a softmax, three launches; backward are the contraction of both sides and the rows
again. The other losses have the contraction instead of the sums. Of long rows the contraction is a panel of weights and
a product of the library for each side. Alignment + uniformity: see ``align_uniform.py``.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import PairTerms
from ..host.panels import products, room
from ..host.whole import LOSSES, Kept, Plan, State, WholeLosses, kept_of
from .align_uniform import align_uniform, align_uniform_grad
from .launch import launch
from .primitives import SumParts, sum_parts
from .schedule import Schedule, rows_of, schedule_of

__all__ = ["LOSSES", "loss", "loss_grad"]


class _Prepared(NamedTuple):
    """What `prepare_rows_kernel` makes, where it is wanted."""

    rows: Tensor
    positive: Tensor | None
    zeros: Tensor | None
    u: Tensor | None
    classes: Tensor | None
    factor: Tensor | None
    lse: Tensor | None
    share: Tensor | None
    counters: Tensor
    kept: Kept


class _Vectors(NamedTuple):
    """What the weights of pairs are made of besides: of all rows of an operand, log-weights those of rows alone."""

    u: Tensor | None
    lse: Tensor | None
    factor: Tensor | None
    classes: Tensor | None
    share: Tensor | None

    def of(self, first: int) -> "_Vectors":
        """Of the rows from some on."""
        return self if first == 0 else _Vectors(*(None if t is None else t[:, first:] for t in self))


class _Contracted(NamedTuple):
    """Weighted sums of the rows of all sides; sums of weights and of the potential, of those of ``x`` at least."""

    grad: Tensor
    sums: list[Tensor]
    values: list[Tensor]


def values(plan: Plan) -> tuple[Tensor, Kept, State] | None:
    """The loss ``(B,)`` and what its gradient needs, see `hyperkern.backends.host.whole.WholeLosses`."""
    schedule = schedule_of(plan)
    if not schedule.serves:
        return None
    prepared = _prepare(plan, schedule)
    head = {"classes": _classes, "energy": _energy, "sigmoid": _sigmoid}.get(plan.scheme.head, _softmax)
    loss, state = head(plan, schedule, prepared)
    return loss, prepared.kept, state


def grads(plan: Plan, needed: dict[str, Tensor], state: State, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradients that are needed, likewise."""
    schedule, head = schedule_of(plan), plan.scheme.head
    if head == "energy":
        grad, total, counters = state
        return _finish(plan, schedule, needed, grad, counters, cotangent, total=total)
    if head == "sigmoid":
        grad, own, bias_sums, counters = state
        return _finish(plan, schedule, needed, grad, counters, cotangent, own=own, bias_sums=bias_sums)
    if head == "classes":
        rows, counters, anchors, classes, share, factor, *lse = state
        found = _contract(schedule, rows, factor=factor, lse=lse[0] if lse else None, classes=classes, share=share)
        return _finish(plan, schedule, needed, found.grad, counters, cotangent, anchors=anchors)
    rows, own, counters, factor, *lse = state
    found = _contract(schedule, rows, factor=factor, lse=lse[0] if lse else None)
    return _finish(plan, schedule, needed, found.grad, counters, cotangent, own=own)


def _prepare(plan: Plan, schedule: Schedule) -> _Prepared:
    scheme, x = plan.scheme, plan.x
    batch, rows, head = scheme.batch, scheme.rows, scheme.head
    factors = bool(scheme.need) and head not in ("energy", "sigmoid")
    empty = functools.partial(x.new_empty, dtype=torch.float32)
    out = _Prepared(
        x.new_empty((batch, rows, schedule.width), dtype=scheme.dtype),
        None if plan.y is None else empty((batch, scheme.pairs)),
        empty((batch, schedule.blocks + schedule.blocks_further)) if head == "energy" else None,
        empty((batch, rows)) if head == "sigmoid" else None,
        None if plan.labels is None else _operand_of_labels(plan.labels, plan.queue_labels, (batch, rows)),
        empty((batch, rows)) if factors else None,
        empty((batch, rows)) if factors and scheme.weights != "bounded" else None,
        empty((batch, rows)) if factors and head == "classes" else None,
        x.new_empty(batch + 1, dtype=torch.int32),
        kept_of(plan),
    )
    # The head does not write those of candidates that are no anchors.
    one_way = scheme.views == 1 and not scheme.two_way
    launch(
        schedule.prepare,
        x.device,
        *(x, plan.y, plan.queue, plan.scale, plan.bias, plan.labels, plan.queue_labels),
        *(out.rows, out.positive, out.zeros, out.u, out.classes),
        *((out.factor, out.lse, out.share) if one_way else (None, None, None)),
        *(out.counters, *out.kept),
    )
    return out


def _operand_of_labels(labels: Tensor, others: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Of integers that hold those of both: pairs compare them, and two words take twice as long as one."""
    wide = max(labels.itemsize, 0 if others is None else others.itemsize) == 8
    return labels.new_empty(shape, dtype=torch.int64 if wide else torch.int32)


def _sums(schedule: Schedule, i: int, rows: Tensor, u: Tensor | None = None, classes: Tensor | None = None) -> SumParts:
    """Those of a job."""
    job = schedule.scheme.of_sums[i]
    x, y = rows_of(rows, job.row, job.rows), rows_of(rows, job.col, job.cols)
    return sum_parts(schedule.sums[i], x, y, PairTerms(u), classes)


def _softmax(plan: Plan, schedule: Schedule, prepared: _Prepared) -> tuple[Tensor, State]:
    row, row_top, col, col_top, *_ = _sums(schedule, 0, prepared.rows)
    batch, anchors = plan.scheme.batch, schedule.anchors
    own = row.new_empty((batch, anchors)) if plan.scheme.need else None
    parts, loss = row.new_empty((batch, schedule.head_blocks)), row.new_empty(batch)
    launch(
        schedule.head,
        row.device,
        *(row, row_top, col, col_top, prepared.positive, plan.scale, prepared.factor, prepared.lse, own),
        *(parts, prepared.counters, loss),
    )
    if own is None or prepared.factor is None:
        return loss, ()
    lse = () if prepared.lse is None else (prepared.lse,)
    return loss, (prepared.rows, own, prepared.counters, prepared.factor, *lse)


def _classes(plan: Plan, schedule: Schedule, prepared: _Prepared) -> tuple[Tensor, State]:
    assert prepared.classes is not None
    row, row_top, _, _, positive = _sums(schedule, 0, prepared.rows, classes=prepared.classes)
    batch = plan.scheme.batch
    of_blocks, loss, anchors = (row.new_empty(shape) for shape in ((2, batch, schedule.head_blocks), batch, batch))
    launch(
        schedule.head,
        row.device,
        *(row, row_top, positive, prepared.factor, prepared.lse, prepared.share),
        *(of_blocks, prepared.counters, loss, anchors),
    )
    if prepared.factor is None or prepared.share is None:
        return loss, ()
    lse = () if prepared.lse is None else (prepared.lse,)
    state = (prepared.rows, prepared.counters, anchors, prepared.classes, prepared.share, prepared.factor)
    return loss, (*state, *lse)


def _sigmoid(plan: Plan, schedule: Schedule, prepared: _Prepared) -> tuple[Tensor, State]:
    assert prepared.u is not None
    batch, n = plan.scheme.batch, plan.scheme.pairs
    total = own = grad = None
    if plan.scheme.need:
        grad, (total, *_), (value, *_) = _contract(schedule, prepared.rows, u=prepared.u)
        own = grad.new_empty((batch, n))
    else:
        value = _sums(schedule, 0, prepared.rows, prepared.u[:, :n].contiguous()).row
    parts, loss, bias_sums = (value.new_empty(shape) for shape in ((2, batch, schedule.head_blocks), batch, batch))
    launch(
        schedule.head,
        value.device,
        *(value, total, prepared.positive, plan.bias, own, parts, prepared.counters, loss, bias_sums),
    )
    return loss, () if own is None or grad is None else (grad, own, bias_sums, prepared.counters)


def _energy(plan: Plan, schedule: Schedule, prepared: _Prepared) -> tuple[Tensor, State]:
    scheme = plan.scheme
    if scheme.need:
        grad, sums, _ = _contract(schedule, prepared.rows)
    else:
        sums = [_sums(schedule, i, prepared.rows).row for i in range(len(scheme.of_sums))]
        grad = sums[0]
    by_own = {job.own: part for job, part in zip(scheme.of_sums, sums, strict=False)}
    total, loss = grad.new_empty(scheme.batch), grad.new_empty(scheme.batch)
    launch(schedule.head, grad.device, by_own.get(False), by_own.get(True), prepared.zeros, total, loss)
    return loss, (grad, total, prepared.counters)


def _contract(
    schedule: Schedule,
    rows: Tensor,
    *,
    u: Tensor | None = None,
    factor: Tensor | None = None,
    lse: Tensor | None = None,
    classes: Tensor | None = None,
    share: Tensor | None = None,
) -> _Contracted:
    """All sides that are needed, in one pass or by panels."""
    vectors = _Vectors(u, lse, factor, classes, share)
    grad = rows.new_empty((schedule.results, schedule.width), dtype=torch.float32)
    return (_by_panels if schedule.choice is None else _in_one_pass)(schedule, rows, vectors, grad)


def _in_one_pass(schedule: Schedule, rows: Tensor, vectors: _Vectors, grad: Tensor) -> _Contracted:
    """Two sides in one launch."""
    sums = grad.new_empty(schedule.results)
    values = torch.empty_like(sums) if schedule.scheme.weights == "softplus" else sums
    for start, planned in schedule.contract:
        out = (grad, sums, values) if start == 0 else (grad[start:], sums[start:], values[start:])
        launch(planned, rows.device, rows, *vectors, *out)
    sides = schedule.sides
    return _Contracted(grad, [sums[side.first :] for side in sides], [values[side.first :] for side in sides])


def _by_panels(schedule: Schedule, rows: Tensor, vectors: _Vectors, grad: Tensor) -> _Contracted:
    """The weights of a side and of its mirror image in one launch, then a product of the library for each."""
    scheme, found = schedule.scheme, _Contracted(grad, [], [])
    for planned, side, mirrored, shape in schedule.panels:
        job = side.job
        x, y = rows_of(rows, job.row, job.rows), rows_of(rows, job.col, job.cols)
        u, row_lse, a, row_ids, row_share = vectors.of(job.row)
        _, col_lse, b, col_ids, col_share = vectors.of(job.col)
        w = room(rows, scheme.batch, job.rows, job.cols)
        sums = None if shape is None else grad.new_empty(shape)
        values = torch.empty_like(sums) if sums is not None and scheme.weights == "softplus" else sums
        factors = (row_lse, a, col_lse, b, row_share, col_share)
        launch(planned, rows.device, x, y, u, None, row_ids, col_ids, *factors, w, sums, None, values)
        products(grad, w, x, y, side, mirrored, wants_x=scheme.wants_x)
        del w  # before there is room for the next
        if sums is not None and values is not None:
            found.sums.append(sums)
            found.values.append(values)
    if schedule.panel_scale != 1:
        for part in (grad, *found.sums):
            part.mul_(schedule.panel_scale)
    return found


def _finish(
    plan: Plan,
    schedule: Schedule,
    needed: dict[str, Tensor],
    grad: Tensor,
    counters: Tensor,
    cotangent: Tensor,
    *,
    own: Tensor | None = None,
    total: Tensor | None = None,
    anchors: Tensor | None = None,
    bias_sums: Tensor | None = None,
) -> dict[str, Tensor]:
    of_x, sides, (x, y, queue) = schedule.of_x, schedule.sides, (plan.x, plan.y, plan.queue)
    grad_x = grad if of_x else None
    grad_queue = grad[sides[of_x].first :] if of_x < len(sides) else None
    grad_y = grad_queue if schedule.shares_side else None
    if plan.scheme.views == 2:
        grad_y = grad_x
    found = {name: given.new_empty(given.shape) for name, given in needed.items()}
    dy, dqueue = (None, found.get("y")) if y is None else (found.get("y"), found.get("queue"))
    parts = grad.new_empty(plan.scheme.batch * schedule.blocks) if "scale" in found else None
    launch(
        schedule.finish,
        x.device,
        *(x, y, queue, plan.scale, grad_x, grad_y, grad_queue, own, total, anchors, bias_sums, cotangent.contiguous()),
        *(found.get("x"), dy, dqueue, found.get("scale"), found.get("bias"), parts, counters),
    )
    return found


_WHOLE = WholeLosses(values, grads, align_uniform, align_uniform_grad)
loss, loss_grad = _WHOLE.loss, _WHOLE.loss_grad
