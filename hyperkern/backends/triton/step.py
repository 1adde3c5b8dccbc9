"""Whole losses in few launches, for batches where a launch costs as much as the arithmetic: what is launched.

Rows, sums of the pairs and head make a softmax, three launches; backward are the contraction of both sides and the rows
again. The other losses have the contraction instead of the sums. Alignment + uniformity: see ``align_uniform.py``.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms, norm_eps
from ..common.partials import cut
from ..common.step import LOSSES, Job, Kernels, Plan, State, WholeLosses
from . import config
from .align_uniform import STEP
from .config import Config, padded
from .contract import contract_sides_kernel
from .heads import energy_head_kernel, sigmoid_head_kernel, softmax_head_kernel
from .operands import Operands, architecture_of, launch
from .primitives import sum_parts
from .rows import row_block, strides
from .step_rows import finish_rows_kernel, prepare_rows_kernel

__all__ = ["LOSSES", "loss", "loss_grad"]

_ANCHORS = 128  # of a program of a head
_NO_COLUMN = 1 << 30  # the shift of an exclusion that excludes nothing


class _Prepared(NamedTuple):
    """What `prepare_rows_kernel` makes, where it is wanted."""

    rows: Tensor
    positive: Tensor | None
    zeros: Tensor | None
    u: Tensor | None
    factor: Tensor | None
    lse: Tensor | None
    counters: Tensor


class _Sides(NamedTuple):
    """The outputs of contractions one behind the other, ``(cuts, B, rows)`` of each, and where each starts."""

    grad: Tensor
    sum: Tensor
    value: Tensor | None
    cuts: list[int]
    starts: list[int]


def serves(plan: Plan) -> bool:
    """Whether there is a configuration of the contraction in one pass."""
    return _choice(plan) is not None


def values(plan: Plan) -> tuple[Tensor, State]:
    """The loss ``(B,)`` and the state of its gradient, see `hyperkern.backends.common.step.Kernels`."""
    if plan.head == "energy":
        return _energy(plan)
    if plan.head == "sigmoid":
        return _sigmoid(plan)
    return _softmax(plan)


def grads(plan: Plan, state: State, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradients that are needed, likewise."""
    if plan.head == "energy":
        grad, total, counters = state
        return _finish(plan, grad, counters, cotangent, total=total)
    if plan.head == "sigmoid":
        grad, own, bias_sums, counters = state
        return _finish(plan, grad, counters, cotangent, own=own, bias_sums=bias_sums)
    rows, own, counters, factor, *lse = state
    sides = _contract(plan, rows, None, factor, lse[0] if lse else None)
    return _finish(plan, sides.grad, counters, cotangent, own=own)


def _choice(plan: Plan) -> Config | None:
    architecture = architecture_of(plan.x, plan.pairs * max(plan.pairs, plan.further))
    return config.find(architecture, "contract", plan.kind, plan.x.shape[2], plan.weights)


def _operands(plan: Plan, job: Job, rows: Tensor, u: Tensor | None = None) -> Operands:
    """Rows of the operand against others, as the kernels of the primitives take them."""
    x = rows[:, job.row : job.row + job.rows]
    symmetric = job.col == job.row
    y = x if symmetric else rows[:, job.col : job.col + job.cols]
    spec = PairSpec(plan.factor, exclude=_exclusion(plan, job.own))
    return Operands(
        *(x, y, PairTerms(u), spec, symmetric, plan.kind, plan.product),
        architecture_of(plan.x, plan.pairs * max(plan.pairs, plan.further)),
    )


def _exclusion(plan: Plan, own: bool) -> str:
    if not own:
        return "none"
    return "views" if plan.views == 2 else "self"


def _blocks(plan: Plan) -> tuple[int, int]:
    """Programs of the row-wise kernels for the anchors and for the queue of a batch element."""
    block_rows, _ = row_block(plan.x.shape[2])
    return -(-plan.pairs // block_rows), -(-plan.further // block_rows)


def _shape(plan: Plan) -> dict[str, int]:
    block_rows, block_d = row_block(plan.x.shape[2])
    return {
        "DIM": plan.x.shape[2],
        "BLOCK_ROWS": block_rows,
        "BLOCK_D": block_d,
        "VIEWS": plan.views,
        "TEMPERATURE": plan.spec.temperature,
    }


def _prepare(plan: Plan, *, factors: bool = False) -> _Prepared:
    blocks, blocks_further = _blocks(plan)
    x, batch, rows = plan.x, plan.batch, plan.rows
    empty = functools.partial(x.new_empty, dtype=torch.float32)
    out = _Prepared(
        torch.empty((batch, rows, x.shape[2]), dtype=plan.dtype, device=x.device),
        None if plan.y is None else empty((batch, plan.pairs)),
        empty((batch, blocks + blocks_further)) if plan.head == "energy" else None,
        empty((batch, rows)) if plan.head == "sigmoid" else None,
        empty((batch, rows)) if factors else None,
        empty((batch, rows)) if factors and plan.weights != "bounded" else None,
        torch.empty(batch + 1, dtype=torch.int32, device=x.device),
    )
    # The head does not write those of candidates that are no anchors.
    one_way = plan.views == 1 and not plan.two_way
    launch(
        prepare_rows_kernel,
        batch * (blocks + blocks_further),
        x.device,
        (
            *(x, plan.y, plan.queue, plan.scale, plan.bias, out.rows, out.positive, out.zeros, out.u),
            *((out.factor, out.lse) if one_way else (None, None)),
            *(out.counters, plan.pairs, plan.further, rows, blocks, blocks_further),
            *(*strides(x), *strides(plan.y), *strides(plan.queue), norm_eps(x.dtype), plan.factor, plan.spec.bias),
        ),
        None,
        **_shape(plan),
    )
    return out


def _softmax(plan: Plan) -> tuple[Tensor, State]:
    need_grad = bool(plan.need)
    prepared = _prepare(plan, factors=need_grad)
    o = _operands(plan, plan.of_sums()[0], prepared.rows)
    row, row_top, col, col_top = sum_parts(o, plan.sums, need_cols=plan.two_way, total=False)
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
            *(0 if col is None else col.shape[0], plan.factor, plan.spec.sigma, plan.share, plan.range),
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


def _sigmoid(plan: Plan) -> tuple[Tensor, State]:
    need_grad = bool(plan.need)
    prepared = _prepare(plan)
    assert prepared.u is not None
    batch, n = plan.batch, plan.pairs
    if need_grad:
        sides = _contract(plan, prepared.rows, prepared.u, None, None)
        grad, total, value, cuts = sides.grad, sides.sum, sides.value, sides.cuts[0]
    else:
        o = _operands(plan, plan.of_sums()[0], prepared.rows, prepared.u[:, :n].contiguous())
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
            *(batch, n, blocks, cuts, plan.spec.bias, plan.share),
        ),
        None,
        BLOCK=_ANCHORS,
    )
    return loss, () if own is None else (grad, own, bias_sums, prepared.counters)


def _energy(plan: Plan) -> tuple[Tensor, State]:
    prepared = _prepare(plan)
    batch, n, further = plan.batch, plan.pairs, plan.further
    of_sums = plan.of_sums()
    if plan.need:
        sides = _contract(plan, prepared.rows, None, None, None)
        grad, cuts = sides.grad, sides.cuts
        sums = [sides.sum[start:] for start in sides.starts]
    else:
        found = [_operands(plan, job, prepared.rows) for job in of_sums]
        sums = [sum_parts(o, "exp", need_cols=False, total=True)[0] for o in found]
        grad, cuts = sums[0], [part.shape[0] for part in sums]
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
        BLOCK=min(2048, padded(n)),
    )
    return loss, (grad, total, prepared.counters)


def _cuts(plan: Plan, jobs: list[Job], choice: Config) -> tuple[list[int], list[int]]:
    """Into how many ranges the columns of each side are cut, and where the rows of its outputs start."""
    architecture = architecture_of(plan.x, plan.pairs * max(plan.pairs, plan.further))
    programs = plan.batch * sum(-(-job.rows // choice.block_m) for job in jobs)
    cuts, starts, end = [], [], 0
    for job in jobs:
        bytes_per_cut = 4 * plan.batch * job.rows * plan.x.shape[2]
        cuts.append(cut(programs, -(-job.cols // choice.block_n), bytes_per_cut, architecture.multiprocessors))
        starts.append(end)
        end += cuts[-1] * plan.batch * job.rows
    return cuts, [*starts, end]


def _contract(plan: Plan, rows: Tensor, u: Tensor | None, factor: Tensor | None, lse: Tensor | None) -> _Sides:
    """All sides that are needed, two in one launch."""
    jobs, choice, dim = plan.of_weights(), _choice(plan), plan.x.shape[2]
    assert choice is not None
    cuts, (*starts, end) = _cuts(plan, jobs, choice)
    grad = rows.new_empty((end, dim), dtype=torch.float32)
    sums = grad.new_empty(end)
    value = torch.empty_like(sums) if plan.weights == "softplus" else None
    o = _operands(plan, jobs[0], rows)
    own = any(job.own for job in jobs)
    constants = o.constants(choice, plan.weights) | {"EXCLUDE": _exclusion(plan, own)}
    for i in range(0, len(jobs), 2):
        programs, told = [], []
        for job, splits in zip(jobs[i : i + 2], cuts[i : i + 2], strict=True):
            programs.append(plan.batch * -(-job.rows // choice.block_m) * splits)
            told.append((job.rows, job.cols, job.row, job.col, 0 if job.own else _NO_COLUMN, splits))
        launch(
            contract_sides_kernel,
            sum(programs),
            rows.device,
            (
                *(rows, u, lse, factor, grad[starts[i] :], sums[starts[i] :]),
                sums[starts[i] :] if value is None else value[starts[i] :],
                *(plan.batch, plan.rows, programs[0], *told[0], *told[-1]),
                *(plan.factor * o.unit(plan.weights), o.shift(plan.weights) * o.unit(plan.weights)),
            ),
            choice,
            **constants,
        )
    return _Sides(grad, sums, value, cuts, starts)


def _finish(
    plan: Plan,
    grad: Tensor,
    counters: Tensor,
    cotangent: Tensor,
    *,
    own: Tensor | None = None,
    total: Tensor | None = None,
    bias_sums: Tensor | None = None,
) -> dict[str, Tensor]:
    jobs, choice, need = plan.of_weights(), _choice(plan), plan.need
    assert choice is not None
    cuts, starts = _cuts(plan, jobs, choice)
    # Uniformity has several contractions for the rows of x, the others one; then come those of y and the queue.
    of_x = [i for i, job in enumerate(jobs) if job.row == 0]
    of_y = [i for i, job in enumerate(jobs) if job.row != 0]
    grad_x, grad_y = grad if of_x else None, grad[starts[of_y[0]] :] if of_y else None
    rows_x, rows_y = jobs[0].rows, jobs[-1].rows
    cuts_x, cuts_y = sum(cuts[i] for i in of_x), sum(cuts[i] for i in of_y)
    if plan.views == 2:
        grad_y, cuts_y = grad_x, cuts_x
    blocks, blocks_further = _blocks(plan)
    queue = "y" if plan.head == "energy" else "queue"
    found = {
        name: given.new_empty(given.shape)
        for name, given in (
            ("x", plan.x),
            ("y", plan.y),
            (queue, plan.queue),
            ("scale", plan.scale),
            ("bias", plan.bias),
        )
        if name in need and given is not None
    }
    launch(
        finish_rows_kernel,
        plan.batch * (blocks + blocks_further),
        plan.x.device,
        (
            *(plan.x, plan.y, plan.queue, plan.scale, grad_x, grad_y, own, total, bias_sums, cotangent.contiguous()),
            *(found.get("x"), found.get("y") if plan.y is not None else None),
            *(found.get(queue) if plan.queue is not None else None, found.get("scale"), found.get("bias")),
            *(grad.new_empty(plan.batch * blocks) if "scale" in found else None, counters),
            *(plan.batch, plan.pairs, plan.further, blocks, blocks_further, rows_x, rows_y, cuts_x, cuts_y),
            plan.pairs if plan.y is not None else 0,
            *(*strides(plan.x), *strides(plan.y), *strides(plan.queue), norm_eps(plan.x.dtype), plan.spec.scale),
            *(plan.share, 1 / plan.range),
        ),
        None,
        **_shape(plan),
    )
    return found


_STEP = WholeLosses(STEP, Kernels(serves, values, grads))
loss, loss_grad = _STEP.loss, _STEP.loss_grad
