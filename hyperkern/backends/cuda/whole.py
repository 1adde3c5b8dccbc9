"""Whole losses in four or five launches, for batches where a launch costs as much as the arithmetic.

Before the pairs the rows of all features are normalised and partners multiplied; then come the sums of the pairs, what
each row adds to the loss and how its pairs weigh, both sides of the contraction in one grid (of long rows a panel of
weights, and a product of the library for each side), and the gradients of the features. See ``csrc/loss_rows.cuh`` and
``csrc/loss_head.cuh``.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import norm_eps
from ..host.panels import products, room
from ..host.whole import LOSSES, Kept, Plan, State, WholeLosses, kept_of
from .align_uniform import ROWS_PER_BLOCK, align_uniform, align_uniform_grad
from .library import ops
from .operands import Weight
from .schedule import Schedule, schedule_of

__all__ = ["LOSSES", "loss", "loss_grad"]


def values(plan: Plan) -> tuple[Tensor, Kept, State] | None:
    """The loss ``(B,)``, what is kept of the inputs, and what `grads` needs besides; None where there is no kernel."""
    schedule = schedule_of(plan.scheme, plan.x.device)
    if not schedule.serves or plan.x.numel() == 0:
        return None
    step = _Step(plan, schedule)
    other = {"energy": step.energy, "sigmoid": step.sigmoid, "classes": step.classes}
    state = other.get(plan.scheme.head, step.softmax)()
    return step.loss, step.kept, state


def grads(plan: Plan, needed: dict[str, Tensor], state: State, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradients that are needed, by the name of the input."""
    schedule, (counts, factors, *rest) = schedule_of(plan.scheme, plan.x.device), state
    if plan.scheme.head in ("energy", "sigmoid"):
        grad, sums = rest
    else:
        grad, sums, *_ = _contract(schedule, *rest)
    return _finish(plan, schedule, needed, counts, grad, sums, factors, cotangent)


class _Step:
    """The forward pass of one loss."""

    def __init__(self, plan: Plan, schedule: Schedule) -> None:
        self.plan, self.schedule, self.scheme = plan, schedule, (scheme := plan.scheme)
        self.kernels = ops(plan.x.device)
        self.float = functools.partial(torch.empty, dtype=torch.float32, device=plan.x.device)
        self.loss = self.float(scheme.batch)
        self.positives = None if plan.y is None else self.float((scheme.batch, scheme.pairs))
        self.operand = plan.x.new_empty((scheme.batch, scheme.rows, schedule.width), dtype=scheme.dtype)
        self.kept = kept_of(plan)
        # Of blocks of threads that are done, of each problem and of all; 0 whenever no kernel runs.
        self.counts = self.float(scheme.batch + 1)

    def prepare(
        self,
        *,
        cleared: Tensor | None = None,
        zeros: Tensor | None = None,
        terms: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> None:
        """Fills the operand and the positives."""
        plan, scheme = self.plan, self.scheme
        self.kernels.prepare_loss(
            *(plan.x, plan.y, plan.queue, norm_eps(scheme.input_dtype), scheme.symmetric),
            *(plan.scale, scheme.spec.temperature, plan.bias, scheme.spec.bias, self.schedule.unit),
            *(self.operand, self.positives, zeros, self.counts, cleared, terms),
            *(*self.kept, plan.labels, plan.queue_labels, classes),
        )

    def sums(
        self,
        i: int = 0,
        *,
        row: Tensor | None = None,
        top: Tensor | None = None,
        col: Tensor | None = None,
        terms: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """The sums of rows; those of columns are added to `col`."""
        if row is None:
            row = self.float(self.schedule.sums[i].row)
        operands = (self.operand, self.operand, terms, terms, classes, classes)
        self.kernels.sums(*operands, *self.schedule.sums_told[i], row, top, col, None)
        return row

    def head(
        self,
        row: Tensor,
        *,
        top: Tensor | None = None,
        second: Tensor | None = None,
        zeros: Tensor | None = None,
        terms: Tensor | None = None,
        weights: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """What each pair adds to the loss."""
        plan, scheme, (first, places, last) = self.plan, self.scheme, self.schedule.head_told
        partials = self.float(2 * scheme.batch * self.schedule.head_blocks)
        self.kernels.head(
            *(*first, row, top, second, places, self.positives, scheme.views == 2),
            *(plan.scale, scheme.factor, scheme.spec.temperature, plan.bias, *last),
            *(zeros, terms, weights, total, self.loss, partials, self.counts),
        )

    def softmax(self) -> State:
        """Sums, and what the weights of the pairs are made of."""
        scheme, planned = self.scheme, self.schedule.sums[0]
        top = self.float(planned.row) if scheme.sums == "running" else None
        col = None if planned.col is None else self.float(planned.col)
        self.prepare(cleared=col)
        row = self.sums(top=top, col=col)
        terms = weights = None
        if scheme.need:
            vectors = 5 if scheme.weights == "running" else 2
            terms = self.float((scheme.batch, vectors, self.schedule.term_count))
            weights = self.float((scheme.batch, scheme.pairs))
        self.head(row, top=top, second=col, terms=terms, weights=weights)
        if terms is None or weights is None:
            return ()
        return self.counts, weights, self.operand, terms

    def classes(self) -> State:
        """Sums relative to maxima and those of the positives, and what the weights of the pairs are made of."""
        scheme = self.scheme
        cuts, batch, m = self.schedule.sums[0].row
        # Beside the sums the positives' logits and their numbers.
        row, top = self.float((cuts, 3 * batch, m)), self.float((cuts, 3 * batch, m))
        classes = self.operand.new_empty((scheme.batch, scheme.rows), dtype=torch.int64)
        self.prepare(classes=classes)
        self.sums(row=row, top=top, classes=classes)
        terms = self.float((scheme.batch, 6, self.schedule.term_count)) if scheme.need else None
        total = self.float(scheme.batch)
        self.head(row, top=top, terms=terms, total=total if scheme.spec.mean else None)
        return () if terms is None else (self.counts, total, self.operand, terms, classes)

    def sigmoid(self) -> State:
        """Every pair is a decision, its weight is known with its logit."""
        scheme, schedule = self.scheme, self.schedule
        terms = self.float(schedule.term_count)
        self.prepare(terms=terms)
        terms = terms.expand(scheme.batch, 1, -1)
        if not scheme.need:
            self.head(self.sums(terms=terms))
            return ()
        grad, sums, _, value = _contract(schedule, self.operand, terms)
        weights = self.float((scheme.batch, scheme.pairs))
        self.head(value[0], weights=weights)
        return self.counts, weights, grad, sums

    def energy(self) -> State:
        """The exponentials are the weights, up to their sum."""
        scheme, schedule = self.scheme, self.schedule
        zeros, total = self.float((2, scheme.batch, schedule.row_blocks)), self.float(scheme.batch)
        self.prepare(zeros=zeros)
        state: State = ()
        if scheme.need:
            grad, sums, parts, _ = _contract(schedule, self.operand, None)
            found = {job.own: part for job, part in zip(scheme.of_sums, parts, strict=False)}
            state = self.counts, total, grad, sums
        else:
            found = {job.own: self.sums(i) for i, job in enumerate(scheme.of_sums)}
        # Those of x alone, then those with the queue.
        row, second = (found[True], found.get(False)) if True in found else (found[False], None)
        self.head(row, second=second, zeros=zeros, total=total)
        return state


class _Contracted(NamedTuple):
    """The contraction of all sides.

    Attributes:
        grad: weighted sums of rows, ``(results, D')``.
        sums: sums of weights, ``(results,)``; by panels those of ``x`` alone, where the gradient of a bias needs them.
        parts: those of each side or panel, ``(cuts, B, rows)``.
        values: those of the potential, likewise.
    """

    grad: Tensor
    sums: Tensor
    parts: list[Tensor]
    values: list[Tensor]


def _contract(schedule: Schedule, operand: Tensor, terms: Tensor | None, classes: Tensor | None = None) -> _Contracted:
    """All sides, in one pass or by panels. Partners that are nobody's candidates have none."""
    grad = torch.empty((schedule.results, schedule.width), dtype=torch.float32, device=operand.device)
    # As a column a row has its exponent where it had that of the columns: behind the third vector.
    two = schedule.weight in (Weight.TWO, Weight.CLASSES)
    cols = terms[:, 2:] if two and terms is not None else terms
    if not schedule.in_one_pass:
        return _contract_by_panels(schedule, operand, terms, cols, classes, grad)
    sums = grad.new_empty(schedule.results)
    values = torch.empty_like(sums) if schedule.weight == Weight.SOFTPLUS else None
    if schedule.results:
        operands = (operand, operand, terms, cols, classes, classes)
        ops(operand.device).contract(*operands, *schedule.contract_told, grad, sums, values)
    of_sides = [[side.of(t) for side in schedule.sides] for t in (sums, sums if values is None else values)]
    return _Contracted(grad, sums, *of_sides)


def _contract_by_panels(
    schedule: Schedule,
    operand: Tensor,
    terms: Tensor | None,
    cols: Tensor | None,
    classes: Tensor | None,
    grad: Tensor,
) -> _Contracted:
    """The weights of a side and of its mirror image in one launch, then a product of the library for each."""
    scheme, found = schedule.scheme, _Contracted(grad, grad.new_empty(schedule.results), [], [])
    for side, mirrored, told, shape in schedule.panels:
        job = side.job
        x, y = operand[:, job.row : job.row + job.rows], operand[:, job.col : job.col + job.cols]
        w = room(operand, scheme.batch, job.rows, job.cols)
        sums = grad.new_empty(shape)
        values = torch.empty_like(sums) if schedule.weight == Weight.SOFTPLUS else None
        # Those of a side start at an even one, see ``Side::first_term`` in ``csrc/pair_tile.cuh``.
        of_rows = None if terms is None else terms[:, :, job.row + job.row % 2 :]
        of_cols = None if cols is None else cols[:, :, job.col + job.col % 2 :]
        row_ids, col_ids = (
            None if classes is None else classes[:, first : first + count]
            for first, count in ((job.row, job.rows), (job.col, job.cols))
        )
        ops(operand.device).sums(x, y, of_rows, of_cols, row_ids, col_ids, *told, sums, values, None, w)
        products(grad, w, x, y, side, mirrored, wants_x=scheme.wants_x)
        del w  # before there is room for the next
        found.parts.append(sums)
        found.values.append(sums if values is None else values)
    if schedule.panel_scale != 1:
        for part in (grad, *found.parts):
            part.mul_(schedule.panel_scale)
    if "bias" in scheme.need:
        torch.sum(found.parts[0], 0, out=schedule.sides[0].of(found.sums)[0])
    return found


def _finish(
    plan: Plan,
    schedule: Schedule,
    needed: dict[str, Tensor],
    counts: Tensor,
    grad: Tensor,
    sums: Tensor,
    factors: Tensor,
    cotangent: Tensor,
) -> dict[str, Tensor]:
    """``factors`` are the weights of positives; without any what the gradients are divided by."""
    scheme = plan.scheme
    weights = None if plan.y is None else factors
    total = factors if scheme.head == "energy" or (scheme.head == "classes" and scheme.spec.mean) else None
    found = {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name, x in needed.items()}
    dy, dqueue = (None, found.get("y")) if plan.y is None else (found.get("y"), found.get("queue"))
    partials = None
    if "scale" in found or "bias" in found:
        blocks = sum(-(-x.shape[-2] // ROWS_PER_BLOCK) for x in (plan.x, plan.y, plan.queue) if x is not None)
        partials = grad.new_empty(2 * scheme.batch * blocks)
    ops(grad.device).finish_loss(
        *(plan.x, plan.y, plan.queue, scheme.symmetric, plan.scale, scheme.factor, scheme.spec.temperature, grad, sums),
        *(schedule.places_of_features, weights, total, cotangent.reshape(scheme.batch).contiguous()),
        *(*schedule.finish_told, found.get("x"), dy, dqueue, found.get("scale"), found.get("bias"), partials, counts),
    )
    return found


_WHOLE = WholeLosses(values, grads, align_uniform, align_uniform_grad)
loss, loss_grad = _WHOLE.loss, _WHOLE.loss_grad
