"""The launches of a whole loss but for the tensors: worked out once for all calls of a kind."""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms, norm_eps
from ..host.jobs import Job, Side, by_panels
from ..host.panels import room
from ..host.partials import cut
from ..host.scheme import UNPAIRED, Scheme
from ..host.whole import Plan
from .classes import classes_head_kernel
from .config import Architecture, Config
from .contract import contract_sides_kernel
from .heads import energy_head_kernel, sigmoid_head_kernel, softmax_head_kernel
from .launch import Launch
from .normalize import COMBINED, row_block
from .operands import Operands, architecture_of, strides, width
from .panel import panel_kernel
from .primitives import PlannedSums, plan_sums
from .specialised import specialised
from .whole_grads import finish_rows_kernel
from .whole_rows import prepare_rows_kernel

_ANCHORS = 128  # of a program of a head
_NO_COLUMN = 1 << 30  # the shift of an exclusion that excludes nothing
_LONGEST = 4096  # D: the row-wise kernels of whole losses hold several rows in registers


class Panel(NamedTuple):
    """All pairs of a side of the contraction, whose weights are stored for the library's products.

    Attributes:
        launch: what stores them.
        side: whose rows are those of the weights.
        mirrored: the side whose rows are their first columns, if there is one.
        sums: ``(tiles, B, rows)``, the shape of sums over tiles of columns; None where nobody needs them.
    """

    launch: Launch
    side: Side
    mirrored: Side | None
    sums: tuple[int, int, int] | None


class Schedule:
    """The launches of one kind of call. The first and the last know the strides of the features.

    Attributes:
        scheme: the loss.
        width: elements of a row of the operand.
        choice: the configuration of the contraction; None where rows are too long for one pass, and go by panels.
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
        self.width = width(scheme.dim)
        # Labels take registers.
        self._weighing = "classes" if scheme.head == "classes" else scheme.weights
        self.choice = self._operands(scheme.of_sums[0]).find("contract", self._weighing)
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
    def serves(self) -> bool:
        """Whether there is a way to contract: in one pass, or with all weights of a side in one panel."""
        if self.choice is not None:
            return True
        return self.scheme.dim <= _LONGEST and (not self.scheme.need or self.scheme.fits_panels)

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
            parts = self._parts if scheme.need else tuple(planned.row[0] for planned in self.sums)
            by_own = {job.own: count for job, count in zip(scheme.of_sums, parts, strict=False)}
            further, distinct = scheme.further, pairs * (pairs - 1) // 2 if scheme.distinct else 0
            rows = (batch, pairs, further, self.blocks, self.blocks_further)
            cuts = (by_own.get(False, 0), by_own.get(True, 0))
            numbers: tuple[Any, ...] = (*rows, *cuts, 0.5 * scheme.spec.scale, float(pairs * further + distinct))
            return Launch(energy_head_kernel, batch, numbers, None, BLOCK=COMBINED)
        if scheme.head == "sigmoid":
            parts = self._parts if scheme.need else self.sums[0].row
            numbers = (batch, pairs, blocks, parts[0], scheme.spec.bias, 1 / share)
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
    def sides(self) -> tuple[Side, ...]:
        """The sides of the contraction, and into how many ranges the columns of each are cut."""
        scheme, choice = self.scheme, self.choice
        sides: list[Side] = []
        for i, job in enumerate(scheme.of_weights):
            cuts = 1 if choice is None else self._cuts(job, choice)
            first = sides[-1].end if sides else 0
            if i % 2 == 0:  # where a launch begins, addresses are aligned whatever the number of rows
                first += -first % 4
            sides.append(Side(job, first, (cuts, scheme.batch, job.rows)))
        return tuple(sides)

    @functools.cached_property
    def of_x(self) -> int:
        """How many sides are of the rows of ``x``. They come first."""
        return sum(side.job.row == 0 for side in self.sides)

    @functools.cached_property
    def results(self) -> int:
        """Rows of results of all sides."""
        return self.sides[-1].end if self.sides else 0

    def _cuts(self, job: Job, choice: Config) -> int:
        scheme = self.scheme
        programs = scheme.batch * sum(-(-one.rows // choice.block_m) for one in scheme.of_weights)
        size = 4 * scheme.batch * job.rows * self.width
        return cut(programs, -(-job.cols // choice.block_n), size, self._architecture.multiprocessors)

    @functools.cached_property
    def contract(self) -> tuple[tuple[int, Launch], ...]:
        """Launches of up to two sides each, and where the outputs of each start."""
        scheme, choice, sides = self.scheme, self.choice, self.sides
        assert choice is not None
        o, mode = self._operands(scheme.of_sums[0]), scheme.weights
        own = any(side.job.own for side in sides)
        constants = o.constants(choice, mode) | {"EXCLUDE": _exclusion(scheme, own)}
        units = (scheme.factor * o.unit(mode), o.shift(mode) * o.unit(mode))
        found = []
        for i in range(0, len(sides), 2):
            programs, told = [], []
            for job, _, (ranges, *_) in sides[i : i + 2]:
                programs.append(scheme.batch * -(-job.rows // choice.block_m) * ranges)
                told.append((job.rows, job.cols, job.row, job.col, 0 if job.own else _NO_COLUMN, ranges))
            numbers = (scheme.batch, scheme.rows, programs[0], *told[0], *told[-1], *units)
            planned = Launch(contract_sides_kernel, sum(programs), numbers, choice, **constants)
            found.append((sides[i].first, specialised(planned) if choice.specialised else planned))
        return tuple(found)

    @functools.cached_property
    def panels(self) -> tuple[Panel, ...]:
        """The weights of all sides, where they do not go in one pass."""
        return tuple(self._panel(*sides) for sides in by_panels(self.scheme.of_weights))

    def _panel(self, i: int, mirrored: int | None) -> Panel:
        scheme, mode, sides = self.scheme, self.scheme.weights, self.sides
        job = sides[i].job
        o = self._operands(job)
        choice = o.find("panel", self._weighing)
        assert choice is not None
        blocks, tiles = -(-job.rows // choice.block_m), -(-job.cols // choice.block_n)
        numbers = (
            *(scheme.batch, job.rows, job.cols, *strides(o.x)[:2], *strides(o.y)[:2], scheme.rows, scheme.rows),
            *strides(room(o.x, scheme.batch, job.rows, job.cols))[:2],
            *(0, scheme.factor * o.unit(mode), o.shift(mode) * o.unit(mode)),
        )
        constants = o.constants(choice, mode) | {"GROUP": 8}
        launch = Launch(panel_kernel, scheme.batch * blocks * tiles, numbers, choice, **constants)
        # Partners alone have the same sum as the anchors.
        summed = scheme.head in ("energy", "sigmoid") and i < max(1, self.of_x)
        of_mirror = None if mirrored is None else sides[mirrored]
        return Panel(launch, sides[i], of_mirror, (tiles, scheme.batch, job.rows) if summed else None)

    @functools.cached_property
    def finish(self) -> Launch:
        """All gradients out of the results of the contraction."""
        scheme, of_x, cuts = self.scheme, self.of_x, [side.shape[0] for side in self.sides]
        # Those of the rows of x come first, then those of y and the queue; of two views there are none but the first.
        cuts_x, cuts_y = sum(cuts[:of_x]), sum(cuts[0 if scheme.views == 2 else of_x :])
        queue = ("y" if scheme.spec.loss in UNPAIRED else "queue") in scheme.need
        blocks = (self.blocks, self.blocks_further if queue else 0)
        places = (
            self.anchors,
            self.sides[-1].job.rows if cuts else 0,
            cuts_x,
            cuts_y,
            scheme.pairs if self.shares_side else 0,
        )
        options = (norm_eps(scheme.input_dtype), scheme.spec.scale, scheme.share, 1 / scheme.range)
        numbers = (scheme.batch, scheme.pairs, scheme.further, *blocks, *places, *self._strides, *options)
        return Launch(finish_rows_kernel, scheme.batch * sum(blocks), numbers, None, **self._shape)

    @functools.cached_property
    def panel_scale(self) -> float:
        """What the results of panels are multiplied by: their weights are in the range of float16."""
        return math.exp(self._operands(self.scheme.of_sums[0]).shift(self.scheme.weights))

    @property
    def _parts(self) -> tuple[int, ...]:
        """How many partial sums of weights the sides of ``x`` have."""
        if self.choice is not None:
            return tuple(side.shape[0] for side in self.sides)
        return tuple(panel.sums[0] for panel in self.panels if panel.sums is not None)

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
    scheme, x, y, queue, *_ = plan
    architecture = architecture_of(x, scheme.pairs * max(scheme.pairs, scheme.further))
    others = (None if y is None else y.stride(), None if queue is None else queue.stride())
    return _schedule(scheme, architecture, x.stride(), *others)


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
