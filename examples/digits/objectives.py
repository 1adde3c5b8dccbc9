"""The objectives that the demo compares, in the order of its table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hyperkern import align_uniform, alignment, clip_loss, uniformity

ALPHA = 2.0
T = 2.0
# For unit vectors exp(-t‖x-y‖²) = exp(2t·x·y) up to a constant: with τ = 1/(2t) the contrastive loss
# weighs its pairs with the very kernel of the uniformity, so that the two are compared like with like.
TEMPERATURE = 1 / (2 * T)


@dataclass(frozen=True)
class Objective:
    """One training objective.

    Attributes:
        name: key in `results.json`.
        label: name in the table and the picture.
        formula: the objective in symbols.
        loss: maps the raw features of two views, `(N, D)` each, and a backend name to a scalar.
    """

    name: str
    label: str
    formula: str
    loss: Callable[[Tensor, Tensor, str | None], Tensor]


def _alignment(x: Tensor, y: Tensor, backend: str | None) -> Tensor:
    return alignment(x, y, alpha=ALPHA, backend=backend)


def _uniformity(x: Tensor, y: Tensor, backend: str | None) -> Tensor:
    return (uniformity(x, t=T, backend=backend) + uniformity(y, t=T, backend=backend)) / 2


def _contrastive(x: Tensor, y: Tensor, backend: str | None) -> Tensor:
    return clip_loss(x, y, logit_scale=1 / TEMPERATURE, backend=backend)


def _align_uniform(x: Tensor, y: Tensor, backend: str | None) -> Tensor:
    return align_uniform(x, y, alpha=ALPHA, t=T, backend=backend).loss


ALIGNMENT = Objective("alignment", "alignment only", f"align(α={ALPHA:g})", _alignment)
UNIFORMITY = Objective("uniformity", "uniformity only", f"uniform(t={T:g})", _uniformity)
CONTRASTIVE = Objective("contrastive", "contrastive", f"contrastive(τ={TEMPERATURE:g})", _contrastive)
ALIGN_UNIFORM = Objective(
    "align_uniform",
    "alignment + uniformity",
    f"1·align(α={ALPHA:g}) + 1·uniform(t={T:g})",
    _align_uniform,
)
# Not an objective: the encoder as it was initialised, the level that training has to beat.
UNTRAINED = "untrained"
OBJECTIVES = (ALIGNMENT, UNIFORMITY, CONTRASTIVE, ALIGN_UNIFORM)
