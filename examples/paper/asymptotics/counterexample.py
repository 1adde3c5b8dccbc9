"""Jobs: distributions that the mean inner product takes for uniform, and what the Gaussian potential says of them."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import vonmises_fisher
from torch import Tensor

from hyperkern import uniformity
from hyperkern.metrics import uniformity_limit

from .flow import descend, moments
from .single import polygon
from .sphere import inner_products

ITERATIONS = 150
T = 2.0
CONCENTRATION = 10.0  # of the points that the descents start from


def mean_inner_product(x: Tensor) -> Tensor:
    """Mean inner product of all pairs, ``‖mean x‖²``; the mean squared distance is 2 minus twice that."""
    return torch.nn.functional.normalize(x, dim=-1).mean(0).square().sum()


def atoms(dim: int) -> dict[str, Tensor]:
    """Distributions on finitely many points, each as likely as any other."""
    axes = torch.eye(dim, dtype=torch.float64)
    simplex = torch.eye(dim + 1, dtype=torch.float64) - 1 / (dim + 1)  # D + 1 points of a D-dimensional subspace
    circle = torch.zeros(256, dim, dtype=torch.float64)
    circle[:, :2] = polygon(256)
    return {
        "one point": axes[:1],
        "two antipodal points": torch.cat([axes[:1], -axes[:1]]),
        "a great circle": circle,
        "simplex": simplex,
        "cross-polytope": torch.cat([axes, -axes]),
    }


def exact(dim: int) -> dict[str, Any]:
    """Mean inner product, mean squared distance, mean distance and uniformity of distributions that are known exactly.

    Args:
        dim: of the sphere, at least 2.
    """
    rows = {}
    for name, points in atoms(dim).items():
        inner = mean_inner_product(points).item()
        unit = torch.nn.functional.normalize(points, dim=-1)
        rows[name] = {
            "inner_product": inner,
            "squared_distance": 2 - 2 * inner,
            "distance": torch.cdist(unit, unit).mean().item(),
            "uniformity": uniformity(points, points, t=T).item(),
        }
    nodes, weights = inner_products(dim)
    rows["uniform"] = {
        "inner_product": 0.0,
        "squared_distance": 2.0,
        "distance": ((2 - 2 * nodes).sqrt() @ weights).item(),
        "uniformity": uniformity_limit(dim, T),
    }
    return {"t": T, "rows": rows}


def descents(dim: int, count: int, seeds: list[int]) -> dict[str, Any]:
    """Minimise either from the same concentrated points.

    Args:
        dim: of the sphere.
        count: of the points.
        seeds: of the starts.
    """
    pole = torch.eye(dim)[0].numpy()
    objectives = {"inner product": mean_inner_product, "uniformity": lambda x: uniformity(x, t=T)}
    runs = []
    for seed in seeds:
        begin = torch.from_numpy(vonmises_fisher(pole, CONCENTRATION).rvs(count, random_state=seed))
        for name, objective in objectives.items():
            after, _ = descend(begin, objective, ITERATIONS)
            runs.append(
                {
                    "objective": name,
                    "seed": seed,
                    "inner_product": mean_inner_product(after).item(),
                    "uniformity": uniformity(after, after, t=T).item(),
                    "second_moment": moments(after)[1],
                }
            )
    return {"limit": uniformity_limit(dim, T), "runs": runs}
