"""What the tests of trainers share: the curve of a fit, and how far two of them are apart."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.fits import Fit, Plan

STRICT = 1e-6


def curve(fit: Fit, loss_of: Callable[[nn.Module], nn.Module], plan: Plan) -> list[float]:
    """The loss of every step, from the same weights on."""
    found: list[float] = []

    def noted(loss: nn.Module, args: Any, value: Any) -> None:
        value = value["contrastive_loss"] if isinstance(value, Mapping) else value
        found.append(value.item())

    def recorded(model: nn.Module) -> nn.Module:
        loss = loss_of(model)
        loss.register_forward_hook(noted)
        return loss

    torch.manual_seed(0)
    fit(recorded, plan)
    assert len(found) == plan.steps
    return found


def apart(ours: Sequence[float], original: Sequence[float]) -> float:
    """The largest relative difference of two curves."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, original, strict=True))
