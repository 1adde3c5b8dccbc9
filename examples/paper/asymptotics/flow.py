"""Jobs: points on the sphere that minimise uniformity, and what they reach."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hyperkern import pairwise_logsumexp, uniformity
from hyperkern.metrics import uniformity_limit

from .sphere import uniform_rows

ITERATIONS = 120
ENOUGH = 1e-7  # less gain than this between two points of the curve ends the descent
RECORDED = 10  # iterations between two points of the curve
COLLAPSED = 1e-3  # distance from the pole; at the pole itself every gradient is zero
OTHER_POTENTIALS = (0.5, 8.0)  # potentials that were not minimised


def second_term(x: Tensor, t: float) -> Tensor:
    """The second term of the asymptotic contrastive loss at temperature 1/(2t), in units of `uniformity`.

    Uniformity has the logarithm outside the mean over anchors, this one inside: ``mean_i log mean_j e^{-t‖x_i-x_j‖²}``,
    of all pairs, those of a point with itself included.
    """
    return pairwise_logsumexp(x, logit_scale=2 * t)[0].mean() - math.log(len(x)) - 2 * t


def descend(x: Tensor, objective: Callable[[Tensor], Tensor], iterations: int) -> tuple[Tensor, list[float]]:
    """Minimise over points on the sphere by L-BFGS.

    Args:
        x: ``(N, D)`` where they start.
        objective: of ``(N, D)`` points, which it normalises.
        iterations: at most.

    Returns:
        The points, of unit length, and the objective at the start and after every `RECORDED` iterations.
    """
    x = x.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=RECORDED,
        history_size=20,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(x)
        value.backward()
        return value

    curve = [objective(x.detach()).item()]
    for _ in range(math.ceil(iterations / RECORDED)):
        optimizer.step(closure)
        curve.append(objective(x.detach()).item())
        if curve[-2] - curve[-1] < ENOUGH:
            break
    return F.normalize(x.detach(), dim=-1), curve


def start(kind: str, count: int, dim: int, seed: int) -> Tensor:
    """Points to start from: ``"random"``, or ``"collapsed"`` almost to one."""
    rows = uniform_rows(count, dim, torch.Generator().manual_seed(seed))
    if kind == "random":
        return rows
    pole = torch.zeros(dim, dtype=torch.float64)
    pole[0] = 1
    return F.normalize(pole + COLLAPSED * rows, dim=-1)


def moments(x: Tensor) -> tuple[float, float]:
    """How far the first two moments are from the uniform distribution's, in units of independent uniform points.

    Args:
        x: ``(N, D)`` unit rows.

    Returns:
        Rayleigh's and Bingham's statistics over their means, which are 1 for independent uniform points.
    """
    rows, dim = x.shape
    rayleigh = rows * x.mean(0).square().sum().item()
    second = x.T @ x / rows - torch.eye(dim, dtype=x.dtype) / dim
    return rayleigh, rows * dim / (dim - 1) * second.square().sum().item()


def flow(dim: int, t: float, sizes: list[int], runs: list[list[Any]]) -> dict[str, Any]:
    """Minimise uniformity, or the second term of the contrastive loss.

    Args:
        dim: of the points.
        t: of the potential.
        sizes: numbers of points.
        runs: objective, start and seed of each, ``["uniformity", "random", 0]`` for instance.
    """
    found = []
    for count in sizes:
        for objective, kind, seed in runs:
            values = {"uniformity": lambda x: uniformity(x, t=t), "second term": lambda x: second_term(x, t)}
            before = start(kind, count, dim, seed)
            after, curve = descend(before, values[objective], ITERATIONS)
            first, second = moments(after)
            found.append(
                {
                    "points": count,
                    "objective": objective,
                    "start": kind,
                    "seed": seed,
                    "curve": curve,
                    "started_at": uniformity(before, before, t=t).item(),
                    "distinct": uniformity(after, t=t).item(),
                    "with_self": uniformity(after, after, t=t).item(),
                    "second_term": second_term(after, t).item(),
                    "first_moment": first,
                    "second_moment": second,
                    "others": [
                        uniformity(after, after, t=other).item() - uniformity_limit(dim, other)
                        for other in OTHER_POTENTIALS
                    ],
                }
            )
    # What independent uniform points have, in expectation: their distinct pairs have the limit's.
    limit = uniformity_limit(dim, t)
    independent = {count: math.log(1 / count + (1 - 1 / count) * math.exp(limit)) for count in sizes}
    return {"limit": limit, "independent": [independent[count] for count in sizes], "runs": found}
