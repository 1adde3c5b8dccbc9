"""What an encoder is trained for."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import hyperkern


class Objective(NamedTuple):
    """A weighted sum of alignment, uniformity (the mean of both views) and the two-way contrastive loss."""

    align_weight: float = 0.0
    uniform_weight: float = 0.0
    contrastive_weight: float = 0.0
    alpha: float = 2.0
    t: float = 2.0
    temperature: float = 0.1

    def __call__(self, x: Tensor, y: Tensor, group: hyperkern.Group | None) -> Tensor:
        """The loss of positive pairs, ``(N, D)`` raw features of each view; with a group that of all its rows."""
        terms = []
        if self.align_weight or self.uniform_weight:
            weights = {"align_weight": self.align_weight, "uniform_weight": self.uniform_weight}
            terms.append(hyperkern.align_uniform(x, y, alpha=self.alpha, t=self.t, group=group, **weights).loss)
        if self.contrastive_weight:
            contrastive = hyperkern.clip_loss(x, y, logit_scale=1 / self.temperature, group=group)
            terms.append(self.contrastive_weight * contrastive)
        return sum(terms[1:], terms[0])

    def __str__(self) -> str:
        terms = {
            f"alignment(α={self.alpha:g})": self.align_weight,
            f"uniformity(t={self.t:g})": self.uniform_weight,
            f"contrastive(τ={self.temperature:g})": self.contrastive_weight,
        }
        return " + ".join(f"{weight:g} {term}" for term, weight in terms.items() if weight)
