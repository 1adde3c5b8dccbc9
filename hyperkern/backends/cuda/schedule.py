"""What the kernels of a whole loss are launched with but for the tensors: worked out once for all calls of a kind."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...spec import EXCLUSIONS, norm_eps
from ..host.jobs import Job, Side, by_panels
from ..host.partials import cut
from ..host.scheme import Scheme
from .align_uniform import ROWS_PER_BLOCK
from .operands import (
    ALIGNMENT,
    CONTRACT_DIM,
    MOST_TILE_COLS,
    Task,
    Weight,
    emulated_capability,
    multiprocessors,
    tile_of,
    unit_of,
)
from .primitives import SUM_TASKS, exp_range, shares

_HEADS = {"softmax": 0, "decoupled": 1, "weighted": 1, "sigmoid": 2, "energy": 3, "classes": 4}
_WEIGHTS = {
    "bounded": Weight.FACTOR,
    "single": Weight.FACTOR,
    "running": Weight.TWO,
    "exp": Weight.EXP,
    "softplus": Weight.SOFTPLUS,
}
_HEAD_THREADS = 256  # kHeadThreads in ``csrc/loss_head.cuh``
_LONGEST = 1024  # kMostLossDim in ``csrc/loss_ops.cu``


class PlannedSums(NamedTuple):
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


class Panel(NamedTuple):
    """All pairs of a side of the contraction, whose weights are stored for the library's products.

    Attributes:
        side: whose rows are those of the weights.
        mirrored: the side whose rows are their first columns, if there is one.
        told: what the launch is told behind the operands and their terms.
        sums: ``(cuts, B, rows)``, the shape of sums over ranges of columns.
    """

    side: Side
    mirrored: Side | None
    told: tuple[Any, ...]
    sums: tuple[int, int, int]


class Schedule:
    """The launches of one kind of call.

    Attributes:
        scheme: the loss.
        width: elements of a row of the operand, which ends at a multiple of 16 bytes.
        term_count: of each vector of terms: pairs of them are read at once, and all that the last tile may reach.
        weight: the form of the weights. Those of classes are of one, whatever the mode: relative to maxima.
        unit: what turns a logit into the kernels' units.
        factor: of a logit, in these units.
        in_one_pass: whether rows are short enough for the contraction in one pass; longer ones go by panels.
    """

    def __init__(self, scheme: Scheme, device: torch.device) -> None:
        self.scheme, self._device = scheme, device
        self.width = scheme.dim + -scheme.dim % (ALIGNMENT // scheme.dtype.itemsize)
        self.term_count = scheme.rows + scheme.rows % 2 + 2 + MOST_TILE_COLS
        self.weight = Weight.CLASSES if scheme.head == "classes" else _WEIGHTS[scheme.weights]
        self.unit = unit_of(scheme.kind)
        self.factor = scheme.factor * self.unit
        self.in_one_pass = self.width <= CONTRACT_DIM

    @functools.cached_property
    def serves(self) -> bool:
        """Whether there is a way to contract: in one pass, or with all weights of a side in one panel."""
        if self.in_one_pass:
            return True
        return self.scheme.dim <= _LONGEST and (not self.scheme.need or self.scheme.fits_panels)

    @functools.cached_property
    def row_blocks(self) -> int:
        """Of the row-wise kernels, for the anchors and the queue of a batch element."""
        return -(-(self.scheme.pairs + self.scheme.further) // ROWS_PER_BLOCK)

    @functools.cached_property
    def sums(self) -> tuple[PlannedSums, ...]:
        """The sums of a softmax in one launch, those of an energy without a gradient each in one."""
        scheme, jobs = self.scheme, self.scheme.of_sums
        if scheme.head == "energy":
            return tuple(self._sums([job], triangle=job.own) for job in jobs)
        if scheme.head in ("sigmoid", "classes"):
            return (self._sums(jobs),)
        running, views = scheme.sums == "running", scheme.views == 2
        if running and scheme.two_way:
            (job,) = jobs
            jobs = (job, Job(job.col, job.cols, job.row, job.rows, job.own))
        return (self._sums(jobs, triangle=views and not running, has_cols=not running and (scheme.two_way or views)),)

    def _sums(self, jobs: Sequence[Job], *, triangle: bool = False, has_cols: bool = False) -> PlannedSums:
        batch, m, n = len(jobs) * self.scheme.batch, jobs[0].rows, jobs[0].cols
        size = tile_of(self._device, self.scheme.dtype, self.width, "sums", Weight.EXP)
        at_once = multiprocessors(self._device)
        stripes, cuts = shares(batch, m, n, size, at_once, triangle=triangle, has_cols=has_cols)
        col = (stripes * size.groups, batch, n) if has_cols else None
        return PlannedSums(jobs, triangle, stripes, (cuts, batch, m), col)

    @functools.cached_property
    def sums_told(self) -> tuple[tuple[Any, ...], ...]:
        """What each launch of `sums` is told behind the operands and their terms."""
        scheme = self.scheme
        task = SUM_TASKS["classes" if scheme.head == "classes" else scheme.sums]
        return tuple(
            (
                *(_exclusion(planned.jobs), 0, scheme.views, _numbers(planned.jobs), self.factor, 0.0, False, task),
                *(scheme.kind == "float32", planned.triangle, planned.stripes, planned.row[0]),
            )
            for planned in self.sums
        )

    @functools.cached_property
    def sides(self) -> tuple[Side, ...]:
        """The sides of the contraction, in ranges of columns that take about as long as one another."""
        scheme, jobs = self.scheme, self.scheme.of_weights
        cuts = self._cuts(jobs) if self.in_one_pass else [1] * len(jobs)
        sides: list[Side] = []
        for job, count in zip(jobs, cuts, strict=True):
            sides.append(Side(job, sides[-1].end if sides else 0, (count, scheme.batch, job.rows)))
        return tuple(sides)

    def _cuts(self, jobs: Sequence[Job]) -> list[int]:
        scheme = self.scheme
        size = tile_of(self._device, scheme.dtype, self.width, "contract", self.weight)
        tiles = [-(-job.cols // size.cols) for job in jobs]
        work = sum(-(-job.rows // size.rows) * count for job, count in zip(jobs, tiles, strict=True))
        # As many row blocks as would be the whole work, each of these columns.
        return [
            cut(
                -(-scheme.batch * work // count),
                count,
                4 * scheme.batch * job.rows * self.width,
                multiprocessors(self._device),
            )
            for job, count in zip(jobs, tiles, strict=True)
        ]

    @functools.cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The weights of all sides, where they do not go in one pass."""
        sides = self.sides
        pairs = by_panels(self.scheme.of_weights)
        return tuple(self._panel(sides[i], None if j is None else sides[j]) for i, j in pairs)

    def _panel(self, side: Side, mirrored: Side | None) -> Panel:
        scheme, job, (offset, _) = self.scheme, side.job, self._range
        size = tile_of(self._device, scheme.dtype, self.width, "stores", self.weight)
        stripes, cuts = shares(scheme.batch, job.rows, job.cols, size, multiprocessors(self._device))
        task = Task.STORE_CLASSES if self.weight == Weight.CLASSES else Task.STORE_EXP + self.weight
        told = (
            *(_exclusion([job]), 0, scheme.views, (0, 0, job.rows, job.cols, 1, 1), self.factor, offset * self.unit),
            *(scheme.weights in ("running", "single"), task, scheme.kind == "float32", False),
            *(stripes, cuts),
        )
        return Panel(side, mirrored, told, (cuts, scheme.batch, job.rows))

    @functools.cached_property
    def panel_scale(self) -> float:
        """What the results of panels are multiplied by: their weights are in the range of float16."""
        return self._range[1]

    @functools.cached_property
    def _range(self) -> tuple[float, float]:
        """What is added to exponents, and what takes it off the results."""
        narrow = self.scheme.kind == "float16" and self.weight == Weight.EXP
        return exp_range(self.scheme.factor) if narrow else (0.0, 1.0)

    @functools.cached_property
    def results(self) -> int:
        """Rows of results of all sides."""
        return self.sides[-1].end if self.sides else 0

    @functools.cached_property
    def contract_told(self) -> tuple[Any, ...]:
        """What the contraction is told behind the operands and their terms."""
        scheme, jobs, (offset, out_scale) = self.scheme, [side.job for side in self.sides], self._range
        numbers = _numbers(jobs, [side.shape[0] for side in self.sides])
        options = (scheme.weights in ("running", "single"), self.weight, scheme.kind == "float32", out_scale)
        return _exclusion(jobs), 0, scheme.views, numbers, self.factor, offset * self.unit, *options

    @functools.cached_property
    def head_blocks(self) -> int:
        """Blocks of threads of the head in a batch element."""
        fills_terms = self.scheme.need and self.scheme.head not in ("energy", "sigmoid")
        return -(-max(self.scheme.pairs, self.term_count if fills_terms else 0) // _HEAD_THREADS)

    @functools.cached_property
    def head_told(self) -> tuple[Any, ...]:
        """The first that the head is told, where the sums of a pair's rows stand, and the last."""
        scheme, spec = self.scheme, self.scheme.spec
        sigma = spec.sigma if scheme.head == "weighted" else 0.0
        last = (spec.bias, self.unit, scheme.share, sigma, scheme.range, spec.scale / 2)
        return (_HEADS[scheme.head], scheme.pairs, scheme.further), self._places_of_ways(), last

    def _places_of_ways(self) -> list[int]:
        """Six numbers for each way, see ``set_places`` in ``csrc/loss_ops.cu``."""
        scheme, one = self.scheme, [1, 0, 1, 0, 0, 1]
        if scheme.head == "energy":  # those of x alone, then those with the queue
            own = [job.own for job in scheme.of_sums]
            return [int(True in own), 0, 1, (2 if True in own else 1) * (False in own), 0, 1]
        if scheme.head == "sigmoid":
            return one
        _, batch, m = self.sums[0].row
        if scheme.head == "classes":  # beside the sums the positives' logits and their numbers
            return [1, 0, 1, 0, 0, 1, 1, batch * m, 1, 1, 2 * batch * m, 1]
        if scheme.views == 2:
            has_cols = self.sums[0].col is not None
            return [number for way in (0, 1) for number in (1, way, 2, 2 if has_cols else 0, way, 2)]
        if not scheme.two_way:
            return one
        return one + ([2, 0, 1, 0, 0, 1] if self.sums[0].col is not None else [1, scheme.batch * m, 1, 0, 0, 1])

    @functools.cached_property
    def places_of_features(self) -> list[int]:
        """Of x, y and the queue: first result and cuts of up to two sides; rows of a side, the first row, the step."""
        sides, paired = self.sides, self.scheme.paired

        def place(of: Sequence[Side], first: int, step: int) -> list[int]:
            results = [number for side in of for number in (side.first, side.shape[0])]
            return [*results, *[0] * (4 - len(results)), of[0].job.rows if of else 0, first, step]

        if self.scheme.views == 2:
            return [*place(sides, 0, 2), *place(sides, 1, 2), *place((), 0, 1)]
        of_x = [side for side in sides if side.job.row == 0]
        others = [side for side in sides if side.job.row != 0]
        of_y = [side for side in others if side.job.row < paired]
        first_further = paired - others[0].job.row if others else 0
        return [*place(of_x, 0, 1), *place(of_y, 0, 1), *place(others, first_further, 1)]

    @functools.cached_property
    def finish_told(self) -> tuple[float, ...]:
        """The last numbers that the gradients of the features are told."""
        scheme = self.scheme
        of_zero_row = math.exp(scheme.spec.scale / 2) if scheme.head == "energy" else 1.0
        return scheme.share, scheme.factor / scheme.range, of_zero_row, norm_eps(scheme.input_dtype)


def schedule_of(scheme: Scheme, device: torch.device) -> Schedule:
    """The schedule of a loss on a device."""
    return _schedule(scheme, device, emulated_capability())


@functools.lru_cache(maxsize=1024)
def _schedule(scheme: Scheme, device: torch.device, _emulated: int) -> Schedule:
    return Schedule(scheme, device)


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
