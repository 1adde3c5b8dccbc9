"""Whole losses in four or five launches, for batches where a launch costs as much as the arithmetic.

Before the pairs the rows of all features are normalised and partners multiplied; then come the sums of the pairs, what
each row adds to the loss and how its pairs weigh, both sides of the contraction in one grid, and the gradients of the
features. See ``csrc/loss_rows.cuh`` and ``csrc/loss_head.cuh``.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import EXCLUSIONS, norm_eps
from ..common.jobs import Job
from ..common.partials import cut
from ..common.scheme import Scheme
from ..common.step import LOSSES, Kept, Kernels, Plan, State, WholeLosses, kept_of
from .align_uniform import ROWS_PER_BLOCK, STEP
from .library import ops
from .operands import ALIGNMENT, CONTRACT_DIM, MOST_TILE_COLS, Weight, multiprocessors, tile, tile_of
from .primitives import SUM_TASKS, exp_range, stripes_of

__all__ = ["LOSSES", "loss", "loss_grad"]


_HEADS = {"softmax": 0, "decoupled": 1, "weighted": 1, "sigmoid": 2, "energy": 3, "classes": 4}
_WEIGHTS = {
    "bounded": Weight.FACTOR,
    "single": Weight.FACTOR,
    "running": Weight.TWO,
    "exp": Weight.EXP,
    "softplus": Weight.SOFTPLUS,
}
_HEAD_THREADS = 256  # kHeadThreads in ``csrc/loss_head.cuh``


class _Sums(NamedTuple):
    """How sums of pairs are shared out among blocks of threads, and with it the shapes of partial sums.

    Attributes:
        jobs: which rows meet which, all of one size.
        triangle: whether only tiles on and right of the diagonal are visited.
        stripes: see ``Schedule`` in ``csrc/layout.h``.
        row: ``(cuts, jobs B, rows)``.
        col: ``(parts, jobs B, cols)``; ``None`` where nobody asks.
    """

    jobs: Sequence[Job]
    triangle: bool
    stripes: int
    row: tuple[int, int, int]
    col: tuple[int, int, int] | None


class _Side(NamedTuple):
    """One side of a contraction, and where its results are.

    Attributes:
        job: which rows meet which columns.
        first: the first of its results.
        shape: ``(cuts, B, rows)``: into so many ranges the columns are cut.
    """

    job: Job
    first: int
    shape: tuple[int, int, int]

    @property
    def end(self) -> int:
        """Behind its results."""
        return self.first + math.prod(self.shape)

    def of(self, results: Tensor) -> Tensor:
        """Its part of numbers of all sides."""
        return results[self.first : self.end].view(self.shape)


def values(plan: Plan) -> tuple[Tensor, Kept, State] | None:
    """The loss ``(B,)``, what is kept of the inputs, and what `grads` needs besides; None where there is no kernel."""
    if _width(plan.scheme) > CONTRACT_DIM or plan.x.numel() == 0:
        return None
    step = _Step(plan)
    other = {"energy": step.energy, "sigmoid": step.sigmoid, "classes": step.classes}
    state = other.get(plan.scheme.head, step.softmax)()
    return step.loss, step.kept, state


def grads(plan: Plan, needed: dict[str, Tensor], state: State, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradients that are needed, by the name of the input."""
    scheme, (counts, factors, *rest) = plan.scheme, state
    sides = _sides(scheme, plan.x.device)
    if scheme.head in ("energy", "sigmoid"):
        grad, sums = rest
    else:
        grad, sums, _ = _contract(plan, sides, *rest)
    return _finish(plan, needed, sides, counts, grad, sums, factors, cotangent)


class _Step:
    """The forward pass of one loss."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.scheme = plan, (scheme := plan.scheme)
        self.kernels = ops(plan.x.device)
        self.float = functools.partial(torch.empty, dtype=torch.float32, device=plan.x.device)
        self.loss = self.float(scheme.batch)
        self.positives = None if plan.y is None else self.float((scheme.batch, scheme.pairs))
        self.operand = plan.x.new_empty((scheme.batch, scheme.rows, _width(scheme)), dtype=scheme.dtype)
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
            *(plan.scale, scheme.spec.temperature, plan.bias, scheme.spec.bias),
            *(self.operand, self.positives, zeros, self.counts, cleared, terms),
            *(*self.kept, plan.labels, plan.queue_labels, classes),
        )

    def sums(
        self,
        sums: _Sums,
        *,
        top: Tensor | None = None,
        col: Tensor | None = None,
        terms: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> Tensor:
        """The sums of rows; those of columns are added to `col`."""
        scheme, row = self.scheme, self.float(sums.row)
        task = SUM_TASKS[scheme.sums if classes is None else "classes"]
        self.kernels.sums(
            *(self.operand, self.operand, terms, terms, classes, classes, _exclusion(sums.jobs), 0, scheme.views),
            _numbers(sums.jobs),
            *(scheme.factor * _unit(scheme), 0.0, False, task, scheme.kind == "float32", sums.triangle),
            *(sums.stripes, sums.row[0], row, top, col, None),
        )
        return row

    def head(
        self,
        row: Tensor,
        places: Sequence[int],
        *,
        top: Tensor | None = None,
        second: Tensor | None = None,
        zeros: Tensor | None = None,
        terms: Tensor | None = None,
        weights: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        """What each pair adds to the loss."""
        plan, scheme, spec = self.plan, self.scheme, self.scheme.spec
        blocks = -(-max(scheme.pairs, 0 if terms is None else terms.shape[2]) // _HEAD_THREADS)
        self.kernels.head(
            *(_HEADS[scheme.head], scheme.pairs, scheme.further),
            *(row, top, second, places, self.positives, scheme.views == 2),
            *(plan.scale, scheme.factor, spec.temperature, plan.bias, spec.bias, _unit(scheme), scheme.share),
            *(spec.sigma if scheme.head == "weighted" else 0.0, scheme.range, spec.scale / 2),
            *(zeros, terms, weights, total, self.loss, self.float(2 * scheme.batch * blocks), self.counts),
        )

    def softmax(self) -> State:
        """Sums, and what the weights of the pairs are made of."""
        scheme, running = self.scheme, self.scheme.sums == "running"
        jobs = scheme.of_sums
        if running and scheme.two_way:
            jobs = (*jobs, _mirrored(jobs[0]))
        has_cols = not running and (scheme.two_way or scheme.views == 2)
        sums = _sums(scheme, self.operand, jobs, triangle=not running and scheme.views == 2, has_cols=has_cols)
        top = self.float(sums.row) if running else None
        col = None if sums.col is None else self.float(sums.col)
        self.prepare(cleared=col)
        row = self.sums(sums, top=top, col=col)
        terms = weights = None
        if scheme.need:
            vectors = 5 if scheme.weights == "running" else 2
            terms = self.float((scheme.batch, vectors, _term_count(scheme)))
            weights = self.float((scheme.batch, scheme.pairs))
        self.head(row, _places_of_ways(scheme, sums), top=top, second=col, terms=terms, weights=weights)
        if terms is None or weights is None:
            return ()
        return self.counts, weights, self.operand, terms

    def classes(self) -> State:
        """Sums relative to maxima and those of the positives, and what the weights of the pairs are made of."""
        plan, scheme = self.plan, self.scheme
        sums = _sums(scheme, self.operand, scheme.of_sums)
        cuts, batch, m = sums.row
        sums = sums._replace(row=(cuts, 3 * batch, m))  # beside the sums the positives' logits and their numbers
        top = self.float(sums.row)
        classes = plan.x.new_empty((scheme.batch, scheme.rows), dtype=torch.int64)
        self.prepare(classes=classes)
        row = self.sums(sums, top=top, classes=classes)
        terms = self.float((scheme.batch, 6, _term_count(scheme))) if scheme.need else None
        total = self.float(scheme.batch)
        places = (1, 0, 1, 0, 0, 1, 1, batch * m, 1, 1, 2 * batch * m, 1)
        self.head(row, places, top=top, terms=terms, total=total if scheme.spec.mean else None)
        return () if terms is None else (self.counts, total, self.operand, terms, classes)

    def sigmoid(self) -> State:
        """Every pair is a decision, its weight is known with its logit."""
        plan, scheme = self.plan, self.scheme
        terms = self.float(_term_count(scheme))
        self.prepare(terms=terms)
        terms = terms.expand(scheme.batch, 1, -1)
        if not scheme.need:
            value = self.sums(_sums(scheme, self.operand, scheme.of_sums), terms=terms)
            self.head(value, (1, 0, 1, 0, 0, 1))
            return ()
        sides = _sides(scheme, plan.x.device)
        grad, sums, value = _contract(plan, sides, self.operand, terms)
        weights = self.float((scheme.batch, scheme.pairs))
        self.head(sides[0].of(value), (1, 0, 1, 0, 0, 1), weights=weights)
        return self.counts, weights, grad, sums

    def energy(self) -> State:
        """The exponentials are the weights, up to their sum."""
        plan, scheme = self.plan, self.scheme
        zeros = self.float((2, scheme.batch, -(-(scheme.pairs + scheme.further) // ROWS_PER_BLOCK)))
        total = self.float(scheme.batch)
        self.prepare(zeros=zeros)
        found: dict[bool, Tensor] = {}
        state: State = ()
        if scheme.need:
            sides = _sides(scheme, plan.x.device)
            grad, sums, _ = _contract(plan, sides, self.operand, None)
            found |= {side.job.own: side.of(sums) for side in sides if side.job.row == 0}
            state = self.counts, total, grad, sums
        else:
            for job in scheme.of_sums:
                found[job.own] = self.sums(_sums(scheme, self.operand, [job], triangle=job.own))
        # Those of x alone, then those with the queue.
        row, second = (found[True], found.get(False)) if True in found else (found[False], None)
        places = (int(True in found), 0, 1, (2 if True in found else 1) * (False in found), 0, 1)
        self.head(row, places, second=second, zeros=zeros, total=total)
        return state


def _batched(x: Tensor | None) -> Tensor | None:
    return x.unsqueeze(0) if x is not None and x.dim() == 2 else x


def _width(scheme: Scheme) -> int:
    """Of the operand: rows end at multiples of 16 bytes."""
    dim = scheme.dim
    return dim + -dim % (ALIGNMENT // scheme.dtype.itemsize)


def _term_count(scheme: Scheme) -> int:
    """Pairs of terms are read at once, and all that the last tile may reach."""
    return scheme.rows + scheme.rows % 2 + 2 + MOST_TILE_COLS


def _weight(scheme: Scheme) -> Weight:
    """Those of classes are of one form, whatever the mode: relative to maxima, for both sides."""
    return Weight.CLASSES if scheme.head == "classes" else _WEIGHTS[scheme.weights]


def _unit(scheme: Scheme) -> float:
    """What turns a logit into the kernels' units."""
    return 1.0 if scheme.kind == "float32" or scheme.sums == "softplus" else math.log2(math.e)


def _mirrored(job: Job) -> Job:
    return Job(job.col, job.cols, job.row, job.rows, job.own)


def _exclusion(jobs: Sequence[Job]) -> int:
    return EXCLUSIONS.index("self" if any(job.own for job in jobs) else "none")


def _numbers(jobs: Sequence[Job], cuts: Sequence[int] = ()) -> list[int]:
    """The six numbers of each side, see ``Side`` in ``csrc/pair_tile.cuh``."""
    cuts = cuts or [1] * len(jobs)
    return [
        int(number)
        for job, count in zip(jobs, cuts, strict=True)
        for number in (job.row, job.col, job.rows, job.cols, job.own, count)
    ]


def _sums(
    scheme: Scheme, operand: Tensor, jobs: Sequence[Job], *, triangle: bool = False, has_cols: bool = False
) -> _Sums:
    batch, m, n = len(jobs) * scheme.batch, jobs[0].rows, jobs[0].cols
    size = tile(operand, "sums", Weight.EXP)
    blocks, tiles, at_once = -(-m // size.rows), -(-n // size.cols), multiprocessors(operand.device)
    stripes = stripes_of(batch, blocks, tiles, at_once, triangle=triangle, has_cols=has_cols)
    cuts = cut(batch * stripes, tiles, 4 * batch * m, at_once)
    parts = (stripes * cuts if triangle else stripes) * size.groups
    return _Sums(jobs, triangle, stripes, (cuts, batch, m), (parts, batch, n) if has_cols else None)


def _places_of_ways(scheme: Scheme, sums: _Sums) -> list[int]:
    """Where the sums of a pair's rows stand: six numbers for each way, see ``set_places`` in ``csrc/loss_ops.cu``."""
    if scheme.views == 2:
        return [number for way in (0, 1) for number in (1, way, 2, 0 if sums.col is None else 2, way, 2)]
    if not scheme.two_way:
        return [1, 0, 1, 0, 0, 1]
    if sums.col is not None:
        return [1, 0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 1]
    return [1, 0, 1, 0, 0, 1, 1, scheme.batch * sums.row[2], 1, 0, 0, 1]


def _sides(scheme: Scheme, device: torch.device) -> tuple[_Side, ...]:
    """The sides of the contraction, in ranges of columns that take about as long as one another."""
    dim, weight, jobs = _width(scheme), _weight(scheme), scheme.of_weights
    size = tile_of(device, scheme.dtype, dim, "contract", weight)
    tiles = [-(-job.cols // size.cols) for job in jobs]
    work = sum(-(-job.rows // size.rows) * count for job, count in zip(jobs, tiles, strict=True))
    sides: list[_Side] = []
    for job, count in zip(jobs, tiles, strict=True):
        # As many row blocks as would be the whole work, each of these columns.
        programs = -(-scheme.batch * work // count)
        cuts = cut(programs, count, 4 * scheme.batch * job.rows * dim, multiprocessors(device))
        sides.append(_Side(job, sides[-1].end if sides else 0, (cuts, scheme.batch, job.rows)))
    return tuple(sides)


def _contract(
    plan: Plan, sides: Sequence[_Side], operand: Tensor, terms: Tensor | None, classes: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sums of rows of all sides ``(results, D')``, sums of weights ``(results,)``, those of the potential."""
    scheme = plan.scheme
    weight, results = _weight(scheme), sides[-1].end if sides else 0
    grad = torch.empty((results, operand.shape[2]), dtype=torch.float32, device=operand.device)
    sums = grad.new_empty(results)
    value = torch.empty_like(sums) if weight == Weight.SOFTPLUS else sums
    if not sides:  # partners that are nobody's candidates
        return grad, sums, value
    jobs = [side.job for side in sides]
    offset, out_scale = exp_range(scheme.factor) if scheme.kind == "float16" and weight == Weight.EXP else (0.0, 1.0)
    # As a column a row has its exponent where it had that of the columns: behind the third vector.
    cols = terms[:, 2:] if weight in (Weight.TWO, Weight.CLASSES) and terms is not None else terms
    ops(operand.device).contract(
        *(operand, operand, terms, cols, classes, classes, _exclusion(jobs), 0, scheme.views),
        *(_numbers(jobs, [side.shape[0] for side in sides]), scheme.factor * _unit(scheme), offset * _unit(scheme)),
        *(scheme.weights in ("running", "single"), weight, scheme.kind == "float32", out_scale),
        *(grad, sums, value if weight == Weight.SOFTPLUS else None),
    )
    return grad, sums, value


def _places_of_features(scheme: Scheme, sides: Sequence[_Side]) -> list[int]:
    """Of x, y and the queue: first result and cuts of up to two sides; rows of a side, the first row, the step."""

    def place(of: Sequence[_Side], first: int, step: int) -> list[int]:
        results = [number for side in of for number in (side.first, side.shape[0])]
        return [*results, *[0] * (4 - len(results)), of[0].job.rows if of else 0, first, step]

    if scheme.views == 2:
        return [*place(sides, 0, 2), *place(sides, 1, 2), *place((), 0, 1)]
    of_x = [side for side in sides if side.job.row == 0]
    others = [side for side in sides if side.job.row != 0]
    of_y = [side for side in others if side.job.row < scheme.paired]
    first_further = scheme.paired - others[0].job.row if others else 0
    return [*place(of_x, 0, 1), *place(of_y, 0, 1), *place(others, first_further, 1)]


def _finish(
    plan: Plan,
    needed: dict[str, Tensor],
    sides: Sequence[_Side],
    counts: Tensor,
    grad: Tensor,
    sums: Tensor,
    factors: Tensor,
    cotangent: Tensor,
) -> dict[str, Tensor]:
    """``factors`` are the weights of positives; without any what the gradients are divided by."""
    scheme, energy = plan.scheme, plan.scheme.head == "energy"
    weights = None if plan.y is None else factors
    total = factors if energy or (scheme.head == "classes" and scheme.spec.mean) else None
    found = {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name, x in needed.items()}
    dx, dy, dqueue = (_batched(found.get(name)) for name in ("x", "y", "queue"))
    if plan.y is None:
        dy, dqueue = None, dy
    partials = None
    if "scale" in found or "bias" in found:
        blocks = sum(-(-x.shape[1] // ROWS_PER_BLOCK) for x in (plan.x, plan.y, plan.queue) if x is not None)
        partials = grad.new_empty(2 * scheme.batch * blocks)
    ops(grad.device).finish_loss(
        *(plan.x, plan.y, plan.queue, scheme.symmetric, plan.scale, scheme.factor, scheme.spec.temperature, grad, sums),
        *(_places_of_features(scheme, sides), weights, total),
        *(cotangent.reshape(scheme.batch).contiguous(), scheme.share, scheme.factor / scheme.range),
        *(math.exp(scheme.spec.scale / 2) if energy else 1.0, norm_eps(scheme.input_dtype), dx, dy, dqueue),
        *(found.get("scale"), found.get("bias")),
        *(partials, counts),
    )
    return found


_STEP = WholeLosses(STEP, Kernels(values, grads))
loss, loss_grad = _STEP.loss, _STEP.loss_grad
