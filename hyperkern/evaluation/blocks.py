"""Blocks of rows on the device, prepared as the primitives take them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import autograd
from ..arguments import accurate_dtype
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
    """Some rows on the device.

    Attributes:
        start: index of the first.
        x: ``(rows, D)``, prepared.
        u: ``(rows,)`` log-weights, or ``None``.
    """

    start: int
    x: Tensor
    u: Tensor | None


@dataclass(frozen=True)
class Rows:
    """The rows of one side and how they are brought to the device.

    Attributes:
        source: where they are.
        device: where they are computed with.
        block_rows: how many at a time.
        t: inverse width of the potential.
        normalize: whether they are scaled to unit length.
        backend: name of a backend to force.
        weights: ``(N,)`` weights in float64 on the CPU, the largest 1, or ``None``.
        has_zero_rows: whether some have to be looked for; known after the scan.
        center: ``(D,)``, what is subtracted from rows that are not normalised; known after the scan.
        wide: whether rows that are not normalised are taken to float64.
    """

    source: Source
    device: torch.device
    block_rows: int
    t: float
    normalize: bool
    backend: str | None
    weights: Tensor | None
    has_zero_rows: bool = True
    center: Tensor | None = None
    wide: bool = False

    @property
    def starts(self) -> range:
        """The first row of each block."""
        return range(0, self.source.rows, self.block_rows)

    def raw(self, start: int) -> Tensor:
        """The block that begins there, as it is in the source, on the device."""
        rows = self.source.read(start, min(start + self.block_rows, self.source.rows))
        return self._moved(rows)

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
