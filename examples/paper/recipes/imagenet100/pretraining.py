"""Pre-training: MoCo, with alignment and uniformity as its loss."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern
from examples.digits.config import OptionError
from examples.moco import MoCo

from ..checkpoint import Checkpoint, seeded
from ..session import Session, settled
from .data import SomeClasses, to_device, training_batches
from .encoder import Encoder, new_encoder
from .views import TwoViews, augmentation

REPORT = 100  # steps between two lines


def new_moco(options: argparse.Namespace, session: Session) -> MoCo:
    """Both encoders and the queue, which starts with random directions as the original's does."""
    moco = MoCo(new_encoder(options).to(session.device), options.dim, options.queue)
    directions = torch.randn(options.queue, options.dim, generator=torch.Generator().manual_seed(options.seed))
    moco.queue.enqueue(nn.functional.normalize(directions).to(session.device))
    return moco


def loss_of(q: Tensor, k: Tensor, queue: Tensor, options: argparse.Namespace, group: hyperkern.Group | None) -> Tensor:
    """The weighted sum of alignment, uniformity and MoCo's own loss, of the whole batch.

    Args:
        q: ``(N, D)`` queries of this process.
        k: their keys, likewise.
        queue: ``(K, D)``.
        options: of the command line.
        group: of the processes.

    Source:
        Wang & Isola, ICML 2020, Eqs. 17 and 18.
    """
    loss = q.new_zeros(())
    if options.align_weight:
        loss = loss + options.align_weight * hyperkern.alignment(q, k, alpha=options.alpha, group=group)
    if options.uniform_weight:
        uniformity = hyperkern.uniformity(q, queue, t=options.t, intra=not options.no_intra, group=group)
        loss = loss + options.uniform_weight * uniformity
    if options.contrastive_weight:
        contrastive = hyperkern.info_nce(
            q, k, negatives=queue, in_batch=False, temperature=options.temperature, group=group
        )
        loss = loss + options.contrastive_weight * contrastive
    return loss


class Training:
    """Takes the steps, of this process's part of each batch.

    Args:
        options: of the command line.
        session: of this process.
        moco: encoders and queue.
        optimizer: of the encoder.
    """

    def __init__(
        self, options: argparse.Namespace, session: Session, moco: MoCo, optimizer: torch.optim.Optimizer
    ) -> None:
        self.options, self.session, self.moco, self.optimizer = options, session, moco, optimizer
        # Not `session.parallel`, with which batch norm would have statistics of all processes.
        devices = [session.device] if session.device.type == "cuda" else None
        alone = session.ranks == 1
        self.encoder = moco.encoder if alone else DistributedDataParallel(moco.encoder, device_ids=devices)

    def advance(self, first: Tensor, second: Tensor, shuffle: torch.Generator) -> Tensor:
        """Take a step.

        Args:
            first: ``(N, 3, H, W)`` views that become queries.
            second: the other views of the same images.
            shuffle: a generator that is in the same state in all processes.

        Returns:
            The loss of the whole batch.
        """
        moco, session = self.moco, self.session
        moco.follow(self.options.momentum)
        q = self.encoder(first)
        keys = self.keys(second, shuffle)
        loss = loss_of(q, keys.chunk(session.ranks)[session.rank], moco.queue.features, self.options, session.group)
        moco.queue.enqueue(keys)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def keys(self, views: Tensor, shuffle: torch.Generator) -> Tensor:
        """Keys of all processes, ``(B, D)``, encoded in a random order: see `Encoder` for why."""
        everyones = gathered(views, self.session)
        order = torch.randperm(len(everyones), generator=shuffle).to(views.device)
        own = everyones[order.chunk(self.session.ranks)[self.session.rank]]
        keys = gathered(self.moco.momentum_encoder(own), self.session)
        return nn.functional.normalize(keys[order.argsort()])


def gathered(rows: Tensor, session: Session) -> Tensor:
    """The rows of all processes, in their order; each has as many."""
    if session.ranks == 1:
        return rows
    everyones = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(session.ranks)]
    dist.all_gather(everyones, rows.contiguous())
    return torch.cat(everyones)


def pretrain(
    options: argparse.Namespace, session: Session, classes: Sequence[str], recipe: Mapping[str, Any]
) -> Encoder:
    """Train, from the checkpoint in the folder of the results if there is one.

    Args:
        options: of the command line.
        session: of this process.
        classes: to train with.
        recipe: options that the checkpoint is to agree with.

    Returns:
        The encoder.

    Raises:
        OptionError: there is not one whole batch of images, or the checkpoint is of other options.
        FloatingPointError: the loss became infinite or NaN.
    """
    images = SomeClasses(
        options.data, "train", classes, TwoViews(augmentation(options.crop, strong=options.recipe == "strong"))
    )
    if len(images) < options.batch:
        raise OptionError("batch", options.batch, f"must be at most {len(images)}, the number of training images")
    moco = new_moco(options, session)
    optimizer = torch.optim.SGD(moco.encoder.parameters(), lr=options.lr, momentum=0.9, weight_decay=1e-4)
    schedule: torch.optim.lr_scheduler.LRScheduler
    if options.recipe == "strong":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=options.epochs)
    else:
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, options.schedule, gamma=0.1)
    path: Path = options.out / "pretraining.pt"
    checkpoint = Checkpoint(path, recipe, {"moco": moco, "optimizer": optimizer, "schedule": schedule})
    done = checkpoint.load(session)
    training = Training(options, session, moco, optimizer)
    for epoch in range(done, options.epochs):
        loss, seconds = an_epoch(training, images, epoch)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}: a lower rate may help")
        schedule.step()
        checkpoint.save(epoch + 1, session)
        session.say(f"epoch {epoch + 1} of {options.epochs}: loss {loss:.4f}, {seconds:.0f} s")
    return settled(training.encoder)


def an_epoch(training: Training, images: SomeClasses, epoch: int) -> tuple[float, float]:
    """Train for an epoch.

    Returns:
        The mean loss, and seconds.
    """
    options, session, start = training.options, training.session, time.perf_counter()
    training.moco.train()
    shuffle = seeded(options.seed, epoch)
    batches = training_batches(images, options, "batch", session, epoch, drop_last=True)
    losses: list[Tensor] = []
    for (first, second), _ in islice(batches, options.steps):
        losses.append(training.advance(to_device(first, session), to_device(second, session), shuffle))
        if len(losses) % REPORT == 0:
            recent = torch.stack(losses[-REPORT:]).mean().item()
            session.say(f"  step {len(losses)} of {len(batches)}: loss {recent:.4f}")
    return torch.stack(losses).mean().item(), time.perf_counter() - start
