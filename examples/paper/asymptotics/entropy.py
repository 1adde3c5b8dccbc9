"""Jobs: the second term of the asymptotic contrastive loss as an estimate of the features' entropy."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.special import logsumexp
from scipy.stats import vonmises_fisher
from torch import Tensor

from hyperkern import pairwise_logsumexp

from .sphere import log_area, log_mean_exp, uniform_rows

CHECKED = 64  # points on which the density is computed a second time, by SciPy


def log_density(x: Tensor, kappa: float, *, exclude: str = "none") -> Tensor:
    """Logarithm of the kernel density estimate at its own points, with a von Mises-Fisher kernel.

    Its normaliser is ``Z(κ) = area · E e^{κ x·y}`` of independent uniform x, y.

    Args:
        x: ``(N, D)`` points.
        kappa: of the kernel, 1/τ.
        exclude: ``"self"`` leaves the point itself out.
    """
    rows, dim = x.shape
    others = rows - (exclude == "self")
    return pairwise_logsumexp(x, logit_scale=kappa, exclude=exclude)[0] - math.log(others) - log_normaliser(dim, kappa)


def log_normaliser(dim: int, kappa: float) -> float:
    """Logarithm of what a von Mises-Fisher density is divided by."""
    return log_area(dim) + log_mean_exp(dim, kappa)


def sample(dim: int, concentration: float, count: int, seed: int) -> tuple[Tensor, float]:
    """Points of a von Mises-Fisher distribution, uniform for concentration 0, and its entropy in nats."""
    if concentration == 0:
        return uniform_rows(count, dim, torch.Generator().manual_seed(seed)), log_area(dim)
    distribution = vonmises_fisher(torch.eye(dim)[0].numpy(), concentration)
    return torch.from_numpy(distribution.rvs(count, random_state=seed)), float(distribution.entropy())


def entropy(
    dim: int, concentrations: list[float], temperatures: list[float], sizes: list[int], seeds: list[int]
) -> dict[str, Any]:
    """Estimate entropies that are known.

    Args:
        dim: of the points.
        concentrations: of the distributions they are drawn from, 0 for the uniform one.
        temperatures: of the loss; the kernel's concentration is 1 over it.
        sizes: numbers of points.
        seeds: of the points.
    """
    rows = []
    for concentration in concentrations:
        for count in sizes:
            samples = [sample(dim, concentration, count, seed) for seed in seeds]
            truth = samples[0][1]
            for tau in temperatures:
                kappa = 1 / tau
                estimates, left_out, gaps = [], [], []
                for x, _ in samples:
                    estimates.append(-log_density(x, kappa).mean().item())
                    left_out.append(-log_density(x, kappa, exclude="self").mean().item())
                    gaps.append(identity_gap(x, kappa))
                rows.append(
                    {
                        "concentration": concentration,
                        "points": count,
                        "temperature": tau,
                        "truth": truth,
                        "estimates": estimates,
                        "without_self": left_out,
                        "largest_gap": max(gaps),
                    }
                )
    return {"rows": rows}


def identity_gap(x: Tensor, kappa: float) -> float:
    """How far the second term is from minus the entropy estimate plus log Z, the density being SciPy's.

    Args:
        x: ``(N, D)`` points, of which the first are looked at.
        kappa: of the kernel.
    """
    x = x[:CHECKED]
    rows, dim = x.shape
    term = pairwise_logsumexp(x, logit_scale=kappa)[0].mean().item() - math.log(rows)
    points = x.numpy()
    kernels = [vonmises_fisher(centre, kappa).logpdf(points) for centre in points]
    estimate = -float((logsumexp(kernels, axis=0) - math.log(rows)).mean())
    return abs(term - (-estimate + log_normaliser(dim, kappa)))
