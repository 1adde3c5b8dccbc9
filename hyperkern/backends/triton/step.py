"""Whole losses in few launches, for batches where a launch costs as much as the arithmetic: what is launched.

Rows, sums of the pairs and head make a softmax, three launches; backward are the contraction of both sides and the rows
again. The other losses have the contraction instead of the sums. Alignment + uniformity: see ``align_uniform.py``.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import norm_eps
from ..common.step import LOSSES, Kept, Kernels, Plan, State, WholeLosses
from .align_uniform import STEP
from .classes import classes_head_kernel
from .heads import energy_head_kernel, sigmoid_head_kernel, softmax_head_kernel
from .operands import launch, strides
from .primitives import sum_parts
from .rows import COMBINED, row_block
from .sides import choice_of, contract, cuts_of, operands, width
from .step_grads import finish_rows_kernel
from .step_rows import prepare_rows_kernel

__all__ = ["LOSSES", "loss", "loss_grad"]

_ANCHORS = 128  # of a program of a head


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


def serves(plan: Plan) -> bool:
    """Whether there is a configuration of the contraction in one pass."""
    return choice_of(plan) is not None


def values(plan: Plan) -> tuple[Tensor, Kept, State]:
    """The loss ``(B,)`` and what its gradient needs, see `hyperkern.backends.common.step.Kernels`."""
    prepared = _prepare(plan)
    head = {"classes": _classes, "energy": _energy, "sigmoid": _sigmoid}.get(plan.head, _softmax)
    loss, state = head(plan, prepared)
    return loss, prepared.kept, state


def grads(plan: Plan, needed: dict[str, Tensor], state: State, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradients that are needed, likewise."""
    if plan.head == "energy":
        grad, total, counters = state
        return _finish(plan, needed, grad, counters, cotangent, total=total)
    if plan.head == "sigmoid":
        grad, own, bias_sums, counters = state
        return _finish(plan, needed, grad, counters, cotangent, own=own, bias_sums=bias_sums)
    if plan.head == "classes":
        rows, counters, anchors, classes, share, factor, *lse = state
        sides = contract(plan, rows, factor=factor, lse=lse[0] if lse else None, classes=classes, share=share)
        return _finish(plan, needed, sides.grad, counters, cotangent, anchors=anchors)
    rows, own, counters, factor, *lse = state
    sides = contract(plan, rows, factor=factor, lse=lse[0] if lse else None)
    return _finish(plan, needed, sides.grad, counters, cotangent, own=own)


def _blocks(plan: Plan) -> tuple[int, int]:
    """Programs of the row-wise kernels for the anchors and for the queue of a batch element."""
    block_rows, _ = row_block(plan.x.shape[2])
    return -(-plan.pairs // block_rows), -(-plan.further // block_rows)


def _strides(plan: Plan) -> tuple[int, ...]:
    """Those of all features; 0 where there are none."""
    found: list[int] = []
    for features in (plan.x, plan.y, plan.queue):
        found += (0, 0, 0) if features is None else strides(features)
    return tuple(found)


def _shape(plan: Plan) -> dict[str, int]:
    block_rows, block_d = row_block(plan.x.shape[2])
    return {
        "DIM": plan.x.shape[2],
        "WIDTH": width(plan),
        "BLOCK_ROWS": block_rows,
        "BLOCK_D": block_d,
        "VIEWS": plan.views,
        "SYMMETRIC": plan.symmetric,
        "TEMPERATURE": plan.spec.temperature,
    }


def _prepare(plan: Plan) -> _Prepared:
    factors = bool(plan.need) and plan.head not in ("energy", "sigmoid")
    blocks, blocks_further = _blocks(plan)
    x, batch, rows = plan.x, plan.batch, plan.rows
    empty = functools.partial(x.new_empty, dtype=torch.float32)
    out = _Prepared(
        torch.empty((batch, rows, width(plan)), dtype=plan.dtype, device=x.device),
        None if plan.y is None else empty((batch, plan.pairs)),
        empty((batch, blocks + blocks_further)) if plan.head == "energy" else None,
        empty((batch, rows)) if plan.head == "sigmoid" else None,
        None if plan.labels is None else _operand_of_labels(plan.labels, plan.queue_labels, (batch, rows)),
        empty((batch, rows)) if factors else None,
        empty((batch, rows)) if factors and plan.weights != "bounded" else None,
        empty((batch, rows)) if factors and plan.head == "classes" else None,
        torch.empty(batch + 1, dtype=torch.int32, device=x.device),
        _kept(plan),
    )
    # The head does not write those of candidates that are no anchors.
    one_way = plan.views == 1 and not plan.two_way
    launch(
        prepare_rows_kernel,
        batch * (blocks + blocks_further),
        x.device,
        (
            *(x, plan.y, plan.queue, plan.scale, plan.bias, plan.labels, plan.queue_labels),
            *(out.rows, out.positive, out.zeros, out.u, out.classes),
            *((out.factor, out.lse, out.share) if one_way else (None, None, None)),
            *(out.counters, *out.kept, plan.pairs, plan.further, rows, blocks, blocks_further),
            *(*_strides(plan), norm_eps(x.dtype), plan.factor, plan.spec.bias),
        ),
        None,
        **_shape(plan),
    )
    return out


def _operand_of_labels(labels: Tensor, others: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """Of integers that hold those of both: pairs compare them, and two words take twice as long as one."""
    wide = max(labels.itemsize, 0 if others is None else others.itemsize) == 8
    return labels.new_empty(shape, dtype=torch.int64 if wide else torch.int32)


def _kept(plan: Plan) -> Kept:
    if not plan.need:
        return Kept()
    x, y = (
        None if t is None or name in plan.need else t.new_empty(t.shape, dtype=torch.float32)
        for name, t in (("x", plan.x), ("y", plan.y))
    )
    return Kept(x, y, None if plan.scale is None else plan.x.new_empty((), dtype=torch.float32))


def _softmax(plan: Plan, prepared: _Prepared) -> tuple[Tensor, State]:
    need_grad = bool(plan.need)
    o = operands(plan, plan.of_sums()[0], prepared.rows)
    row, row_top, col, col_top, *_ = sum_parts(o, plan.sums, need_cols=plan.two_way, total=False)
    batch, anchors = plan.batch, plan.views * plan.pairs
    blocks = -(-anchors // _ANCHORS)
    own = row.new_empty((batch, anchors)) if need_grad else None
    parts, loss = row.new_empty((batch, blocks)), row.new_empty(batch)
    launch(
        softmax_head_kernel,
        batch * blocks,
        plan.x.device,
        (
            *(row, row_top, col, col_top, prepared.positive, plan.scale, prepared.factor, prepared.lse, own),
            *(parts, prepared.counters, loss, batch, plan.pairs, anchors, plan.rows, blocks, row.shape[0]),
            *(0 if col is None else col.shape[0], plan.factor, plan.spec.sigma, 1 / plan.share, plan.range),
        ),
        None,
        HEAD=plan.head,
        VIEWS=plan.views,
        TWO_WAY=plan.two_way,
        TEMPERATURE=plan.spec.temperature,
        BLOCK=_ANCHORS,
    )
    if own is None or prepared.factor is None:
        return loss, ()
    lse = () if prepared.lse is None else (prepared.lse,)
    return loss, (prepared.rows, own, prepared.counters, prepared.factor, *lse)


def _classes(plan: Plan, prepared: _Prepared) -> tuple[Tensor, State]:
    assert prepared.classes is not None
    o = operands(plan, plan.of_sums()[0], prepared.rows)
    parts = sum_parts(o, plan.sums, need_cols=False, total=False, classes=prepared.classes)
    batch, blocks = plan.batch, -(-plan.pairs // _ANCHORS)
    of_blocks, loss, anchors = (parts.row.new_empty(shape) for shape in ((2, batch, blocks), batch, batch))
    launch(
        classes_head_kernel,
        batch * blocks,
        plan.x.device,
        (
            *(parts.row, parts.row_top, parts.positive, prepared.factor, prepared.lse, prepared.share),
            *(of_blocks, prepared.counters, loss, anchors),
            *(batch, plan.pairs, plan.rows, blocks, parts.row.shape[0], 1 / o.unit(plan.sums), plan.range),
        ),
        None,
        MEAN=plan.spec.mean,
        BLOCK=_ANCHORS,
    )
    if prepared.factor is None or prepared.share is None:
        return loss, ()
    lse = () if prepared.lse is None else (prepared.lse,)
    state = (prepared.rows, prepared.counters, anchors, prepared.classes, prepared.share, prepared.factor)
    return loss, (*state, *lse)


def _sigmoid(plan: Plan, prepared: _Prepared) -> tuple[Tensor, State]:
    need_grad = bool(plan.need)
    assert prepared.u is not None
    batch, n = plan.batch, plan.pairs
    if need_grad:
        sides = contract(plan, prepared.rows, u=prepared.u)
        grad, total, value, cuts = sides.grad, sides.sum, sides.value, sides.cuts[0]
    else:
        o = operands(plan, plan.of_sums()[0], prepared.rows, prepared.u[:, :n].contiguous())
        value, total = sum_parts(o, "softplus", need_cols=False, total=True)[0], None
        grad, cuts = value, value.shape[0]
    blocks = -(-n // _ANCHORS)
    assert value is not None
    own = value.new_empty((batch, n)) if need_grad else None
    parts, loss, bias_sums = value.new_empty((2, batch, blocks)), value.new_empty(batch), value.new_empty(batch)
    launch(
        sigmoid_head_kernel,
        batch * blocks,
        plan.x.device,
        (
            *(value, total, prepared.positive, plan.bias, own, parts, prepared.counters, loss, bias_sums),
            *(batch, n, blocks, cuts, plan.spec.bias, 1 / plan.share),
        ),
        None,
        BLOCK=_ANCHORS,
    )
    return loss, () if own is None else (grad, own, bias_sums, prepared.counters)


def _energy(plan: Plan, prepared: _Prepared) -> tuple[Tensor, State]:
    batch, n, further = plan.batch, plan.pairs, plan.further
    of_sums = plan.of_sums()
    if plan.need:
        sides = contract(plan, prepared.rows)
        grad, cuts = sides.grad, sides.cuts
        sums = [sides.sum[start:] for start in sides.starts[:-1]]
    else:
        found = [operands(plan, job, prepared.rows) for job in of_sums]
        sums = [sum_parts(o, "exp", need_cols=False, total=True)[0] for o in found]
        grad, cuts = sums[0], tuple(part.shape[0] for part in sums)
    by_own = {job.own: (part, c) for job, part, c in zip(of_sums, sums, cuts, strict=False)}
    (of_queue, cuts_queue), (distinct, cuts_distinct) = by_own.get(False, (None, 0)), by_own.get(True, (None, 0))
    total, loss = grad.new_empty(batch), grad.new_empty(batch)
    pairs = n * further + (n * (n - 1) // 2 if plan.distinct else 0)
    launch(
        energy_head_kernel,
        batch,
        plan.x.device,
        (
            *(of_queue, distinct, prepared.zeros, total, loss, batch, n, further, *_blocks(plan)),
            *(cuts_queue, cuts_distinct, 0.5 * plan.spec.scale, float(pairs)),
        ),
        None,
        BLOCK=COMBINED,
    )
    return loss, (grad, total, prepared.counters)


def _finish(
    plan: Plan,
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
    jobs, choice = plan.of_weights(), choice_of(plan)
    assert choice is not None
    cuts, starts = cuts_of(plan, jobs, choice)
    # Uniformity has several contractions for the rows of x, the others one; then come those of y and the queue.
    of_x = sum(job.row == 0 for job in jobs)
    cuts_x, cuts_y, rows_y = sum(cuts[:of_x]), sum(cuts[of_x:]), jobs[-1].rows if jobs else 0
    grad_x, grad_queue = grad if of_x else None, grad[starts[of_x] :] if of_x < len(jobs) else None
    grad_y, first_further = (grad_queue, plan.pairs) if plan.y is not None and plan.spec.in_batch else (None, 0)
    if plan.views == 2:
        grad_y, cuts_y = grad_x, cuts_x
    blocks, blocks_further = _blocks(plan)
    blocks_further = 0 if plan.queue is None else blocks_further
    found = {name: given.new_empty(given.shape) for name, given in needed.items()}
    dy, dqueue = (None, found.get("y")) if plan.y is None else (found.get("y"), found.get("queue"))
    # What is kept is float32, and has no gradient.
    dtype = next((needed[name].dtype for name in ("x", "y", "queue") if name in needed), torch.float32)
    launch(
        finish_rows_kernel,
        plan.batch * (blocks + blocks_further),
        plan.x.device,
        (
            *(plan.x, plan.y, plan.queue, plan.scale, grad_x, grad_y, grad_queue, own, total, anchors),
            bias_sums,
            cotangent.contiguous(),
            *(found.get("x"), dy, dqueue, found.get("scale"), found.get("bias")),
            *(grad.new_empty(plan.batch * blocks) if "scale" in found else None, counters),
            *(plan.batch, plan.pairs, plan.further, blocks, blocks_further),
            *(plan.views * plan.pairs, rows_y, cuts_x, cuts_y, first_further),
            *(*_strides(plan), norm_eps(dtype), plan.spec.scale),
            *(plan.share, 1 / plan.range),
        ),
        None,
        **_shape(plan),
    )
    return found


_STEP = WholeLosses(STEP, Kernels(serves, values, grads))
loss, loss_grad = _STEP.loss, _STEP.loss_grad
