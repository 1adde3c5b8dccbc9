r"""Uniformity from a sample of columns, corrected by moments that are exact for every column.

With weights ``g`` of the rows the mean potential is a sum over columns,

.. math::
    K = \sum_j y_j, \qquad y_j = \frac{g_j}{T} \sum_{i \ne j} g_i e^{-t \lVert x_i - x_j \rVert^2}.

A column costs O(ND), but the moments of its similarities cost O(D^2) once ``sum g x`` and ``M = sum g x x'`` are
known: :math:`\sum_i g_i s_{ij} = x_j \cdot \sum g x` and :math:`\sum_i g_i s_{ij}^2 = x_j' M x_j`. They, and
:math:`x_j' M^2 x_j`, which tells a column among many weak directions from one along a strong direction, are known for
*every* column; so are their means. That is used twice.

- **Which columns.** Drawn independently, with probabilities that are half uniform (half proportional to the column's
  weight) and half proportional to the leverage of its moments. Few rows close to one another, duplicates for instance,
  can make up much of the mean and are missed by a uniform sample, which then does not know how wrong it is; their
  moments stand out.
- **Correction.** The draws ``y_j / q_j`` are regressed on the moments, divided by ``q_j`` too, whose expectations are
  exact (`controlled_mean`).

The draws are independent and identically distributed and the controls' expectations known, so the interval is that of a
regression with ``m - 5`` degrees of freedom; the logarithm of the mean has the relative standard error of the mean.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from .. import autograd
from ..spec import PairSpec, PairTerms, is_bounded
from .blocks import Moments, Rows, Tick, accurate
from .exact import precision


class Mean(NamedTuple):
    """An estimated mean."""

    value: float
    standard_error: float
    degrees: float  # of freedom of the standard error


class Design(NamedTuple):
    """How columns are drawn, and what is known of all of them. Zero entries of a column of weight 0 are never drawn."""

    base: Tensor  # (N,) the columns' share of the weight of all pairs
    ratio: Tensor  # (N,) base over the probability of the column, at most 2
    features: Tensor  # (N, k) moments relative to base, uncorrelated, of mean 0 and variance 1 under base


def estimate(
    rows: Rows, moments: Moments, *, columns: int, pair_weight: float, generator: torch.Generator, tick: Tick
) -> Mean:
    """The logarithm of the mean potential of all distinct pairs.

    Args:
        rows: the features; unit rows.
        moments: of them.
        columns: how many are drawn; the same one may be drawn again.
        pair_weight: the sum of ``w_i w_j`` over the pairs.
        generator: of the draws, on the CPU.
        tick: called after each block, once in each of two passes.

    Returns:
        The value, its standard error and degrees of freedom.
    """
    scales, table = _column_moments(rows, moments, tick)
    design = columns_design(scales, table)
    cumulative = (design.base / design.ratio).cumsum(0)
    points = torch.rand(columns, generator=generator, dtype=torch.float64) * cumulative[-1]
    # A point rounded to the very end is of the last column that can be drawn.
    drawn = torch.searchsorted(cumulative, points, right=True).clamp_max(int(design.base.nonzero()[-1]))
    distinct, where = torch.unique(drawn, return_inverse=True)
    log_means = _column_log_sums(rows, distinct, tick)[where]

    # y_j / base_j: the weight of the column cancels and leaves the mean potential over its pairs.
    log_means = log_means - 2 * rows.t + (scales[drawn] / design.base[drawn]).log() - math.log(2 * pair_weight)
    largest = log_means.max()
    ratio = design.ratio[drawn]
    mean = controlled_mean(
        (log_means - largest).exp() * ratio,
        torch.cat([ratio.unsqueeze(1) - 1, design.features[drawn] * ratio.unsqueeze(1)], 1),
    )
    if not mean.value > 0:  # the correction of a sample that knows next to nothing
        mean = controlled_mean((log_means - largest).exp() * ratio, ratio.new_empty(columns, 0))
    # Rounding is no scatter: it is the same in every column.
    rounding = torch.finfo(torch.float64 if rows.source.dtype == torch.float64 else torch.float32).eps * (1 + rows.t)
    error = math.hypot(mean.standard_error / mean.value, rounding)
    return Mean(math.log(mean.value) + largest.item(), error, mean.degrees)


def _column_moments(rows: Rows, moments: Moments, tick: Tick) -> tuple[Tensor, Tensor]:
    """The weight ``g`` of each column, ``(N,)``, and the sums over its pairs of ``g_i``, ``g_i s``, ``g_i s^2``.

    The last of the four features is ``x' M^2 x``. All are float64 on the CPU.
    """
    _, first, second = moments
    # Filled in place: small pieces kept among the large ones of a block would keep all of their memory in use.
    g = torch.empty(rows.source.rows, dtype=torch.float64)
    table = torch.empty(rows.source.rows, 4, dtype=torch.float64)
    for block in rows.blocks():
        x = accurate(block.x)
        own = torch.ones_like(x[:, 0]) if block.u is None else accurate(block.u).exp()
        squared = x.square().sum(1)
        image = x @ second
        # Without the pair of a row with itself.
        linear, quadratic = x @ first - own * squared, (image * x).sum(1) - own * squared.square()
        here = slice(block.start, block.start + len(x))
        g[here] = own
        table[here, 1:] = torch.stack((linear, quadratic, image.square().sum(1)), 1)
        tick()
    table[:, 0] = moments.weight - g
    # Where one weight dominates, the difference would cancel.
    top = int(g.argmax())
    table[top, 0] = g[:top].sum() + g[top + 1 :].sum()
    return g, table


def columns_design(weights: Tensor, table: Tensor) -> Design:
    """The probabilities of the columns.

    Args:
        weights: ``(N,)`` weights of the columns.
        table: ``(N, 1 + k)`` for each column the weight of its pairs, > 0, and k features.
    """
    base = weights * table[:, 0]
    base = base / base.sum()
    relative = table[:, 1:] / table[:, :1]
    relative = relative - base @ relative
    deviation = (base @ relative.square()).sqrt()
    kept = deviation > 1e-12 * relative.abs().amax(0).clamp_min(1e-300)
    relative = relative[:, kept] / deviation[kept]
    variance, axes = torch.linalg.eigh(relative.mT @ (base.unsqueeze(1) * relative))
    kept = variance > 1e-9
    features = relative @ (axes[:, kept] / variance[kept].sqrt())
    leverage = (1 + features.square().sum(1)) / (1 + features.shape[1])
    return Design(base, 2 / (1 + leverage), features)


def _column_log_sums(rows: Rows, index: Tensor, tick: Tick) -> Tensor:
    """``log sum_{i != j} g_i exp(2 t s_ij)`` of some columns, float64 on the CPU."""
    columns = rows.take(index)
    ids = index.to(columns.device)
    bounded = rows.weights is None and is_bounded(2 * rows.t, rows.block_rows, columns.dtype)
    spec = PairSpec(2 * rows.t, bounded, "same_id", precision=precision(rows))
    total = torch.full((len(index),), -math.inf, dtype=torch.float64)
    for block in rows.blocks():
        row_ids = torch.arange(block.start, block.start + len(block.x), device=columns.device)
        terms = PairTerms(v=block.u, row_ids=ids, col_ids=row_ids)
        part, _ = autograd.row_lse(columns, block.x, spec=spec, terms=terms, backend=rows.backend)
        total = torch.logaddexp(total, part.cpu().double())
        tick()
    return total


def controlled_mean(draws: Tensor, controls: Tensor) -> Mean:
    r"""The mean of ``draws`` by least squares on controls of expectation 0.

    The fitted value at the controls' expectation is :math:`\hat\mu = \sum_i a_i u_i`, linear in the draws. Its standard
    error is the leave-one-out one (HC3), :math:`\sum_i a_i^2 r_i^2 / (1 - h_i)^2` with residuals ``r`` and leverages
    ``h``: it does not ask the residuals to have one variance, and a draw that pulls the fit towards itself counts as if
    it had not been fitted.

    Args:
        draws: ``(m,)`` independent draws, float64.
        controls: ``(m, k)`` controls drawn with them.

    Returns:
        The mean, with ``m - rank`` degrees of freedom.
    """
    m = draws.shape[0]
    design = torch.cat([draws.new_ones(m, 1), controls[:, controls.abs().amax(0) > 1e-12]], 1)
    # One scale for all columns; the fit does not see it, the numerical rank does.
    scaled = design / design.square().mean(0).sqrt()
    left, singular, right = torch.linalg.svd(scaled, full_matrices=False)
    rank = int((singular > 1e-9 * singular[0]).sum())
    left, singular, right = left[:, :rank], singular[:rank], right[:rank]
    if rank >= m or right[:, 0].square().sum() < 1 - 1e-9:
        # The draws do not tell the mean from the controls: as without controls.
        return Mean(draws.mean().item(), draws.std().item() / math.sqrt(m), m - 1)
    a = left @ (right[:, 0] / singular)
    residuals = draws - left @ (left.mT @ draws)
    leverages = left.square().sum(1).clamp_max(1 - 1e-6)
    error = (a * residuals / (1 - leverages)).square().sum().sqrt()
    return Mean((a @ draws).item(), error.item(), m - rank)


def student_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's distribution, by its expansion around the normal one: to 4 digits from 8 degrees on.

    Source:
        Abramowitz & Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = NormalDist().inv_cdf(probability)
    z2 = z * z
    terms = (
        (z2 + 1) / 4,
        ((5 * z2 + 16) * z2 + 3) / 96,
        (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384,
        ((((79 * z2 + 776) * z2 + 1482) * z2 - 1920) * z2 - 945) / 92160,
    )
    return z * (1 + sum(term / degrees**power for power, term in enumerate(terms, 1)))
