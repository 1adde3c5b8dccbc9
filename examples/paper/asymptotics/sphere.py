"""The uniform distribution on the unit sphere: samples, and expectations of it without any."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from scipy.special import roots_jacobi
from torch import Tensor

from hyperkern.metrics import uniformity_limit

NODES = 400


def uniform_rows(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """Draw `(count, dim)` independent uniform points, float64."""
    return F.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=-1)


def inner_products(dim: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the inner product of two independent uniform points, a Gauss quadrature.

    Its density is proportional to ``(1 - s²)^((D-3)/2)``.

    Args:
        dim: D, at least 2.

    Returns:
        ``(NODES,)`` inner products and their probabilities, which sum to 1.
    """
    power = (dim - 3) / 2
    nodes, weights = roots_jacobi(NODES, power, power)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


def log_mean_exp(dim: int, scale: float) -> float:
    """``log E exp(scale x·y)`` of two independent uniform points: `uniformity_limit` at t = scale / 2."""
    return scale + uniformity_limit(dim, scale / 2)


def log_area(dim: int) -> float:
    """Logarithm of the area of the sphere, which is the entropy of the uniform distribution, in nats."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
