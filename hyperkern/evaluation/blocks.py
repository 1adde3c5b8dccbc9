"""Blocks of rows on the device, prepared as the primitives take them; the first pass over them.

It finds norms, rows that are zero or not finite, the alignment, and the moments that an estimate needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import autograd
from ..arguments import accurate_dtype
from ..losses.alignment import alignment_of_rows
from .sources import Source

Tick = Callable[[], None]

# A block and its partner of float32 rows, of 128 dimensions: 8 MB on a CPU, where the backend cuts them for the cache,
# and enough work for a GPU to hide the next block's way there.
_ROWS_CPU = 8192
_ROWS_DEVICE = 65536
_ELEMENTS = 2**24


def default_block_rows(device: torch.device, dim: int) -> int:
    """Rows of a block, fewer for very wide features."""
    return max(1, min(_ROWS_CPU if device.type == "cpu" else _ROWS_DEVICE, _ELEMENTS // dim))


def accurate(x: Tensor) -> Tensor:
    """In float64, on the CPU if the device has none."""
    return x.double() if accurate_dtype(x) == torch.float64 else x.cpu().double()


class Block(NamedTuple):
    """Some rows on the device."""

    start: int  # index of the first
    x: Tensor  # (rows, D), prepared
    u: Tensor | None  # (rows,) log-weights


@dataclass(frozen=True)
class Rows:
    """The rows of one side and how they are brought to the device. The last three are known after the scan."""

    source: Source
    device: torch.device  # where they are computed with
    block_rows: int  # how many at a time
    t: float  # inverse width of the potential
    normalize: bool  # whether they are scaled to unit length
    backend: str | None  # one to force
    weights: Tensor | None  # (N,) in float64 on the CPU, the largest 1
    has_zero_rows: bool = True  # whether some have to be looked for
    center: Tensor | None = None  # (D,), what is subtracted from rows that are not normalised
    wide: bool = False  # whether rows that are not normalised are taken to float64

    @property
    def starts(self) -> range:
        """The first row of each block."""
        return range(0, self.source.rows, self.block_rows)

    def raw(self, start: int) -> Tensor:
        """The block that begins there, as it is in the source, on the device."""
        return self._moved(self.source.read(start, min(start + self.block_rows, self.source.rows)))

    def load(self, start: int) -> Block:
        """The block that begins there."""
        return self.prepared(start, self.raw(start))

    def blocks(self) -> Iterator[Block]:
        """All blocks in order."""
        return (self.load(start) for start in self.starts)

    def prepared(self, start: int, raw: Tensor) -> Block:
        """A block from its rows as they are in the source."""
        x = self._as_operand(raw)
        u = None
        if self.normalize:
            if self.has_zero_rows:
                # A zero row stays at the origin, at distance 1 from the sphere.
                u = self.t * (torch.linalg.vector_norm(x, dim=-1) == 0).to(x.dtype)
        else:
            u = -self.t * x.square().sum(-1)
        if self.weights is not None:
            log_weights = self.weights[start : start + x.shape[0]].log().to(x.device, x.dtype)
            u = log_weights if u is None else u + log_weights
        return Block(start, x, u)

    def take(self, index: Tensor) -> Tensor:
        """Some rows, prepared."""
        return self._as_operand(self._moved(self.source.take(index)))

    def _as_operand(self, raw: Tensor) -> Tensor:
        x = autograd.prepare(raw, normalize=self.normalize, backend=self.backend)
        if self.center is not None:
            x = x.to(accurate_dtype(x)) if self.wide else x
            x = x - self.center.to(x.device, x.dtype)
        return x

    def _moved(self, rows: Tensor) -> Tensor:
        if self.device.type == "cuda" and rows.device.type == "cpu":
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows.to(self.device)


class Moments(NamedTuple):
    """Sums over all rows with weights ``g``, float64."""

    weight: float  # sum g
    first: Tensor  # sum g x, (D,)
    second: Tensor  # sum g x x', (D, D)


class Scan:
    """What the first pass finds of one side, block by block.

    Args:
        rows: the side.
        with_moments: whether those are wanted.

    Attributes:
        zero_rows: how many are zero.
        bad_rows: how many hold nan or inf.
        center: ``(D,)`` mean of the rows as they are, float64.
        moments: of the prepared rows, if asked for.
    """

    def __init__(self, rows: Rows, *, with_moments: bool) -> None:
        self.rows = rows
        self._smallest, self._largest, self._norm_sums = math.inf, 0.0, [0.0]
        self.zero_rows = self.bad_rows = 0
        self.center = accurate(torch.zeros(rows.source.dim, device=rows.device))
        none = Moments(0.0, torch.zeros_like(self.center), self.center.new_zeros(2 * self.center.shape))
        self.moments = none if with_moments else None

    @property
    def norms(self) -> tuple[float, float, float]:
        """Smallest, mean and largest of the rows that are finite; nan if none is."""
        count = self.rows.source.rows - self.bad_rows
        if not count:
            return (math.nan,) * 3
        return self._smallest, math.fsum(self._norm_sums) / count, self._largest

    def add(self, start: int, raw: Tensor) -> Tensor:
        """Adds a block; returns its prepared rows."""
        finite = torch.isfinite(raw).all(-1)
        bad = int((~finite).sum())
        wide = accurate(raw)
        norms = _norms(wide[finite.to(wide.device)] if bad else wide)
        self.bad_rows += bad
        if norms.numel():
            self._smallest = min(self._smallest, norms.min().item())
            self._largest = max(self._largest, norms.max().item())
            self._norm_sums.append(norms.sum().item())
            self.zero_rows += int((norms == 0).sum())
        self.center += wide.sum(0) / self.rows.source.rows
        block = self.rows.prepared(start, raw)
        if self.moments is not None:
            x = accurate(block.x)
            g = torch.ones_like(x[:, 0]) if block.u is None else accurate(block.u).exp()
            weighted = x * g.unsqueeze(1)
            weight, first, second = self.moments
            second.addmm_(weighted.mT, x)
            self.moments = Moments(weight + g.sum().item(), first + weighted.sum(0), second)
        return block.x


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
    scans = [Scan(rows, with_moments=with_moments) for rows in sides]
    weights = sides[0].weights
    distances = []
    for start in sides[0].starts:
        prepared = []
        for found in scans:
            prepared.append(found.add(start, found.rows.raw(start)))
            tick()
        if len(prepared) == 2:
            pairs = accurate(alignment_of_rows(prepared[0], prepared[1], alpha))
            if weights is not None:
                pairs = pairs * weights[start : start + len(pairs)].to(pairs.device)
            distances.append(pairs.sum().item())
    total = sides[0].source.rows if weights is None else weights.sum().item()
    aligned = sum(distances) / total if distances else None  # fsum would refuse an infinity
    return scans, aligned


def _norms(x: Tensor) -> Tensor:
    """In units of the largest element, so that no square overflows."""
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(x / largest.masked_fill(largest == 0, 1), dim=-1) * largest[:, 0]
    return norms
