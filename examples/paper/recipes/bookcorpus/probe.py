"""What the encoders are judged by: accuracy of logistic regression, alignment and uniformity of held-out pairs."""

from __future__ import annotations

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

import hyperkern

from .corpus import Corpus, pad
from .encoder import QuickThought
from .text import Vocabulary, read_lines
from .train import moved

# Inverse strengths of the regularisation that cross-validation chooses among: every second of Skip-Thought's.
STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)
INNER_FOLDS = 5
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


@torch.no_grad()
def encode(
    model: QuickThought, sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, length: int
) -> NDArray[np.float64]:
    """Features of sentences, ``(N, 2 dim)``, of mean square 1 as a GRU's states roughly are: the strengths fit such."""
    device = next(model.parameters()).device
    parts = [sentences[start : start + ENCODED] for start in range(0, len(sentences), ENCODED)]
    batches = (pad([vocabulary.numbers(words[:length]) for words in part]) for part in parts)
    features = torch.cat([model.encode(moved(batch, device)).double().cpu() for batch in batches])
    scaled: NDArray[np.float64] = (features * (features.shape[1] / 2) ** 0.5).numpy()
    return scaled


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
        folds: of the outer cross-validation.
        strengths: inverse ones to choose among.
        first: the fold to begin with.
        step: of the folds that follow, of every how many one is computed.
    """
    outer = StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels)
    accuracies = []
    for train, test in list(outer)[first::step]:
        probe = GridSearchCV(
            LogisticRegression(max_iter=5000),
            {"C": list(strengths)},
            cv=StratifiedKFold(INNER_FOLDS, shuffle=True, random_state=0),
        )
        if len(strengths) == 1:
            probe = LogisticRegression(C=strengths[0], max_iter=5000)
        probe.fit(features[train], labels[train])
        accuracies.append(float(probe.score(features[test], labels[test])))
    return accuracies


@torch.no_grad()
def pair_features(model: QuickThought, corpus: Corpus, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Unit features of both sentences of pairs, f of the first and g of the second, ``(N, dim)`` in float64."""
    device = next(model.parameters()).device
    batches = (corpus[rows] for rows in corpus.pair(pairs).split(ENCODED))
    sides = [model(moved(first, device), moved(second, device)) for first, second in batches]
    x, y = (F.normalize(torch.cat(side).double(), dim=1) for side in zip(*sides, strict=True))
    return x, y


def metrics(x: Tensor, y: Tensor) -> dict[str, float]:
    """Alignment (α = 2) and uniformity (t = 2, the mean of both sides) of unit features."""
    found = hyperkern.align_uniform(x, y)
    return {"alignment": found.alignment.item(), "uniformity": found.uniformity.item()}
