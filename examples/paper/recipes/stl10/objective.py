"""What the encoder is trained to minimise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

import hyperkern


class Objective(NamedTuple):
    """A weighted sum of alignment, uniformity (the mean of both views) and the two-way contrastive loss."""

    align_weight: float = 1.0
    uniform_weight: float = 1.0
    contrastive_weight: float = 0.0
    alpha: float = 2.0
    t: float = 2.0
    temperature: float = 0.07

    def __call__(self, x: Tensor, y: Tensor, group: hyperkern.Group | None) -> hyperkern.AlignUniform:
        """The sum, with alignment and uniformity, of two views ``(N, dim)``, of all processes of the group."""
        terms = hyperkern.align_uniform(
            x,
            y,
            alpha=self.alpha,
            t=self.t,
            align_weight=self.align_weight,
            uniform_weight=self.uniform_weight,
            group=group,
        )
        if not self.contrastive_weight:
            return terms
        contrastive = hyperkern.clip_loss(x, y, logit_scale=1 / self.temperature, group=group)
        return terms._replace(loss=terms.loss + self.contrastive_weight * contrastive)

    def __str__(self) -> str:
        terms = (
            (self.align_weight, f"alignment (alpha {self.alpha:g})"),
            (self.uniform_weight, f"uniformity (t {self.t:g})"),
            (self.contrastive_weight, f"contrastive (temperature {self.temperature:g})"),
        )
        return " + ".join(f"{weight:g} x {what}" for weight, what in terms if weight)
