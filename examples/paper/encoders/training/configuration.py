"""What an encoder is trained with."""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """Objective and recipe of a training; what the objective does not have is ``None``.

    Attributes:
        align: weight of the alignment.
        uniform: weight of the uniformity.
        contrastive: weight of the contrastive loss.
        alpha: exponent of the alignment.
        t: of the uniformity.
        tau: temperature of the contrastive loss.
        dim: dimension of the features.
        batch: positive pairs in a step.
        epochs: passes over the training rows.
        rate: learning rate of Adam at the start.
        initial: ``default`` (PyTorch's), ``small`` (the paper's, a normal distribution of 0.02) or ``orthogonal``.
    """

    align: float | None = None
    uniform: float | None = None
    contrastive: float | None = None
    alpha: float | None = None
    t: float | None = None
    tau: float | None = None
    dim: int = 64
    batch: int = 128
    epochs: int = 16
    rate: float = 3e-3
    initial: str = "default"
