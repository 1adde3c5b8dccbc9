"""What is measured of a frozen encoder."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from examples.digits.evaluate import NEIGHBOURS
from examples.digits.objectives import ALPHA, TEMPERATURE, T
from hyperkern import align_uniform, clip_loss

from .data import DRAWS, Data

# A probe sees a hundred images. Ten times scikit-learn's default keeps the penalty for each as weak as with a thousand.
INVERSE_PENALTY = 10.0


class Measures(NamedTuple):
    """What the paper measures of an encoder, each rounded to five digits.

    Attributes:
        alignment: of the two views of each held-out row, α = 2.
        uniformity: of the held-out rows, t = 2, the mean of both views.
        contrastive: the contrastive loss of all held-out pairs, τ = 1/4.
        probe: accuracy of logistic regression on the held-out rows, the mean over the draws of labels.
        knn: that of the 5 nearest neighbours.
        probe_validation: accuracy of the probes on the labelled training rows of the other draws: cross-validation.
        knn_validation: that of the neighbours.
    """

    alignment: float
    uniformity: float
    contrastive: float
    probe: float
    knn: float
    probe_validation: float
    knn_validation: float


@torch.no_grad()
def measure(encoder: nn.Module, data: Data) -> Measures:
    """Measure an encoder, which is in evaluation mode afterwards.

    Probe and neighbours see the normalised output, the paper's "output" column, of rows as they are. They are fitted to
    one draw of labels at a time.

    Raises:
        FloatingPointError: a feature is infinite or NaN.
    """
    encoder.eval()
    x, y = (encoder(views) for views in data.views)
    labelled, held_out = _unit(encoder(data.train[data.labelled.ravel()])), _unit(encoder(data.held_out))
    if not (np.isfinite(labelled).all() and np.isfinite(held_out).all() and torch.isfinite(x + y).all()):
        raise FloatingPointError("the features are not finite")
    terms = align_uniform(x, y, alpha=ALPHA, t=T)
    contrastive = clip_loss(x, y, logit_scale=1 / TEMPERATURE)
    features = labelled.reshape(DRAWS, -1, labelled.shape[-1])
    scores = []
    for draw in range(DRAWS):
        others = np.arange(DRAWS) != draw
        unseen, unseen_labels = features[others].reshape(-1, labelled.shape[-1]), data.labels[others].ravel()
        row = []
        for method in (LogisticRegression(C=INVERSE_PENALTY, max_iter=1000), KNeighborsClassifier(NEIGHBOURS)):
            method.fit(features[draw], data.labels[draw])
            row += [method.score(held_out, data.held_out_labels), method.score(unseen, unseen_labels)]
        scores.append(row)
    probe, probe_validation, knn, knn_validation = np.mean(scores, axis=0)
    metrics = (term.item() for term in (terms.alignment, terms.uniformity, contrastive))
    found = *metrics, probe, knn, probe_validation, knn_validation
    return Measures(*(float(f"{value:.5g}") for value in found))


def _unit(features: Tensor) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = F.normalize(features.double(), dim=-1).numpy()
    return unit
