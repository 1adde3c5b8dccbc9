"""What the encoders are judged by: accuracy of logistic regression, alignment and uniformity of held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from torch import Tensor

from .corpus import Corpus, pad
from .encoder import QuickThought
from .text import Vocabulary, read_lines
from .train import moved

# Of the l2 regularisation, the paper's: cross-validation chooses among them.
STRENGTHS = tuple(2.0**-power for power in range(9))
ENCODED = 512  # sentences at a time
# The files of SentEval, in Latin-1.
TASKS = {"MR": ("MR/rt-polarity.neg", "MR/rt-polarity.pos"), "CR": ("CR/custrev.neg", "CR/custrev.pos")}


class Task(NamedTuple):
    """Labelled sentences, as words."""

    sentences: list[list[str]]
    labels: NDArray[np.int64]


def read_task(data: Path, name: str) -> Task:
    """Read the two files of a task; lines without a word are left out."""
    classes = [[words for words in read_lines(data / file, "latin-1") if words] for file in TASKS[name]]
    labels = np.repeat(np.arange(len(classes)), [len(one) for one in classes])
    return Task([words for one in classes for words in one], labels)


def most_folds(labels: NDArray[np.int64]) -> int:
    """The most folds that `fold_accuracies` can make: each class must be in all, the inner ones too."""
    least = int(np.bincount(labels, minlength=2).min())
    return max((folds for folds in range(2, least + 1) if least - math.ceil(least / folds) >= folds), default=0)


@torch.no_grad()
def encode(
    model: QuickThought, sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, length: int
) -> NDArray[np.float64]:
    """Features of sentences, ``(N, 2 dim)``."""
    device = next(model.parameters()).device
    parts = [sentences[start : start + ENCODED] for start in range(0, len(sentences), ENCODED)]
    batches = (pad([vocabulary.numbers(words[:length]) for words in part]) for part in parts)
    features: NDArray[np.float64] = (
        torch.cat([model.encode(moved(batch, device)) for batch in batches]).cpu().double().numpy()
    )
    return features


def fold_accuracies(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    folds: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    first: int = 0,
    step: int = 1,
) -> list[float]:
    """Accuracy on each fold of a logistic regression fitted on the others, its strength chosen within these.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)`` classes.
        folds: of all rows, and of those of the other folds to choose the strength by.
        strengths: of the regularisation, to choose among.
        first: the fold to begin with.
        step: of the folds that follow, of every how many one is computed.
    """
    outer = StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels)
    accuracies = []
    for train, test in list(outer)[first::step]:
        probe = GridSearchCV(
            LogisticRegression(max_iter=5000),
            {"C": [1 / strength for strength in strengths]},
            cv=StratifiedKFold(folds, shuffle=True, random_state=0),
        )
        if len(strengths) == 1:
            probe = LogisticRegression(C=1 / strengths[0], max_iter=5000)
        probe.fit(features[train], labels[train])
        accuracies.append(float(probe.score(features[test], labels[test])))
    return accuracies


@torch.no_grad()
def neighbour_features(model: QuickThought, corpus: Corpus, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Unit features of the pairs of neighbours among the sentences from ``first`` to before ``last``.

    Returns:
        f of the former and g of the latter sentence of each, ``(N, dim)`` in float64.
    """
    device = next(model.parameters()).device
    former = first + corpus.follows(first, last).nonzero().flatten()
    batches = ((corpus.sentences(rows), corpus.sentences(rows + 1)) for rows in former.split(ENCODED))
    sides = [model(moved(x, device), moved(y, device)) for x, y in batches]
    x, y = (F.normalize(torch.cat(side).double(), dim=1) for side in zip(*sides, strict=True))
    return x, y
