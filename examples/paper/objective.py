"""What an encoder is trained to minimise, and the two metrics that it is judged by."""

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

    def __call__(self, x: Tensor, y: Tensor, group: hyperkern.Group | None) -> hyperkern.AlignUniform:
        """The loss of positive pairs, ``(N, D)`` raw features of each view; with a group that of all its rows.

        Returns:
            The weighted sum, with the alignment and the uniformity in it or beside it.
        """
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
        contrastive = self.contrastive_weight * hyperkern.clip_loss(x, y, logit_scale=1 / self.temperature, group=group)
        if not (self.align_weight or self.uniform_weight):  # nothing is to come back through them, not even zeros
            return terms._replace(loss=contrastive)
        return terms._replace(loss=terms.loss + contrastive)

    def __str__(self) -> str:
        terms = {
            f"alignment(α={self.alpha:g})": self.align_weight,
            f"uniformity(t={self.t:g})": self.uniform_weight,
            f"contrastive(τ={self.temperature:g})": self.contrastive_weight,
        }
        return " + ".join(f"{weight:g} {term}" for term, weight in terms.items() if weight)


def metrics(x: Tensor, y: Tensor) -> dict[str, float]:
    """The paper's metrics of positive pairs, whatever the encoder was trained with.

    Args:
        x: ``(N, D)`` raw features of one side.
        y: of the other.

    Returns:
        ``alignment``, α = 2, and ``uniformity``, t = 2, the mean of both sides.
    """
    found = hyperkern.align_uniform(x, y)
    return {"alignment": found.alignment.item(), "uniformity": found.uniformity.item()}
