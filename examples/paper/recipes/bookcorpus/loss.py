"""The losses of a batch of consecutive sentences (Wang & Isola, Appendix B.3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import hyperkern

from ...objective import Objective


class Weights(NamedTuple):
    """Of the sentences of a batch, or of some in a row, as neighbours: ``(N,)`` each.

    A sentence's weight is 1, shared by the neighbours that it has in the batch and in its book: two, one at an end of
    either. A sentence without any counts for nothing but as a negative.

    Attributes:
        before: of its predecessor; 0 if there is none.
        after: of its successor, likewise.
        pair: of it and its successor together: what both give each other.
    """

    before: Tensor
    after: Tensor
    pair: Tensor

    @classmethod
    def of(cls, follows: Tensor) -> Weights:
        """Of a whole batch: ``(N - 1,)``, whether the next sentence is of the same book."""
        before, after = F.pad(follows, (1, 0)).float(), F.pad(follows, (0, 1)).float()
        neighbours = (before + after).clamp(min=1)
        before, after = before / neighbours, after / neighbours
        return cls(before, after, after + F.pad(before[1:], (0, 1)))


def loss_of(objective: Objective, f: Tensor, g: Tensor, weights: Weights, group: hyperkern.Group | None) -> Tensor:
    r"""The loss of a process's share of a batch; the mean over equal shares is that of the batch.

    With :math:`d_i = \lVert f(x_i) - g(x_{i+1}) \rVert^\alpha`, all features of unit length:

    - alignment: the mean over the sentences of the mean of :math:`d_{i-1}` and :math:`d_i`, of those there are.
      The paper's sum stops one sentence early, at K - 2, which leaves the last but one without its share.
    - uniformity: the sum of that of f and that of g, with the logarithm of its definition (Section 4.1.2). The
      formula for sentences is printed without; those of the appendix for images have it, and so has their code.
    - contrastive: the cross entropy of the softmax over all :math:`f(x_i) \cdot g(x_j) / \tau` of the batch,
      j = i among them, with a target that both neighbours share.

    Args:
        objective: weights and parameters.
        f: features of the sentences, ``(N, D)``, of any length.
        g: of these, and of the one before and the one after them, ``(N + 2, D)``.
        weights: of the N sentences.
        group: the processes that share the batch, with ``grad_scale="ddp"``.

    Returns:
        A scalar. Gradients are for `DistributedDataParallel`, which takes their mean over the processes.
    """
    own, earlier, later = g[1:-1], g[:-2], g[2:]
    parts = []
    if objective.align_weight:
        distances = hyperkern.alignment(f, later, alpha=objective.alpha, reduction="none")
        parts.append(objective.align_weight * (weights.pair * distances).mean())
    if objective.uniform_weight:
        both = [hyperkern.uniformity(one, t=objective.t, group=group) for one in (f, own)]
        parts.append(objective.uniform_weight * torch.stack(both).sum())
    if objective.contrastive_weight:
        over_batch, _ = hyperkern.pairwise_logsumexp(f, own, logit_scale=1 / objective.temperature, group=group)
        near = weights.before * F.cosine_similarity(f, earlier) + weights.after * F.cosine_similarity(f, later)
        losses = (weights.before + weights.after) * over_batch - near / objective.temperature
        parts.append(objective.contrastive_weight * losses.mean())
    return torch.stack(parts).sum()
