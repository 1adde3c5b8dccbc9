"""Jobs: the contrastive loss with one negative, beside that of perfectly aligned and uniform features.

With aligned features the loss is the mean over pairs of ``g(s) = log(1 + e^{(s - 1)/τ})``, s their inner product. By
Schoenberg's theorem the uniform distribution minimises such a mean over all distributions if and only if no coefficient
of g's expansion in Gegenbauer polynomials of degree 1 and more is negative: one that is tells of a distribution with a
smaller loss, one that leans towards that degree.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from scipy.special import eval_chebyt, eval_gegenbauer
from torch import Tensor

from hyperkern import alignment, siglip, uniformity
from hyperkern.metrics import uniformity_limit

from .flow import descend
from .sphere import inner_products, uniform_rows

ITERATIONS = 150
DEGREES = 12
POLYGONS = range(2, 13)


def loss(features: Tensor, temperature: float) -> Tensor:
    """The expectation of the loss with one negative, any of the features: ``mean_aj softplus((x_a·x_j - x_a·y_a)/τ)``.

    Args:
        features: ``(2N, D)``, the second half the positives of the first; the anchors are all of them.
        temperature: τ.
    """
    features = F.normalize(features, dim=-1)
    positives = (features * features.roll(len(features) // 2, 0)).sum(-1, keepdim=True)
    return F.softplus((features @ features.T - positives) / temperature).mean()


def aligned_loss(points: Tensor, temperature: float) -> Tensor:
    """The same where each positive is its anchor: the sigmoid loss with the bias -1/τ, which sums over columns."""
    return siglip(points, points, logit_scale=1 / temperature, logit_bias=-1 / temperature) / len(points)


def of_uniform(dim: int, temperature: float) -> float:
    """The loss of perfectly aligned, uniform features, by quadrature."""
    nodes, weights = inner_products(dim)
    return (F.softplus((nodes - 1) / temperature) @ weights).item()


def alternatives(dim: int, temperature: float) -> dict[str, float]:
    """The loss of other features, exactly."""
    nodes, weights = inner_products(dim)
    antipodal = (math.log(2) + math.log1p(math.exp(-2 / temperature))) / 2
    unaligned = weights @ F.softplus((nodes[:, None] - nodes) / temperature) @ weights
    found = {
        "uniform, but not aligned": unaligned.item(),
        "aligned, at one point": math.log(2),
        "aligned, at two antipodal points": antipodal,
    }
    if dim > 2:
        found["aligned, uniform on a great circle"] = of_uniform(2, temperature)
    return found


def spectrum(dim: int, temperature: float) -> list[float]:
    """Mean of g times the polynomial of degrees 1, 2, …, which is 1 at s = 1; the sign is that of g's coefficient."""
    nodes, weights = inner_products(dim)
    order = dim / 2 - 1
    value = F.softplus((nodes - 1) / temperature) * weights
    found = []
    for degree in range(1, DEGREES + 1):
        if order:
            polynomial = eval_gegenbauer(degree, order, nodes.numpy()) / eval_gegenbauer(degree, order, 1.0)
        else:  # on the circle they are Chebyshev's
            polynomial = eval_chebyt(degree, nodes.numpy())
        found.append((value @ torch.from_numpy(polynomial)).item())
    return found


def polygon(corners: int) -> Tensor:
    """The corners of a regular polygon, ``(corners, 2)``."""
    angles = 2 * math.pi * torch.arange(corners, dtype=torch.float64) / corners
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def single(dim: int, temperature: float, sizes: list[int], seeds: list[int]) -> dict[str, Any]:
    """Minimise the loss with one negative, from independent uniform points.

    Args:
        dim: of the features.
        temperature: of the loss.
        sizes: numbers of pairs; both sides of a pair are free.
        seeds: of the starts.
    """
    runs = []
    for count in sizes:
        for seed in seeds:
            begin = uniform_rows(2 * count, dim, torch.Generator().manual_seed(seed))
            free, curve = descend(begin, lambda x: loss(x, temperature), ITERATIONS)
            x, y = free.chunk(2)
            t = 1 / (2 * temperature)
            runs.append(
                {
                    "pairs": count,
                    "seed": seed,
                    "started_at": curve[0],
                    "value": curve[-1],
                    # Of one side alone as both: a perfectly aligned encoder, by the library's sum.
                    "aligned_value": aligned_loss(x, temperature).item(),
                    "alignment": alignment(x, y).item(),
                    "uniformity_excess": uniformity(free, free, t=t).item() - uniformity_limit(dim, t),
                }
            )
    polygons = {corners: aligned_loss(polygon(corners), temperature).item() for corners in POLYGONS} if dim == 2 else {}
    return {
        "uniform": of_uniform(dim, temperature),
        "alternatives": alternatives(dim, temperature),
        "spectrum": spectrum(dim, temperature),
        "polygons": {str(corners): value for corners, value in polygons.items()},
        "runs": runs,
    }
