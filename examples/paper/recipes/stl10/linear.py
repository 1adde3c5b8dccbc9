"""Linear classifiers of frozen features, trained on random views as the paper did."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint import Checkpoint
from ..session import Session
from .data import CLASSES, LABELLED, Labelled, Views, generator, in_order

BATCH = 128
RATE = 1e-3
BETAS = (0.5, 0.999)
DROPS = (60 / 100, 80 / 100)  # of the epochs, where the rate falls to a fifth
SEED = 1_000_003  # apart from the seeds of trainings

Features = Mapping[str, Tensor]  # (N, width) by the layer's name


class Settings(NamedTuple):
    """How classifiers are trained.

    Attributes:
        epochs: passes over the images.
        workers: processes that make views.
        here: this process.
        recipe: of the encoder, that a checkpoint has to go on with.
    """

    epochs: int
    workers: int
    here: Session
    recipe: Mapping[str, Any]


class Classifier:
    """One in training."""

    def __init__(self, width: int, epochs: int, device: torch.device) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.layer = nn.Linear(width, CLASSES).to(device)
        self._optimizer = torch.optim.Adam(self.layer.parameters(), RATE, betas=BETAS)
        drops = [round(share * epochs) for share in DROPS]
        self._schedule = torch.optim.lr_scheduler.MultiStepLR(self._optimizer, drops, gamma=0.2)

    def epoch(self, features: Tensor, labels: Tensor, order: Tensor) -> None:
        """Train on the rows in this order."""
        for rows in order.split(BATCH):
            loss = F.cross_entropy(self.layer(features[rows]), labels[rows])
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        self._schedule.step()

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: NDArray[np.int64]) -> float:
        """Percentage of rows whose class has the largest logit."""
        return 100 * float(np.mean(self.layer(features).argmax(1).cpu().numpy() == labels))

    def state_dict(self) -> dict[str, Any]:
        """Of classifier, optimizer and schedule."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"layer": self.layer, "optimizer": self._optimizer, "schedule": self._schedule}


def fit(
    encode: Callable[[Tensor], Features],
    widths: Mapping[str, int],
    train: Labelled,
    parts: Sequence[NDArray[np.int64]],
    path: Path,
    settings: Settings,
) -> list[dict[str, Classifier]]:
    """Train a classifier of each layer on each part of the images, from the last checkpoint on.

    The encoder is frozen, so that in an epoch each image is encoded once for all of them.

    Args:
        encode: features of views ``(N, 3, 64, 64)`` by layer.
        widths: of these.
        train: images and classes.
        parts: indices of the images that are trained on.
        path: of the checkpoint.
        settings: how.

    Returns:
        The classifiers by layer, of each part.
    """
    device = settings.here.device
    found = [{layer: Classifier(width, settings.epochs, device) for layer, width in widths.items()} for _ in parts]
    named = {f"{layer} {index}": one for index, each in enumerate(found) for layer, one in each.items()}
    checkpoint = Checkpoint(path, {**settings.recipe, "probe-epochs": settings.epochs}, named)
    first, rows = checkpoint.load(settings.here), len(train.labels)
    batches = len(range(0, rows, BATCH))
    places = itertools.chain.from_iterable(in_order(rows, BATCH, epoch) for epoch in range(first, settings.epochs))
    views = Views(train.pixels, LABELLED, SEED).batches(places, settings.workers, device)
    labels = torch.from_numpy(train.labels).to(device)
    for epoch in range(first, settings.epochs):
        encoded = [encode(batch[0]) for batch in itertools.islice(views, batches)]
        features = {layer: torch.cat([batch[layer] for batch in encoded]) for layer in widths}
        for index, (part, each) in enumerate(zip(parts, found, strict=True)):
            order = torch.randperm(len(part), generator=generator(SEED, epoch, index))
            for layer, classifier in each.items():
                classifier.epoch(features[layer], labels, torch.from_numpy(part)[order].to(device))
        checkpoint.save(epoch + 1, settings.here)
        if (epoch + 1) % 10 == 0:
            settings.here.say(f"linear classifiers: epoch {epoch + 1}/{settings.epochs}")
    return found
