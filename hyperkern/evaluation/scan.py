"""The first pass: norms, rows that are zero or not finite, alignment, and the moments that the estimate needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses.alignment import alignment_of_rows
from .blocks import Rows, Tick, accurate


class Moments(NamedTuple):
    """Sums over all rows with weights ``g``, float64.

    Attributes:
        weight: ``sum g``.
        first: ``sum g x``, ``(D,)``.
        second: ``sum g x x'``, ``(D, D)``.
    """

    weight: float
    first: Tensor
    second: Tensor


class Scan(NamedTuple):
    """What the first pass finds of one side.

    Attributes:
        norms: smallest, mean and largest norm of the rows that are finite; nan if none is.
        zero_rows: how many rows are zero.
        bad_rows: how many rows hold nan or inf.
        center: ``(D,)`` mean of the rows as they are, float64.
        moments: of the prepared rows, if asked for.
    """

    norms: tuple[float, float, float]
    zero_rows: int
    bad_rows: int
    center: Tensor
    moments: Moments | None


class _Tally:
    """The sums of one side."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.smallest, self.largest, self.norm_sums = math.inf, 0.0, [0.0]
        self.zero = self.bad = 0
        self.center = accurate(torch.zeros(rows.source.dim, device=rows.device))
        self.weight = 0.0
        self.first, self.second = torch.zeros_like(self.center), self.center.new_zeros(0, 0)

    def add(self, start: int, raw: Tensor, *, with_moments: bool) -> Tensor:
        """Adds a block; returns its prepared rows."""
        finite = torch.isfinite(raw).all(-1)
        bad = int((~finite).sum())
        wide = accurate(raw)
        norms = _norms(wide[finite.to(wide.device)] if bad else wide)
        self.bad += bad
        if norms.numel():
            self.smallest = min(self.smallest, norms.min().item())
            self.largest = max(self.largest, norms.max().item())
            self.norm_sums.append(norms.sum().item())
            self.zero += int((norms == 0).sum())
        self.center += wide.sum(0) / self.rows.source.rows
        block = self.rows.prepared(start, raw)
        if with_moments:
            x = accurate(block.x)
            g = torch.ones_like(x[:, 0]) if block.u is None else accurate(block.u).exp()
            weighted = x * g.unsqueeze(1)
            self.weight += g.sum().item()
            self.first += weighted.sum(0)
            if not len(self.second):
                self.second = x.new_zeros(x.shape[1], x.shape[1])
            self.second.addmm_(weighted.mT, x)
        return block.x

    def result(self, *, with_moments: bool) -> Scan:
        count = self.rows.source.rows - self.bad
        mean = math.fsum(self.norm_sums) / count if count else math.nan
        norms = (self.smallest, mean, self.largest) if count else (math.nan,) * 3
        moments = Moments(self.weight, self.first, self.second) if with_moments else None
        return Scan(norms, self.zero, self.bad, self.center, moments)


def scan(sides: Sequence[Rows], *, alpha: float, with_moments: bool, tick: Tick) -> tuple[list[Scan], float | None]:
    """Reads every row once.

    Args:
        sides: the features, and their partners if there are any.
        alpha: exponent of the alignment.
        with_moments: whether the moments are wanted.
        tick: called after each block of either side.

    Returns:
        What was found of each side, and the mean alignment, ``None`` with one side.
    """
    tallies = [_Tally(rows) for rows in sides]
    weights = sides[0].weights
    distances = []
    for start in sides[0].starts:
        prepared = []
        for tally in tallies:
            prepared.append(tally.add(start, tally.rows.raw(start), with_moments=with_moments))
            tick()
        if len(prepared) == 2:
            pairs = accurate(alignment_of_rows(prepared[0], prepared[1], alpha))
            if weights is not None:
                pairs = pairs * weights[start : start + len(pairs)].to(pairs.device)
            distances.append(pairs.sum().item())
    total = sides[0].source.rows if weights is None else weights.sum().item()
    aligned = sum(distances) / total if distances else None  # fsum would refuse an infinity
    return [tally.result(with_moments=with_moments) for tally in tallies], aligned


def _norms(x: Tensor) -> Tensor:
    """In units of the largest element, so that no square overflows."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
    return (torch.linalg.vector_norm(x / largest.masked_fill(largest == 0, 1), dim=-1, keepdim=True) * largest)[:, 0]
