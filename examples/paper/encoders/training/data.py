"""The two data sets: what encoders are trained on, and the few labels that their features are judged by."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.digits import data as digits
from examples.digits.encoder import Encoder
from examples.digits.evaluate import VIEW_SEED

from . import signals

DRAWS = 5
LABELS_PER_CLASS = 10
CLASSES = 10
Augment = Callable[[Tensor, torch.Generator], Tensor]


class Data(NamedTuple):
    """A data set.

    Attributes:
        train: what encoders are trained on, without labels, `(N, 1, H, W)`.
        held_out: what they are measured on.
        held_out_labels: of these.
        views: two random views of each held-out row, the same for every encoder.
        labelled: `(DRAWS, CLASSES * LABELS_PER_CLASS)` rows of `train`: disjoint draws with as many of each
            class.
        labels: of these rows, like `labelled`.
        augment: draws a view of each row.
        encoder: builds an encoder of a dimension.
    """

    train: Tensor
    held_out: Tensor
    held_out_labels: NDArray[np.int64]
    views: tuple[Tensor, Tensor]
    labelled: NDArray[np.int64]
    labels: NDArray[np.int64]
    augment: Augment
    encoder: Callable[[int], nn.Module]


@cache
def load(name: str, rows: int | None = None) -> Data:
    """Load a data set, once in a process.

    Args:
        name: ``digits`` or ``mnist1d``.
        rows: as many training rows and held-out rows at most; ``None`` for all.

    Raises:
        ValueError: there is no data set of this name, or the training rows have too few of a class.
    """
    content: tuple[Any, ...]
    augment: Augment
    encoder: Callable[[int], nn.Module]
    if name == "digits":
        content, augment, encoder = digits.load(torch.device("cpu")), digits.augment, Encoder
    elif name == "mnist1d":
        content, augment, encoder = _generated(), signals.augment, signals.SignalEncoder
    else:
        raise ValueError(f"name must be 'digits' or 'mnist1d', got {name!r}")
    train, train_labels, held_out, held_out_labels = (part[:rows] for part in content)
    generator = torch.Generator().manual_seed(VIEW_SEED)
    views = augment(held_out, generator), augment(held_out, generator)
    labelled = draw_labelled(train_labels)
    return Data(train, held_out, held_out_labels, views, labelled, train_labels[labelled], augment, encoder)


_generated = cache(signals.load)  # takes two seconds


def draw_labelled(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw `(DRAWS, CLASSES * LABELS_PER_CLASS)` rows, no row twice, always the same ones.

    Raises:
        ValueError: a class has too few rows.
    """
    wanted = DRAWS * LABELS_PER_CLASS
    if (counts := np.bincount(labels, minlength=CLASSES)).min() < wanted:
        raise ValueError(f"labels must have {wanted} rows of each class, got {counts.tolist()}")
    order = np.random.default_rng(0).permutation(len(labels))
    of_class = [order[labels[order] == label][:wanted] for label in range(CLASSES)]
    return np.concatenate([rows.reshape(DRAWS, LABELS_PER_CLASS) for rows in of_class], axis=1)
