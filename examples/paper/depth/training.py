"""Training: of an encoder on positive pairs, of a depth predictor on a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from ..objective import Objective
from ..recipes.session import Session, settled
from .networks import HALVINGS, DepthPredictor, Encoder
from .views import Scenes

# The rate, and where it falls by which factor, as shares of all epochs: appendix B.1 of the paper.
ENCODER_RATE = 0.12 / 256  # for each pair of a batch
ENCODER_DROPS, ENCODER_FACTOR = (310 / 400, 340 / 400, 370 / 400), 0.1
PREDICTOR_RATE = 0.003
PREDICTOR_DROPS, PREDICTOR_FACTOR = (70 / 120, 90 / 120, 100 / 120, 110 / 120), 0.2

Batches = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
After = Callable[[int, float], None]


class Trainee(NamedTuple):
    """What is trained.

    Attributes:
        model: see `Session.parallel`.
        optimizer: of its parameters.
        schedule: a step is an epoch.
        loss: of a batch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: MultiStepLR
    loss: Callable[[Tensor, Tensor], Tensor]

    def fit(self, batches: Batches, epochs: int, *, done: int = 0, after: After | None = None) -> None:
        """Train; then the model that `Session.parallel` was given is in evaluation mode, and the same in all processes.

        Args:
            batches: of an epoch, counted from 0.
            epochs: in all.
            done: epochs that were trained before.
            after: called after every epoch, with the number of epochs that are done and the last loss.

        Raises:
            FloatingPointError: the loss is infinite or NaN.
        """
        self.model.train()
        for epoch in range(done, epochs):
            for first, second in batches(epoch):
                loss = self.loss(first, second)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"the loss is {loss.item()} after epoch {epoch + 1}: a lower rate may help")
            self.schedule.step()
            if after is not None:
                after(epoch + 1, loss.item())
        settled(self.model)


def encoder_trainee(
    encoder: Encoder, objective: Objective, session: Session, *, rate: float, epochs: int, decay: float = 1e-4
) -> Trainee:
    """An encoder under SGD with momentum 0.9, whose rate falls to a tenth thrice.

    Args:
        encoder: as it was initialised.
        objective: the loss, of the rows of all processes.
        session: this process.
        rate: at the start.
        epochs: in all.
        decay: of the weights.
    """
    model = session.parallel(encoder)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        first, second = model(torch.cat([x, y])).chunk(2)
        return objective(first, second, session.group).loss

    return Trainee(model, optimizer, _schedule(optimizer, epochs, ENCODER_DROPS, ENCODER_FACTOR), loss)


def new_predictor(encoder: Encoder, layer: int, depths: Tensor, seed: int) -> DepthPredictor:
    """A depth predictor for the activations of a layer, whose weights depend on the seed alone.

    Args:
        encoder: whose activations they are.
        layer: 5 or 4, of conv5 or conv4.
        depths: of the training images.
        seed: of the weights.
    """
    known = depths[torch.isfinite(depths)].double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DepthPredictor(encoder.channels[layer - 1], HALVINGS[layer], known.mean().item(), known.std().item())


def predictor_trainee(
    predictor: DepthPredictor, encoder: Encoder, layer: int, session: Session, *, rate: float, epochs: int
) -> Trainee:
    """A depth predictor on a frozen encoder under Adam, by the mean squared error.

    Args:
        predictor: see `new_predictor`.
        encoder: in evaluation mode, on the session's device; it stays as it is.
        layer: whose activations are read.
        session: this process.
        rate: at the start.
        epochs: in all.
    """
    model = session.parallel(predictor)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.5, 0.999))

    def loss(images: Tensor, depths: Tensor) -> Tensor:
        with torch.no_grad():
            activations = encoder.activations(images, layer)
        predicted, known = model(activations), torch.isfinite(depths)
        return F.mse_loss(predicted[known], depths[known])

    return Trainee(model, optimizer, _schedule(optimizer, epochs, PREDICTOR_DROPS, PREDICTOR_FACTOR), loss)


@torch.no_grad()
def depth_error(
    predictor: DepthPredictor, encoder: Encoder, layer: int, batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """The mean squared error over all pixels whose depth is known.

    Args:
        predictor: in evaluation mode.
        encoder: in evaluation mode.
        layer: whose activations are read.
        batches: images and depths.
    """
    squares, pixels = 0.0, 0
    for images, depths in batches:
        known = torch.isfinite(depths)
        errors = (predictor(encoder.activations(images, layer)) - depths)[known]
        squares += errors.double().square().sum().item()
        pixels += int(known.sum())
    return squares / pixels


def constant_error(train: Scenes, held_out: Tensor) -> float:
    """The mean squared error of the training images' mean depth, the level that a predictor has to beat."""
    mean = train.depths[torch.isfinite(train.depths)].double().mean()
    return (held_out[torch.isfinite(held_out)].double() - mean).square().mean().item()


def _schedule(optimizer: torch.optim.Optimizer, epochs: int, drops: Iterable[float], factor: float) -> MultiStepLR:
    return MultiStepLR(optimizer, [round(epochs * drop) for drop in drops], factor)
