"""The mean of independent draws, corrected by control variates whose expectations are known; Student's quantile."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Mean(NamedTuple):
    """An estimated mean.

    Attributes:
        value: the estimate.
        standard_error: of the estimate.
        degrees: of freedom of the standard error.
    """

    value: float
    standard_error: float
    degrees: float


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
