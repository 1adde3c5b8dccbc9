"""A job: the recipe of BookCorpus at small size, for one objective and several seeds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.metrics import top_k_accuracy_score

from ..objective import Objective, metrics
from ..recipes.bookcorpus import probe
from ..recipes.bookcorpus.encoder import QuickThought
from ..recipes.bookcorpus.train import Settings, train_stage
from ..recipes.session import Session
from .data import Texts, texts

NEAREST = 10
STRENGTH = (2.0**-5,)  # of the probes' regularisation: to choose among several takes longer than the training
TOPIC_FOLDS, SENTIMENT_FOLDS = 5, 10


class Size(NamedTuple):
    """How small it is.

    Attributes:
        articles: of Wikipedia that are read.
        vocabulary: words that have an embedding.
        length: words of a sentence.
        embedding: dimension of a word's.
        dim: dimension of a sentence's.
        batch: sentences of a step.
        epochs: passes over the training texts.
        rate: Adam's.
        held_out: pairs of neighbours that alignment, uniformity and retrieval are of.
    """

    articles: int = 50
    vocabulary: int = 3000
    length: int = 12
    embedding: int = 32
    dim: int = 32
    batch: int = 128
    epochs: int = 3
    rate: float = 1e-2
    held_out: int = 1000


QUICK = Size(articles=5, vocabulary=200, length=4, embedding=4, dim=8, batch=256, epochs=1, held_out=50)
CLIP = 0.5


def measure(objective: Mapping[str, float] | None, seeds: list[int], size: Mapping[str, Any]) -> dict[str, Any]:
    """Train an encoder for each seed and judge it.

    Args:
        objective: fields of `Objective`; ``None`` leaves the encoders as they are initialised.
        seeds: of weights and order.
        size: fields of `Size`.

    Returns:
        ``encoders``, what `judge` finds of each, and ``corpus``, how large the texts are.
    """
    small = Size(**size)
    with tempfile.TemporaryDirectory() as folder:
        read = texts(Path(folder), small.vocabulary, small.length, small.articles)
        found = []
        for seed in seeds:
            model = QuickThought(len(read.vocabulary), small.embedding, small.dim, seed)
            if objective is not None:
                train(model, read, Objective(**objective), seed, small)
            found.append({"seed": seed, **judge(model.eval(), read, small)})
        corpus = {
            "sentences": len(read.train),
            "held-out sentences": len(read.held_out),
            "words": read.train.about["words"],
            "topics": int(read.topics.labels.max()) + 1,
            "topic sentences": len(read.topics.labels),
            "sentiment sentences": len(read.sentiment.labels),
        }
    return {"encoders": found, "corpus": corpus}


def train(model: QuickThought, read: Texts, objective: Objective, seed: int, size: Size) -> None:
    """As the recipe does, in this process."""
    alone = Session(torch.device("cpu"), 0, 1, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=size.rate, fused=True)
    settings = Settings(objective, size.batch, CLIP, seed)
    for epoch in range(size.epochs):  # so few batches are one stage
        train_stage(model, optimizer, read.train, len(read.train) // size.batch, epoch, settings, alone)


def judge(model: QuickThought, read: Texts, size: Size) -> dict[str, float]:
    """Alignment, uniformity and retrieval of held-out neighbours, and the accuracy of both probes."""
    x, y = probe.neighbour_features(model, read.held_out, 0, len(read.held_out))
    some = torch.linspace(0, len(x) - 1, min(size.held_out, len(x))).long()
    x, y = x[some], y[some]
    nearest = top_k_accuracy_score(np.arange(len(x)), (x @ y.T).numpy(), k=NEAREST)
    accuracies = {
        name: float(np.mean(probe.fold_accuracies(features, task.labels, folds, strengths=STRENGTH)))
        for name, task, folds in (
            ("topic", read.topics, TOPIC_FOLDS),
            ("sentiment", read.sentiment, SENTIMENT_FOLDS),
        )
        for features in [probe.encode(model, task.sentences, read.vocabulary, size.length)]
    }
    return {**metrics(x, y), "retrieval": float(nearest), **accuracies}
