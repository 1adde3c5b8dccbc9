"""Evaluation of a trained encoder as in Wang & Isola (2020), on the held-out images."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from hyperkern import align_uniform

from .data import Digits, augment
from .encoder import Encoder
from .objectives import ALPHA, T

VIEW_SEED = 1_000_003  # one draw of the held-out views for every encoder, apart from the training seeds
NEIGHBOURS = 5


class Evaluation(NamedTuple):
    """What the paper measures of an encoder, all on held-out images.

    Attributes:
        alignment: mean ‖f(x) - f(y)‖^α over the positive pairs, two random views of each image.
        uniformity: log mean exp(-t‖f(x) - f(x')‖²) over the distinct pairs of images, the mean of both views.
        linear_probe: accuracy of logistic regression on the features.
        scaled_probe: the same on features standardised over the training images.
        knn: accuracy of the 5 nearest neighbours on the features.
    """

    alignment: float
    uniformity: float
    linear_probe: float
    scaled_probe: float
    knn: float


METRICS = Evaluation._fields


def held_out_views(digits: Digits) -> tuple[Tensor, Tensor]:
    """Draw the two views of each held-out image that every encoder is measured on."""
    generator = torch.Generator(digits.held_out_images.device).manual_seed(VIEW_SEED)
    return augment(digits.held_out_images, generator), augment(digits.held_out_images, generator)


@torch.no_grad()
def encode(encoder: Encoder, images: Tensor) -> NDArray[np.float64]:
    """Return the normalised output features of the images, `(N, D)` on the unit sphere."""
    features: NDArray[np.float64] = F.normalize(encoder(images).double(), dim=-1).cpu().numpy()
    return features


@torch.no_grad()
def evaluate(encoder: Encoder, digits: Digits, *, backend: str | None) -> Evaluation:
    """Measure a frozen encoder.

    Probe (logistic regression with scikit-learn's defaults) and neighbours see the normalised encoder
    output, the paper's "output" column, of the images as they are; they are fitted on the training images
    and scored on the held-out ones. A probe is regularised, so it cannot use directions along which the features
    hardly vary: an encoder that has collapsed almost to a point fails it. Neighbours and the probe of standardised
    features do not depend on scale, and there such an encoder can keep what an untrained one has.

    Args:
        encoder: in evaluation mode.
        digits: images on the encoder's device.
        backend: backend of alignment and uniformity, or None for the automatic choice.

    Returns:
        The four figures.
    """
    x, y = (encoder(views) for views in held_out_views(digits))
    metrics = align_uniform(x, y, alpha=ALPHA, t=T, backend=backend)

    train = encode(encoder, digits.train_images)
    held_out = encode(encoder, digits.held_out_images)
    probe = LogisticRegression(max_iter=1000).fit(train, digits.train_labels)
    scaled_probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, digits.train_labels)
    neighbours = KNeighborsClassifier(NEIGHBOURS).fit(train, digits.train_labels)
    return Evaluation(
        alignment=metrics.alignment.item(),
        uniformity=metrics.uniformity.item(),
        linear_probe=float(probe.score(held_out, digits.held_out_labels)),
        scaled_probe=float(scaled_probe.score(held_out, digits.held_out_labels)),
        knn=float(neighbours.score(held_out, digits.held_out_labels)),
    )
