"""The launches of a whole loss but for the tensors: worked out once for all calls of a kind."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms, norm_eps
from ..common.jobs import Job
from ..common.partials import cut
from ..common.scheme import UNPAIRED, Scheme
from ..common.step import Plan
from . import config
from .classes import classes_head_kernel
from .config import Architecture
from .contract import contract_sides_kernel
from .heads import energy_head_kernel, sigmoid_head_kernel, softmax_head_kernel
from .launch import Launch
from .operands import Operands, architecture_of
from .primitives import PlannedSums, plan_sums
from .rows import COMBINED, row_block
from .step_grads import finish_rows_kernel
from .step_rows import prepare_rows_kernel

_ANCHORS = 128  # of a program of a head
_NO_COLUMN = 1 << 30  # the shift of an exclusion that excludes nothing


class Sides(NamedTuple):
    """The sides of the contraction, whose outputs stand one behind the other, ``(cuts, B, rows)`` of each.

    Attributes:
        jobs: which rows meet which.
        cuts: into how many ranges the columns of each are cut.
        starts: where the outputs of each start.
        end: where the last ends.
        of_x: how many are of the rows of ``x``. They come first.
    """

    jobs: tuple[Job, ...]
    cuts: tuple[int, ...]
    starts: tuple[int, ...]
    end: int
    of_x: int


class Schedule:
    """The launches of one kind of call. The first and the last know the strides of the features.

    Attributes:
        scheme: the loss.
        width: elements of a row of the operand: loads are asynchronous where rows start at multiples of 16 of them.
        choice: the configuration of the contraction; None where rows are too long for one pass.
        blocks: programs of the row-wise kernels for the anchors of a batch element.
        blocks_further: those for the queue.
        head_blocks: programs of the head for a batch element.
    """

    def __init__(self, scheme: Scheme, architecture: Architecture, given: tuple[tuple[int, ...] | None, ...]) -> None:
        self.scheme, self._architecture = scheme, architecture
        # A batch of one has none, and needs no kernel of its own.
        self._strides = [
            number
            for one in given
            for number in ((0, 0, 0) if one is None else one if scheme.batch > 1 else (0, *one[-2:]))
        ]
        self.width = scheme.dim + -scheme.dim % 16
        mode = "classes" if scheme.head == "classes" else scheme.weights
        self.choice = config.find(architecture, "contract", scheme.kind, self.width, mode)
        block_rows, block_d = row_block(scheme.dim)
        self.blocks, self.blocks_further = -(-scheme.pairs // block_rows), -(-scheme.further // block_rows)
        self.head_blocks = -(-self.anchors // _ANCHORS)
        self._shape = {
            "DIM": scheme.dim,
            "WIDTH": self.width,
            "BLOCK_ROWS": block_rows,
            "BLOCK_D": block_d,
            "VIEWS": scheme.views,
            "SYMMETRIC": scheme.symmetric,
            "TEMPERATURE": scheme.spec.temperature,
        }

    @property
    def anchors(self) -> int:
        """In a batch element."""
        return self.scheme.views * self.scheme.pairs

    @functools.cached_property
    def prepare(self) -> Launch:
        """Rows of the operand out of the features."""
        scheme, blocks = self.scheme, (self.blocks, self.blocks_further)
        numbers = (scheme.pairs, scheme.further, scheme.rows, *blocks, *self._strides)
        options = (norm_eps(scheme.input_dtype), scheme.factor, scheme.spec.bias)
        return Launch(prepare_rows_kernel, scheme.batch * sum(blocks), (*numbers, *options), None, **self._shape)

    @functools.cached_property
    def sums(self) -> tuple[PlannedSums, ...]:
        """Those of each job of the scheme."""
        scheme = self.scheme
        way = {"need_cols": scheme.two_way, "total": False}
        if scheme.head in ("energy", "sigmoid"):
            way = {"need_cols": False, "total": True}
        classes = scheme.head == "classes"
        return tuple(plan_sums(self._operands(job), scheme.sums, **way, classes=classes) for job in scheme.of_sums)

    @functools.cached_property
    def head(self) -> Launch:
        """What the sums add to the loss, and how pairs weigh."""
        scheme = self.scheme
        batch, pairs, blocks, share = scheme.batch, scheme.pairs, self.head_blocks, scheme.share
        programs = batch * blocks
        if scheme.head == "energy":
            parts = self.sides.cuts if scheme.need else tuple(planned.row[0] for planned in self.sums)
            by_own = {job.own: count for job, count in zip(scheme.of_sums, parts, strict=False)}
            further, distinct = scheme.further, pairs * (pairs - 1) // 2 if scheme.distinct else 0
            counts = (
                batch,
                pairs,
                further,
                self.blocks,
                self.blocks_further,
                by_own.get(False, 0),
                by_own.get(True, 0),
            )
            numbers: tuple[Any, ...] = (*counts, 0.5 * scheme.spec.scale, float(pairs * further + distinct))
            return Launch(energy_head_kernel, batch, numbers, None, BLOCK=COMBINED)
        if scheme.head == "sigmoid":
            cuts = self.sides.cuts[0] if scheme.need else self.sums[0].row[0]
            numbers = (batch, pairs, blocks, cuts, scheme.spec.bias, 1 / share)
            return Launch(sigmoid_head_kernel, programs, numbers, None, BLOCK=_ANCHORS)
        row, col = self.sums[0].row, self.sums[0].col
        if scheme.head == "classes":
            unit = self._operands(scheme.of_sums[0]).unit(scheme.sums)
            numbers = (batch, pairs, scheme.rows, blocks, row[0], 1 / unit, scheme.range)
            return Launch(classes_head_kernel, programs, numbers, None, MEAN=scheme.spec.mean, BLOCK=_ANCHORS)
        counts = (batch, pairs, self.anchors, scheme.rows, blocks, row[0], 0 if col is None else col[0])
        numbers = (*counts, scheme.factor, scheme.spec.sigma, 1 / share, scheme.range)
        options = {"HEAD": scheme.head, "VIEWS": scheme.views, "TWO_WAY": scheme.two_way}
        options |= {"TEMPERATURE": scheme.spec.temperature, "BLOCK": _ANCHORS}
        return Launch(softmax_head_kernel, programs, numbers, None, **options)

    @functools.cached_property
    def sides(self) -> Sides:
        """The sides of the contraction, and into how many ranges the columns of each are cut."""
        scheme, jobs, choice = self.scheme, self.scheme.of_weights, self.choice
        assert choice is not None
        programs = scheme.batch * sum(-(-job.rows // choice.block_m) for job in jobs)
        multiprocessors = self._architecture.multiprocessors
        cuts: list[int] = []
        starts: list[int] = []
        end = 0
        for i, job in enumerate(jobs):
            size = 4 * scheme.batch * job.rows * self.width
            cuts.append(cut(programs, -(-job.cols // choice.block_n), size, multiprocessors))
            if i % 2 == 0:  # where a launch begins, addresses are aligned whatever the number of rows
                end += -end % 4
            starts.append(end)
            end += cuts[-1] * scheme.batch * job.rows
        return Sides(jobs, tuple(cuts), tuple(starts), end, sum(job.row == 0 for job in jobs))

    @functools.cached_property
    def contract(self) -> tuple[tuple[int, Launch], ...]:
        """Launches of up to two sides each, and where the outputs of each start."""
        scheme, choice, (jobs, cuts, starts, *_) = self.scheme, self.choice, self.sides
        assert choice is not None
        o, mode = self._operands(scheme.of_sums[0]), scheme.weights
        own = any(job.own for job in jobs)
        constants = o.constants(choice, mode) | {"EXCLUDE": _exclusion(scheme, own)}
        units = (scheme.factor * o.unit(mode), o.shift(mode) * o.unit(mode))
        found = []
        for i in range(0, len(jobs), 2):
            programs, told = [], []
            for job, ranges in zip(jobs[i : i + 2], cuts[i : i + 2], strict=True):
                programs.append(scheme.batch * -(-job.rows // choice.block_m) * ranges)
                told.append((job.rows, job.cols, job.row, job.col, 0 if job.own else _NO_COLUMN, ranges))
            numbers = (scheme.batch, scheme.rows, programs[0], *told[0], *told[-1], *units)
            found.append((starts[i], Launch(contract_sides_kernel, sum(programs), numbers, choice, **constants)))
        return tuple(found)

    @functools.cached_property
    def finish(self) -> Launch:
        """All gradients out of the results of the contraction."""
        scheme, (jobs, cuts, _, _, of_x) = self.scheme, self.sides
        # Those of the rows of x come first, then those of y and the queue; of two views there are none but the first.
        cuts_x, cuts_y = sum(cuts[:of_x]), sum(cuts[0 if scheme.views == 2 else of_x :])
        queue = ("y" if scheme.spec.loss in UNPAIRED else "queue") in scheme.need
        blocks = (self.blocks, self.blocks_further if queue else 0)
        places = (self.anchors, jobs[-1].rows if jobs else 0, cuts_x, cuts_y, scheme.pairs if self.shares_side else 0)
        options = (norm_eps(scheme.input_dtype), scheme.spec.scale, scheme.share, 1 / scheme.range)
        numbers = (scheme.batch, scheme.pairs, scheme.further, *blocks, *places, *self._strides, *options)
        return Launch(finish_rows_kernel, scheme.batch * sum(blocks), numbers, None, **self._shape)

    @property
    def shares_side(self) -> bool:
        """Whether the results of partners and queue are one side of the contraction, which starts with the partners."""
        return self.scheme.spec.loss not in UNPAIRED and self.scheme.spec.in_batch

    def _operands(self, job: Job) -> Operands:
        """Rows of an operand against others, as the primitives take them; without memory behind them."""
        scheme = self.scheme
        rows = torch.empty((scheme.batch, scheme.rows, self.width), dtype=scheme.dtype, device="meta")
        x, y = rows_of(rows, job.row, job.rows), rows_of(rows, job.col, job.cols)
        spec = PairSpec(scheme.factor, exclude=_exclusion(scheme, job.own))
        symmetric = job.col == job.row
        return Operands(x, y, PairTerms(), spec, symmetric, scheme.kind, scheme.product, self._architecture)


def schedule_of(plan: Plan) -> Schedule:
    """The schedule of a loss."""
    scheme, (x, y, queue) = plan.scheme, plan[1:4]
    architecture = architecture_of(x, scheme.pairs * max(scheme.pairs, scheme.further))
    return _schedule(
        scheme,
        architecture,
        x.stride(),
        None if y is None else y.stride(),
        None if queue is None else queue.stride(),
    )


@functools.lru_cache(maxsize=1024)
def _schedule(scheme: Scheme, architecture: Architecture, *given: tuple[int, ...] | None) -> Schedule:
    return Schedule(scheme, architecture, given)


def rows_of(operand: Tensor, first: int, count: int) -> Tensor:
    """Some rows of each batch element."""
    return operand if count == operand.shape[1] else operand[:, first : first + count]


def _exclusion(scheme: Scheme, own: bool) -> str:
    if not own:
        return "none"
    return "views" if scheme.views == 2 else "self"
