"""Jobs: the mean potential with and without the pairs of a point with itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from scipy.stats import vonmises_fisher
from torch import Tensor

from hyperkern import pairwise_logsumexp, uniformity
from hyperkern.metrics import uniformity_limit

from .sphere import uniform_rows


def without_self(with_self: Tensor, points: int) -> Tensor:
    """``log((B e^L - 1)/(B - 1))``: a mean over B pairs, one of potential 1, as the mean over the others."""
    return ((points * with_self.exp() - 1) / (points - 1)).log()


def estimators(seed: int, dim: int, t: float, sizes: list[int], draws: int) -> dict[str, Any]:
    """Both estimators of uniformity on independent uniform points, where the truth is known.

    Args:
        seed: of the points.
        dim: of them.
        t: of the potential.
        sizes: numbers B of points.
        draws: of each number.
    """
    limit = uniformity_limit(dim, t)
    generator = torch.Generator().manual_seed(seed)
    concentrated = vonmises_fisher(torch.eye(dim)[0].numpy(), 20.0)
    rows = []
    for count in sizes:
        x = uniform_rows(draws * count, dim, generator).view(draws, count, dim)
        every, distinct = uniformity(x, x, t=t), uniformity(x, t=t)
        # The relation is one of numbers, not of the uniform distribution: points of another kind have it too.
        other = torch.from_numpy(concentrated.rvs(count, random_state=seed))
        gaps = [
            distinct - without_self(every, count),
            uniformity(other, t=t) - without_self(uniformity(other, other, t=t), count),
            row_gaps(x[0], t),
            row_gaps(other, t),
        ]
        rows.append(
            {
                "points": count,
                "largest_gap": max(gap.abs().max().item() for gap in gaps),
                **_errors("with_self", every - limit),
                **_errors("distinct", distinct - limit),
                # Were the potential of every pair its expectation.
                "predicted_bias": math.log1p(math.expm1(-limit) / count),
            }
        )
    return {"limit": limit, "rows": rows}


def row_gaps(x: Tensor, t: float) -> Tensor:
    """The relation for each point's own mean, as in the contrastive loss."""
    count = len(x)
    every = pairwise_logsumexp(x, logit_scale=2 * t)[0] - 2 * t - math.log(count)
    others = pairwise_logsumexp(x, logit_scale=2 * t, exclude="self")[0] - 2 * t - math.log(count - 1)
    return others - without_self(every, count)


def _errors(name: str, errors: Tensor) -> dict[str, float]:
    deviation = errors.std().item()
    return {
        f"{name}_bias": errors.mean().item(),
        f"{name}_bias_error": deviation / math.sqrt(len(errors)),
        f"{name}_std": deviation,
        f"{name}_rms": errors.square().mean().sqrt().item(),
    }
