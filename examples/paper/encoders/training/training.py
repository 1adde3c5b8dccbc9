"""Training of encoders: one loop for every objective."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hyperkern import align_uniform, clip_loss

from .configuration import Configuration
from .data import Data

SMALL = 0.02


def objective(x: Tensor, y: Tensor, configuration: Configuration) -> Tensor:
    """The weighted sum of the configuration's terms, for the raw features `(N, dim)` of two views.

    Raises:
        ValueError: the configuration has no term.
    """
    one = configuration
    terms = []
    if one.align is not None or one.uniform is not None:
        # A term that the configuration does not have gets weight zero; any exponent will do.
        align, uniform, alpha, t = one.align or 0.0, one.uniform or 0.0, one.alpha or 2.0, one.t or 2.0
        terms.append(align_uniform(x, y, alpha=alpha, t=t, align_weight=align, uniform_weight=uniform).loss)
    if one.contrastive is not None and one.tau is not None:
        terms.append(one.contrastive * clip_loss(x, y, logit_scale=1 / one.tau))
    if not terms:
        raise ValueError(f"configuration has neither align, uniform nor contrastive with tau, got {configuration}")
    return torch.stack(terms).sum()


def new_encoder(data: Data, configuration: Configuration, seed: int) -> nn.Module:
    """Build an encoder whose weights depend on the seed alone; the global generator is left as it was.

    Raises:
        ValueError: the configuration's ``initial`` is unknown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = data.encoder(configuration.dim)
        for layer in encoder.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                _initialise(layer, configuration.initial)
    return encoder.to(memory_format=torch.channels_last)  # the convolutions take two thirds of the time


def _initialise(layer: nn.Conv2d | nn.Linear, how: str) -> None:
    if how == "default":
        return
    if how == "small":
        nn.init.normal_(layer.weight, std=SMALL)
    elif how == "orthogonal":
        nn.init.orthogonal_(layer.weight)
    else:
        raise ValueError(f"initial must be 'default', 'small' or 'orthogonal', got {how!r}")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def train(
    encoder: nn.Module, data: Data, configuration: Configuration, seed: int, *, decay: bool = True
) -> Iterator[int]:
    """Train an encoder in place, and come back after every epoch.

    Args:
        encoder: is in training mode during an epoch; whoever takes the epochs may change that between them.
        data: what to train on.
        configuration: objective and recipe; a last incomplete batch is left out.
        seed: of the order of the rows and of the views.
        decay: whether the learning rate falls to zero along a cosine, or stays.

    Yields:
        The number of epochs done.

    Raises:
        FloatingPointError: the loss became infinite or NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    rows, batch, epochs = len(data.train), configuration.batch, configuration.epochs
    steps = rows // batch
    optimizer = torch.optim.Adam(encoder.parameters(), lr=configuration.rate, fused=True)
    for epoch in range(epochs):
        encoder.train()
        order = torch.randperm(rows, generator=generator)
        for step, chosen in enumerate(order[: steps * batch].split(batch)):
            if decay:
                share = (epoch * steps + step) / (epochs * steps)
                optimizer.param_groups[0]["lr"] = configuration.rate * (1 + math.cos(math.pi * share)) / 2
            originals = data.train[chosen]
            views = torch.cat([data.augment(originals, generator), data.augment(originals, generator)])
            x, y = encoder(views).chunk(2)
            loss = objective(x, y, configuration)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} after epoch {epoch + 1} of {configuration}")
        yield epoch + 1
