"""Uniformity of all distinct pairs, block against block of the upper triangle."""

from __future__ import annotations

import math
from collections.abc import Iterator

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
    # Totals in float64 on the host: of sums, or of their logarithms.
    total, log_total = 0.0, torch.tensor(-math.inf, dtype=torch.float64)
    for value, factor in _one_behind(_pairs(rows, bounded, tick)):
        if bounded:
            total += factor * value.item()
        else:
            log_total = torch.logaddexp(log_total, value.cpu().double().logsumexp(0) + math.log(factor))
    # Divided first: the logarithms of both are not small.
    log_mean = math.log(total / pair_weight) if bounded else log_total.item() - math.log(pair_weight)
    # On unit rows the logits are the exponents plus 2t.
    return log_mean - (2 * rows.t if rows.normalize else 0.0)


def _pairs(rows: Rows, bounded: bool, tick: Tick) -> Iterator[tuple[Tensor, float]]:
    """What `_pair` finds of each pair of blocks, and how often its pairs of rows count."""
    for start in rows.starts:
        own = rows.load(start)
        yield _pair(rows, own, None, bounded), 0.5  # every pair is met in both orders
        tick()
        for other_start in rows.starts[start // rows.block_rows + 1 :]:
            yield _pair(rows, own, rows.load(other_start), bounded), 1.0
            tick()


def _one_behind(values: Iterator[tuple[Tensor, float]]) -> Iterator[tuple[Tensor, float]]:
    """Gives each value when the next one is on its way, so that a device is never idle while one is read."""
    previous = next(values)
    for value in values:
        yield previous
        previous = value
    yield previous


def _pair(rows: Rows, own: Block, other: Block | None, bounded: bool) -> Tensor:
    """The sum of exponentials of one pair of blocks; its logarithm, one for each row, where it may not be bounded."""
    spec = PairSpec(2 * rows.t, bounded, "self" if other is None else "none", precision=precision(rows))
    columns, terms = (None, PairTerms(own.u)) if other is None else (other.x, PairTerms(own.u, other.u))
    if bounded:
        return autograd.energy(own.x, columns, spec=spec, terms=terms, backend=rows.backend)
    return autograd.row_lse(own.x, columns, spec=spec, terms=terms, backend=rows.backend)[0]


def precision(rows: Rows) -> str:
    """The dtype of the products, as `hyperkern.uniformity` would have it."""
    if not rows.normalize:
        return "float32"
    return product_precision(torch.empty(0, dtype=rows.source.dtype, device=rows.device))
