"""One training function for all the objectives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .data import augment
from .encoder import Encoder, new_encoder
from .objectives import Objective

LEARNING_RATE = 3e-3


def train_encoder(
    objective: Objective,
    images: Tensor,
    *,
    dim: int,
    epochs: int,
    batch: int,
    seed: int,
    backend: str | None,
) -> Encoder:
    """Train a fresh encoder on two random views of each image.

    One recipe serves all objectives: Adam under one cosine decay; the paper's SGD is slow for a budget this
    short.

    Args:
        objective: what to minimise.
        images: `(N, 1, 8, 8)` training images.
        dim: dimension of the features, at least 2.
        epochs: passes over the images.
        batch: positive pairs in a step, from 2 to N; a last incomplete batch is left out.
        seed: decides the initial weights, the order of the images and the views.
        backend: backend of the losses, or None for the automatic choice.

    Returns:
        The encoder in evaluation mode.

    Raises:
        FloatingPointError: the loss became infinite or NaN.
    """
    device = images.device
    encoder = new_encoder(dim, seed, device)
    generator = torch.Generator(device).manual_seed(seed)
    steps = images.shape[0] // batch
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * steps)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(images.shape[0], generator=generator, device=device)
        for rows in order[: steps * batch].split(batch):
            chosen = images[rows]
            views = torch.cat([augment(chosen, generator), augment(chosen, generator)])
            x, y = encoder(views).chunk(2)
            loss = objective.loss(x, y, backend)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of {objective.label!r}, seed {seed}, is {loss.item()} after epoch {epoch}"
            )
    return encoder.eval()
