"""What M negatives cost in expectation, and in one draw, beside the limit of Theorem 1; both for a known distribution.

Where the features are finitely many and a negative is any of them, the expectation over M independent negatives needs
no sampling. For positive S, ``log S = ∫ (e^{-s} - e^{-sS}) ds / s``, and the Laplace transform of a sum of independent
terms is a product. With ``k`` the kernel ``e^{x·z/τ}`` of a random negative over its mean, ``c`` that of the positive
over the same mean and ``φ(u) = E e^{-uk}``, the loss minus log M exceeds its limit by

    E log(c/M + mean of M values of k) = ∫ (e^{-s} - e^{-sc/M} φ(s/M)^M) ds / s.

In ``v = log s`` the integrand is analytic and falls off at both ends, where the trapezoidal rule converges
exponentially: the result is exact to rounding, so that a deviation of 1e-7 has no noise to hide in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STEPS_PER_DOUBLING = 3  # error exp(-π² STEPS_PER_DOUBLING / log 2) = 3e-19
LOWEST = -30.0  # of log s: below, the integrand is less than e^-30 c/M
HIGHEST = 40.0  # of s times the rate of decay: above, the integrand is less than e^-40


def expected_deviations(kernel: Tensor, weights: Tensor, positives: Tensor, doublings: Sequence[int]) -> Tensor:
    """Expectation of the contrastive loss minus log M, minus its limit for infinitely many negatives.

    Args:
        kernel: ``(A, J)``, ``e^{x·z/τ}`` of each anchor x and each value z of a negative.
        weights: ``(J,)`` probabilities of the values.
        positives: ``(A,)``, ``e^{x·y/τ}`` of each anchor and its positive.
        doublings: the numbers of negatives are M = 2^m for each m of these, at least 0.

    Returns:
        ``(A, len(doublings))`` of each anchor.
    """
    mean = kernel @ weights
    kernel, positives = kernel / mean[:, None], positives / mean
    step = math.log(2) / STEPS_PER_DOUBLING
    first = math.floor(LOWEST / step) - STEPS_PER_DOUBLING * max(doublings)
    last = math.ceil(math.log(HIGHEST / positives.min().item()) / step)
    grid = torch.arange(first, last + 1, dtype=kernel.dtype)
    arguments = (grid * step).exp()  # u = s / M, one grid for every M since log M is a multiple of the step
    # Where every term has vanished the mean is -1, but for the rounding of the weights' sum.
    means = torch.stack([torch.expm1(-u * kernel) @ weights for u in arguments])  # (U, A)
    log_transform = means.clamp(min=-1).log1p()
    deviations = []
    for m in doublings:
        exponents = 2.0**m * log_transform - arguments[:, None] * positives
        reference = torch.expm1(-arguments * 2.0**m)  # minus 1 in both terms, for the digits of small arguments
        deviations.append(step * (reference[:, None] - torch.expm1(exponents)).sum(0))
    return torch.stack(deviations, dim=1)


def coefficients(kernel: Tensor, weights: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """First orders for many negatives, by the delta method.

    Args:
        kernel: as for `expected_deviations`.
        weights: likewise.
        positives: likewise.

    Returns:
        ``(A,)`` each: M times the deviation of the expectation, ``c - Var(k)/2``, and M times the variance of one
        draw, ``Var(k)``.
    """
    mean = kernel @ weights
    variance = (kernel / mean[:, None] - 1).square() @ weights
    return positives / mean - variance / 2, variance
