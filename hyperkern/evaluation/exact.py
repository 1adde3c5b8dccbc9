"""Uniformity of all distinct pairs, block against block of the upper triangle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import autograd
from ..spec import PairSpec, PairTerms, is_bounded, product_precision
from .blocks import Block, Rows, Tick


def exact_visits(blocks: int) -> int:
    """How often `exact` calls ``tick``."""
    return blocks * (blocks + 1) // 2


def exact(rows: Rows, *, bound: float | None, pair_weight: float, tick: Tick) -> float:
    """The logarithm of the mean potential of all distinct pairs.

    Args:
        rows: the features.
        bound: of the exponents' absolute value, or ``None`` where it is not known.
        pair_weight: the sum of ``w_i w_j`` over the pairs.
        tick: called after each pair of blocks.

    Returns:
        The value.
    """
    count, dtype = rows.source.rows, torch.float64 if rows.source.dtype == torch.float64 else torch.float32
    bounded = rows.weights is None and bound is not None and is_bounded(bound, count * count, dtype)
    total = _Sum() if bounded else _LogSum()
    for start in rows.starts:
        own = rows.load(start)
        total.add(_pair(rows, own, None, bounded), 0.5)  # every pair is met in both orders
        tick()
        for other_start in rows.starts[start // rows.block_rows + 1 :]:
            total.add(_pair(rows, own, rows.load(other_start), bounded), 1.0)
            tick()
    # On unit rows the logits are the exponents plus 2t.
    return total.log_mean(pair_weight) - (2 * rows.t if rows.normalize else 0.0)


def _pair(rows: Rows, own: Block, other: Block | None, bounded: bool) -> Tensor:
    """The sum of exponentials of one pair of blocks; its logarithm, one for each row, where it may not be bounded."""
    spec = PairSpec(2 * rows.t, bounded, "self" if other is None else "none", precision=precision(rows))
    columns, terms = None, PairTerms(own.u)
    if other is not None:
        columns, terms = other.x, PairTerms(own.u, other.u)
    if bounded:
        return autograd.energy(own.x, columns, spec=spec, terms=terms, backend=rows.backend)
    return autograd.row_lse(own.x, columns, spec=spec, terms=terms, backend=rows.backend)[0]


def precision(rows: Rows) -> str:
    """The dtype of the products, as `hyperkern.uniformity` would have it."""
    return (
        product_precision(torch.empty(0, dtype=rows.source.dtype, device=rows.device)) if rows.normalize else "float32"
    )


class _Pending:
    """Totals in float64 on the host. A value is read when the next is on its way, so that the device is never idle."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, float] | None = None

    def add(self, value: Tensor, factor: float) -> None:
        previous, self._pending = self._pending, (value, factor)
        if previous is not None:
            self._read(*previous)

    def _last(self) -> None:
        if self._pending is not None:
            self._read(*self._pending)
            self._pending = None

    def _read(self, value: Tensor, factor: float) -> None:
        raise NotImplementedError

    def log_mean(self, pair_weight: float) -> float:
        raise NotImplementedError


class _Sum(_Pending):
    """Of plain sums."""

    def __init__(self) -> None:
        super().__init__()
        self._total = 0.0

    def _read(self, value: Tensor, factor: float) -> None:
        self._total += factor * value.item()

    def log_mean(self, pair_weight: float) -> float:
        self._last()
        return math.log(self._total / pair_weight)  # divided first: the logarithms of both are not small


class _LogSum(_Pending):
    """Of log-sum-exps."""

    def __init__(self) -> None:
        super().__init__()
        self._total = torch.tensor(-math.inf, dtype=torch.float64)

    def _read(self, value: Tensor, factor: float) -> None:
        log_sum = value.cpu().double().logsumexp(0) + math.log(factor)
        self._total = torch.logaddexp(self._total, log_sum)

    def log_mean(self, pair_weight: float) -> float:
        self._last()
        return self._total.item() - math.log(pair_weight)
