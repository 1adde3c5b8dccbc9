"""Training on pairs of neighbouring sentences, a stage at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import hyperkern

from ..checkpoint import seeded
from ..session import Session
from .corpus import Corpus, Sentences

BLOCK, WINDOW = 4096, 1024  # pairs in a row that stay in a stage together; blocks of a stage


class Objective(NamedTuple):
    """The weights and parameters of the loss, by their names on the command line."""

    align_weight: float = 1.0
    uniform_weight: float = 1.0
    contrastive_weight: float = 0.0
    alpha: float = 2.0
    t: float = 2.0
    temperature: float = 0.07

    def loss(self, x: Tensor, y: Tensor, group: hyperkern.Group | None) -> Tensor:
        """Of the features of both sides, ``(N, D)``, rows of all processes."""
        parts = []
        if self.align_weight or self.uniform_weight:
            both = hyperkern.align_uniform(
                x,
                y,
                alpha=self.alpha,
                t=self.t,
                align_weight=self.align_weight,
                uniform_weight=self.uniform_weight,
                group=group,
            )
            parts.append(both.loss)
        if self.contrastive_weight:
            contrastive = hyperkern.clip_loss(x, y, logit_scale=1 / self.temperature, group=group)
            parts.append(self.contrastive_weight * contrastive)
        return torch.stack(parts).sum()


class Settings(NamedTuple):
    """How to train."""

    objective: Objective
    batch: int
    clip: float
    seed: int
    steps: int | None = None
    workers: int = 0


def stages_of(pairs: int) -> int:
    """Stages of a pass over so many pairs: each ends with a checkpoint, for a pass takes hours."""
    return math.ceil(pairs / (BLOCK * WINDOW))


def stage_pairs(pairs: int, seed: int, stage: int) -> tuple[Tensor, Tensor]:
    """Pairs of a stage in the order of training, and whether each is turned round; the same for all processes.

    Blocks are in random order over a pass and pairs over a stage, so that neither needs a permutation of all pairs.
    """
    epoch, part = divmod(stage, stages_of(pairs))
    order = torch.randperm(math.ceil(pairs / BLOCK), generator=seeded(seed, epoch, rank=1))  # rank 0 draws a stage's
    starts = order[part * WINDOW : (part + 1) * WINDOW] * BLOCK
    chosen = torch.cat([torch.arange(start, min(start + BLOCK, pairs)) for start in starts.tolist()])
    generator = seeded(seed, stage)
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    return chosen, torch.rand(len(chosen), generator=generator) < 0.5


def train_stage(
    model: nn.Module, optimizer: torch.optim.Optimizer, corpus: Corpus, pairs: int, stage: int, settings: Settings,
    session: Session,
) -> float:  # fmt: skip
    """Train on the pairs of a stage; those that make no whole batch are left out.

    Args:
        model: `QuickThought`, as `Session.parallel` returns it.
        optimizer: of its parameters.
        corpus: where the pairs are from.
        pairs: the first so many are trained on.
        stage: number of the stage, from 0 over all passes.
        settings: how to train.
        session: the batch is of all its processes.

    Returns:
        The mean loss.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    chosen, turned = stage_pairs(pairs, settings.seed, stage)
    rows = corpus.pair(chosen)
    rows = torch.where(turned[:, None], rows.flip(1), rows)
    steps = min(len(rows) // settings.batch, settings.steps or len(rows))
    own = [batch[session.rank :: session.ranks] for batch in rows[: steps * settings.batch].split(settings.batch)]
    # The sampler's items are whole batches, which the corpus takes.
    loader = DataLoader(corpus, batch_size=None, sampler=own, num_workers=settings.workers)
    total = torch.zeros((), device=session.device)
    for x, y in loader:
        features = model(moved(x, session.device), moved(y, session.device))
        loss = settings.objective.loss(features[0], features[1], session.group)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss.detach()
    mean = total.item() / max(steps, 1)
    if not math.isfinite(mean):
        raise FloatingPointError(f"the loss of stage {stage} is {mean}")
    return mean


def moved(sentences: Sentences, device: torch.device) -> Sentences:
    """Words on the device; lengths are needed on the CPU."""
    return Sentences(sentences.words.to(device, non_blocking=True), sentences.lengths)
