"""Which rows of the operand of a whole loss meet which, as launches: operands of the sums, both sides contracted."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms
from ..common.jobs import Job
from ..common.partials import cut
from ..common.step import Plan
from . import config
from .config import Architecture, Config
from .contract import contract_sides_kernel
from .operands import Operands, architecture_of, launch

_NO_COLUMN = 1 << 30  # the shift of an exclusion that excludes nothing


class Sides(NamedTuple):
    """The outputs of contractions one behind the other, ``(cuts, B, rows)`` of each, and where each starts and the
    last ends.
    """

    grad: Tensor
    sum: Tensor
    value: Tensor | None
    cuts: tuple[int, ...]
    starts: tuple[int, ...]


def width(plan: Plan) -> int:
    """Elements of a row of the operand: its loads are asynchronous where rows start at multiples of 16 of them."""
    dim = plan.x.shape[2]
    return dim + -dim % 16


def _architecture(plan: Plan) -> Architecture:
    return architecture_of(plan.x, plan.pairs * max(plan.pairs, plan.further))


def choice_of(plan: Plan) -> Config | None:
    """The configuration of the contraction; None where rows are too long for one pass."""
    mode = "classes" if plan.head == "classes" else plan.weights
    return config.find(_architecture(plan), "contract", plan.kind, width(plan), mode)


def operands(plan: Plan, job: Job, rows: Tensor, u: Tensor | None = None) -> Operands:
    """Rows of the operand against others, as the kernels of the primitives take them."""
    x = rows[:, job.row : job.row + job.rows]
    symmetric = job.col == job.row
    y = x if symmetric else rows[:, job.col : job.col + job.cols]
    spec = PairSpec(plan.factor, exclude=_exclusion(plan, job.own))
    return Operands(x, y, PairTerms(u), spec, symmetric, plan.kind, plan.product, _architecture(plan))


def _exclusion(plan: Plan, own: bool) -> str:
    if not own:
        return "none"
    return "views" if plan.views == 2 else "self"


def cuts_of(plan: Plan, jobs: tuple[Job, ...], choice: Config) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Into how many ranges the columns of each side are cut, and where the rows of its outputs start; and their end."""
    return _cuts(jobs, plan.batch, width(plan), choice, _architecture(plan).multiprocessors)


@functools.lru_cache(maxsize=1024)
def _cuts(
    jobs: tuple[Job, ...], batch: int, dim: int, choice: Config, multiprocessors: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    programs = batch * sum(-(-job.rows // choice.block_m) for job in jobs)
    cuts: list[int] = []
    starts: list[int] = []
    end = 0
    for i, job in enumerate(jobs):
        cuts.append(cut(programs, -(-job.cols // choice.block_n), 4 * batch * job.rows * dim, multiprocessors))
        if i % 2 == 0:  # where a launch begins, addresses are aligned whatever the number of rows
            end += -end % 4
        starts.append(end)
        end += cuts[-1] * batch * job.rows
    return tuple(cuts), (*starts, end)


def contract(
    plan: Plan,
    rows: Tensor,
    *,
    u: Tensor | None = None,
    factor: Tensor | None = None,
    lse: Tensor | None = None,
    classes: Tensor | None = None,
    share: Tensor | None = None,
) -> Sides:
    """All sides that are needed, two in one launch."""
    jobs, choice = plan.of_weights(), choice_of(plan)
    assert choice is not None
    cuts, starts = cuts_of(plan, jobs, choice)
    grad = rows.new_empty((starts[-1], width(plan)), dtype=torch.float32)
    sums = grad.new_empty(starts[-1])
    value = torch.empty_like(sums) if plan.weights == "softplus" else None
    o = operands(plan, plan.of_sums()[0], rows)
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
                *(rows, u, lse, factor, classes, share, grad[starts[i] :], sums[starts[i] :]),
                sums[starts[i] :] if value is None else value[starts[i] :],
                *(plan.batch, plan.rows, programs[0], *told[0], *told[-1]),
                *(plan.factor * o.unit(plan.weights), o.shift(plan.weights) * o.unit(plan.weights)),
            ),
            choice,
            **constants,
        )
    return Sides(grad, sums, value, cuts, starts)
