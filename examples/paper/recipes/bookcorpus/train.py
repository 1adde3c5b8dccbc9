"""Training on batches of consecutive sentences, a stage at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...objective import Objective
from ..checkpoint import seeded
from ..session import Session
from .corpus import Corpus, Sentences
from .loss import Weights, loss_of

STAGE = 10_000  # batches between two checkpoints


class Settings(NamedTuple):
    """How to train."""

    objective: Objective
    batch: int
    clip: float
    seed: int
    steps: int | None = None
    workers: int = 0


class Share(NamedTuple):
    """What a process has of a batch: a run of N of its sentences.

    Attributes:
        x: for f, the N sentences.
        y: for g, these and those beside them, N + 2; at an end of the batch the sentence there a second time.
        weights: of the sentences as neighbours.
    """

    x: Sentences
    y: Sentences
    weights: Weights


class Shares(Dataset[Share]):
    """The shares of one process; an item is that of the batch that begins at the sentence of that number.

    Args:
        corpus: the sentences.
        batch: sentences of all processes.
        session: this process, and how many there are.
    """

    def __init__(self, corpus: Corpus, batch: int, session: Session) -> None:
        self._corpus, self._batch = corpus, batch
        size = session.share("batch", batch)
        self._own = slice(session.rank * size, (session.rank + 1) * size)

    def __getitem__(self, start: int) -> Share:
        """The share of the batch of consecutive sentences from there on."""
        own, batch = self._own, self._batch
        weights = Weights.of(self._corpus.follows(start, start + batch))
        beside = torch.arange(own.start - 1, own.stop + 1).clamp(0, batch - 1)
        return Share(
            self._corpus.sentences(start + beside[1:-1]),
            self._corpus.sentences(start + beside),
            Weights(*(one[own] for one in weights)),
        )


def stages_of(batches: int) -> int:
    """Stages of a pass over so many batches: each ends with a checkpoint, for a pass takes hours."""
    return math.ceil(batches / STAGE)


def stage_batches(batches: int, seed: int, stage: int) -> Tensor:
    """The batches of a stage by their numbers, in the order of training: that of a pass is random."""
    epoch, part = divmod(stage, stages_of(batches))
    order = torch.randperm(batches, generator=seeded(seed, epoch))
    return order[part * STAGE : (part + 1) * STAGE]


def train_stage(
    model: nn.Module, optimizer: torch.optim.Optimizer, corpus: Corpus, batches: int, stage: int, settings: Settings,
    session: Session,
) -> float:  # fmt: skip
    """Train on the batches of a stage.

    Args:
        model: `QuickThought`, as `Session.parallel` returns it.
        optimizer: of its parameters.
        corpus: where the sentences are from.
        batches: the first so many are trained on.
        stage: number of the stage, from 0 over all passes.
        settings: how to train.
        session: the batch is of all its processes.

    Returns:
        The mean loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    starts = settings.batch * stage_batches(batches, settings.seed, stage)[: settings.steps]
    shares = Shares(corpus, settings.batch, session)
    # The sampler's items are whole batches.
    loader = DataLoader(shares, batch_size=None, sampler=starts.tolist(), num_workers=settings.workers)
    total = torch.zeros((), device=session.device)
    for x, y, weights in loader:
        f, g = model(moved(x, session.device), moved(y, session.device))
        weights = Weights(*(one.to(session.device) for one in weights))
        loss = loss_of(settings.objective, f, g, weights, session.group)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss.detach()
    mean = session.mean(total.item() / len(starts))
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss of stage {stage} is {mean}")
    return mean


def moved(sentences: Sentences, device: torch.device) -> Sentences:
    """Words on the device; lengths are needed on the CPU."""
    return Sentences(sentences.words.to(device, non_blocking=True), sentences.lengths)
