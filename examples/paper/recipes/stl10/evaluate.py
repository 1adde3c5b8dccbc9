"""The paper's measures of a trained encoder: accuracies of both layers, alignment and uniformity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ...objective import metrics
from .data import HELD_OUT, PAIRS, Data, Labelled, Pixels, Views, in_order
from .encoder import Encoder
from .linear import SEED, Classifier, Features, Settings, fit

NEIGHBOURS = 5
FOLDS = 5
BATCH = 500
MEASURES = tuple(f"{layer}, {how} (%)" for layer in ("output", "fc7") for how in ("linear", "5-NN"))


class Frozen:
    """An encoder, its features by layer: the normalised output, and fc7."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.widths = {"output": encoder.dim, "fc7": encoder.hidden}

    @torch.no_grad()
    def __call__(self, views: Tensor) -> Features:
        """Features of ``(N, 3, 64, 64)`` bytes."""
        fc7 = self._encoder(views, layer=-2)
        return {"output": F.normalize(self._encoder.blocks[-1](fc7), dim=1), "fc7": fc7}

    def of(self, pixels: Pixels, settings: Settings) -> Features:
        """Features of the middle of each image."""
        views = Views(pixels, HELD_OUT, SEED).batches(
            in_order(len(pixels), BATCH), settings.workers, settings.here.device
        )
        encoded = [self(batch[0]) for batch in views]
        return {layer: torch.cat([batch[layer] for batch in encoded]) for layer in self.widths}

    def metrics(self, pixels: Pixels, settings: Settings) -> dict[str, float]:
        """Alignment and uniformity of two random views of each image."""
        views = Views(pixels, PAIRS, SEED, copies=2)
        pairs = views.batches(in_order(len(pixels), BATCH), settings.workers, settings.here.device)
        x, y = (
            torch.cat(side) for side in zip(*([self(view)["output"] for view in pair] for pair in pairs), strict=True)
        )
        return metrics(x, y)


def accuracies(frozen: Frozen, data: Data, folder: Path, settings: Settings) -> dict[str, float]:
    """The four measures on the test images, of classifiers and neighbours of all training images.

    Args:
        frozen: the encoder.
        data: the images.
        folder: of the checkpoint.
        settings: how classifiers are trained.

    Returns:
        Percentages by `MEASURES`.
    """
    every = np.arange(len(data.train.labels))
    (classifiers,) = fit(frozen, frozen.widths, data.train, [every], folder / "linear.pt", settings)
    known, asked = frozen.of(data.train.pixels, settings), frozen.of(data.test.pixels, settings)
    return _measured(classifiers, known, data.train.labels, asked, data.test.labels)


def accuracies_of_folds(frozen: Frozen, train: Labelled, folder: Path, settings: Settings) -> dict[str, float]:
    """The mean of the four measures over five folds of the training images, each of which is left out once.

    Args:
        frozen: the encoder.
        train: the training images.
        folder: of the checkpoint.
        settings: how classifiers are trained.

    Returns:
        Percentages by `MEASURES`.
    """
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(train.labels, train.labels))
    fitted = fit(frozen, frozen.widths, train, [part for part, _ in folds], folder / "folds.pt", settings)
    features = frozen.of(train.pixels, settings)
    each = []
    for classifiers, (part, left_out) in zip(fitted, folds, strict=True):
        known, asked = ({layer: rows[of] for layer, rows in features.items()} for of in (part, left_out))
        each.append(_measured(classifiers, known, train.labels[part], asked, train.labels[left_out]))
    return {measure: float(np.mean([fold[measure] for fold in each])) for measure in MEASURES}


def _measured(
    classifiers: dict[str, Classifier],
    known: Features,
    known_labels: NDArray[np.int64],
    asked: Features,
    asked_labels: NDArray[np.int64],
) -> dict[str, float]:
    found = {}
    for layer, classifier in classifiers.items():
        found[f"{layer}, linear (%)"] = classifier.accuracy(asked[layer], asked_labels)
        neighbours = KNeighborsClassifier(NEIGHBOURS).fit(known[layer].cpu().numpy(), known_labels)
        found[f"{layer}, 5-NN (%)"] = 100 * float(neighbours.score(asked[layer].cpu().numpy(), asked_labels))
    return found
