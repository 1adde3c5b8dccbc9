"""Which rows of the operand of a whole loss meet which, in the sums and in the contraction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Job(NamedTuple):
    """Some rows of the operand against others, in each batch element.

    Attributes:
        row: the first row.
        rows: how many.
        col: the first column, likewise a row of the operand.
        cols: how many.
        own: whether the columns with a row's own index, counted from the first of each, are left out; with two views
            those of its pair.
    """

    row: int
    rows: int
    col: int
    cols: int
    own: bool


class Side(NamedTuple):
    """One side of a contraction, and where its results are: those of all sides stand one behind the other.

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


def by_panels(jobs: Sequence[Job]) -> tuple[tuple[int, int | None], ...]:
    """Which jobs have weights of their own, and which one takes them turned over.

    That one's rows are the first columns of the other, its columns the rows.
    """
    found: dict[int, int | None] = {}
    for i, job in enumerate(jobs):
        if i not in found.values():
            others = (j for j in range(i + 1, len(jobs)) if _is_turned(jobs[j], job))
            found[i] = next(others, None)
    return tuple(found.items())


def _is_turned(job: Job, of: Job) -> bool:
    pairs = (job.row, job.col, job.cols, job.own)
    return pairs == (of.col, of.row, of.rows, of.own) and job.rows <= of.cols
