"""Partial results: into how many ranges the columns are cut, and how their sums are added, in a fixed order."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .. import log_sum_exp


class Side(NamedTuple):
    """Weighted sums for the rows of one side.

    Attributes:
        grad: ``(cuts, B, M, D)``, partial sums of ``w_ij y_j`` over ranges of columns.
        sum: ``(cuts, B, M)``, those of ``w_ij``.
        value: ``(cuts, B, M)``, those of the potential.
    """

    grad: Tensor
    sum: Tensor
    value: Tensor

    def total(self) -> Tensor:
        """The potential of all pairs, ``(B,)``."""
        return self.value.sum((0, 2))

    def added(self) -> tuple[Tensor, Tensor]:
        """``(B, M, D)`` and ``(B, M)``."""
        return add_cuts(self.grad), add_cuts(self.sum)

    def divided(self, scale: Tensor | float) -> "Side":
        """The sums without a scale that was on all weights."""
        return Side(*(part / scale for part in self))


class Sums(NamedTuple):
    """Sums over pairs, of one number for each row.

    Attributes:
        total: ``(B, M)``, the sums; relative to ``top`` if there is one.
        top: ``(B, M)``, the largest logits; -inf for a row without any pair.
        unit: that of ``top``, in which weights subtract the log-sum-exp too.
        u: ``(B, M)``, log-weights of the rows that are not in the sums yet; weights take them with the log-sum-exp.
    """

    total: Tensor
    top: Tensor | None = None
    unit: float = 1.0
    u: Tensor | None = None

    def logarithm(self) -> tuple[Tensor, Tensor]:
        """The log-sum-exp and its rounding."""
        return log_sum_exp(*self)


def add_cuts(parts: Tensor) -> Tensor:
    """The sum over the ranges of columns."""
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)


def added(parts: Tensor, tops: Tensor | None, unit: float = 1.0) -> Sums:
    """The sum of partial sums; of those relative to maxima, in this unit, relative to their maximum."""
    if tops is None:
        return Sums(add_cuts(parts))
    top = tops.amax(0) if len(tops) else tops.new_full(tops.shape[1:], -torch.inf)  # of rows that meet none
    relative = ((tops - top.masked_fill(top == -torch.inf, 0)) / unit).exp_()
    return Sums((parts * relative).sum(0), top, unit)


@functools.lru_cache(maxsize=1024)
def cut(programs: int, tiles: int, bytes_per_cut: int, multiprocessors: int) -> int:
    """Into how many ranges the columns are cut, so that a small problem fills the GPU and no wave is nearly empty.

    Each range costs partial results, in memory and in time (taken as 2 % each).
    """
    most = max(1, min(tiles, 16, (64 << 20) // max(1, bytes_per_cut)))

    def cost(cuts: int) -> float:
        waves = -(-programs * cuts // multiprocessors)
        return waves / cuts * (1 + 0.02 * (cuts - 1))

    return min(range(1, most + 1), key=cost)
