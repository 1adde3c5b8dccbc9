"""Training of the encoder, as the paper did."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples.digits.config import OptionError

from ...objective import Objective
from ..checkpoint import Checkpoint
from ..session import Session, settled
from .data import PAIRS, Images, Views, generator
from .encoder import Encoder, new_encoder

MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
RATE = 0.12  # for each 256 images of a batch
DROPS = (155 / 200, 170 / 200, 185 / 200)  # of the epochs, where the rate falls to a tenth
FILE = "train.pt"


@dataclass(frozen=True)
class Training:
    """Options of a training; the fields' names are those of the command line.

    Attributes:
        objective: what is minimised.
        batch: images of a step, of all processes.
        epochs: passes over the images.
        lr: first learning rate.
        dim: of the features.
        seed: of weights, order and views.
        amp: whether the encoder runs in bfloat16.
        steps: of an epoch at most, ``None`` for all.
    """

    objective: Objective
    batch: int
    epochs: int
    lr: float
    dim: int
    seed: int
    amp: bool
    steps: int | None

    def recipe(self) -> dict[str, Any]:
        """By their names on the command line."""
        options = {name: value for name, value in vars(self).items() if name != "objective"}
        return {name.replace("_", "-"): value for name, value in (self.objective._asdict() | options).items()}

    def batches(self, rows: int, here: Session, first: int) -> Iterator[Iterator[list[tuple[int, int]]]]:
        """Of each epoch from the first on, this process's places of each batch.

        The last batch of an epoch is smaller; one with less than two images a process is left out.
        """
        for epoch in range(first, self.epochs):
            order = torch.randperm(rows, generator=generator(self.seed, epoch)).split(self.batch)
            whole = (batch for batch in order if len(batch) >= 2 * here.ranks)
            shares = (batch.tensor_split(here.ranks)[here.rank].tolist() for batch in whole)
            yield ([(epoch, index) for index in share] for share in itertools.islice(shares, self.steps))


def steps_of_epoch(training: Training, rows: int, ranks: int) -> int:
    """Number of its batches."""
    whole, rest = divmod(rows, training.batch)
    steps = whole + (rest >= 2 * ranks)
    return min(steps, training.steps or steps)


def train(training: Training, pixels: Images, out: Path, workers: int, here: Session) -> Encoder:
    """Train, from the last checkpoint on.

    Args:
        training: what to do.
        pixels: the images.
        out: folder of the checkpoint.
        workers: processes that make views.
        here: this process.

    Returns:
        The encoder in evaluation mode, on the device, the same in all processes.

    Raises:
        OptionError: the batch has less than two images for a process.
        FloatingPointError: the loss became infinite or NaN.
    """
    if training.batch < 2 * here.ranks:
        raise OptionError("batch", training.batch, f"must be at least {2 * here.ranks}, two for each process")
    torch.backends.cudnn.benchmark = here.device.type == "cuda"
    encoder = new_encoder(training.dim, training.seed)
    model = here.parallel(encoder)
    optimizer = torch.optim.SGD(model.parameters(), training.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    drops = [round(share * training.epochs) for share in DROPS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    checkpoint = Checkpoint(
        out / FILE, training.recipe(), {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    )
    first = checkpoint.load(here)
    steps = steps_of_epoch(training, len(pixels), here.ranks)
    if first < training.epochs:
        here.say(
            f"minimises {training.objective}; epochs: {training.epochs}, steps of each: {steps}, "
            f"images of a step: {training.batch}"
        )
    # One stream of batches for all epochs: workers go on with the next epoch while the last steps are made.
    places = itertools.chain.from_iterable(training.batches(len(pixels), here, first))
    views = Views(pixels, PAIRS, training.seed, copies=2).batches(places, workers, here.device)
    model.train()
    for epoch in range(first, training.epochs):
        start, total = time.perf_counter(), torch.zeros(3, device=here.device)
        for pair in itertools.islice(views, steps):
            with torch.autocast(here.device.type, torch.bfloat16, enabled=training.amp):
                x, y = model(pair.flatten(0, 1)).chunk(2)
            terms = training.objective(x.float(), y.float(), here.group)
            optimizer.zero_grad()
            terms.loss.backward()
            optimizer.step()
            total += torch.stack(terms).detach()
        schedule.step()
        loss, alignment, uniformity = (total / steps).tolist()
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {epoch + 1}")
        checkpoint.save(epoch + 1, here)
        here.say(
            f"epoch {epoch + 1}/{training.epochs}: loss {loss:.4f}, alignment {alignment:.4f}, "
            f"uniformity {uniformity:.4f}, {time.perf_counter() - start:.0f} s"
        )
    settled(model)
    return encoder
