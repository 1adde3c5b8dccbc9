"""MoCo with alignment and uniformity: the paper's loss against a queue, on one device and without DDP.

An encoder makes queries of one view of each image, a momentum encoder makes keys of the other. With the keys of earlier
batches in a queue the loss is ``3 align(alpha=2) + 1 uniform(t=3)``, Eq. 18 of Wang & Isola (2020), or Eq. 17 with
``--no-intra``; ``--contrastive`` takes MoCo's own loss. The images are scikit-learn's handwritten digits; data,
encoder, views and evaluation are those of ``make demo``::

    pip install '.[demo]'
    python -m examples.moco
    python -m examples.moco --contrastive
    python -m examples.moco --checkpoint moco.pt --steps 200    # and again without --steps: goes on bit for bit

With the defaults, on 600 held-out images, mean ± standard deviation of the seeds 0 to 2; a run takes about 5 s on one
core of a CPU. ``make demo`` reaches 98.3 ± 0.5 % with alignment and uniformity of the batch alone:

===================================  ===========  ============  =============  =============  ==========
loss                                 alignment    uniformity    linear probe   standardised   5-NN
===================================  ===========  ============  =============  =============  ==========
3 align + uniform, Eq. 18            0.47 ± 0.01  -3.11 ± 0.01  98.2 ± 0.2 %   98.9 ± 0.3 %   98.7 ± 0.2 %
the same, Eq. 17                     0.42 ± 0.01  -3.03 ± 0.01  98.4 ± 0.4 %   99.1 ± 0.2 %   98.8 ± 0.3 %
MoCo                                 0.48 ± 0.01  -3.07 ± 0.01  98.0 ± 0.6 %   98.6 ± 0.3 %   98.8 ± 0.2 %
===================================  ===========  ============  =============  =============  ==========
"""

import argparse
import copy
import io
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import hyperkern
from examples.digits.config import DemoConfig, OptionError, check_ranges, resolve_device
from examples.digits.data import augment, load
from examples.digits.encoder import new_encoder
from examples.digits.evaluate import Evaluation, evaluate
from examples.digits.report import print_table
from hyperkern.files import write_files

# What a run can be resumed with only if it is the same.
RECIPE = ("epochs", "batch", "queue", "momentum", "lr", "dim", "seed", "no_intra", "contrastive", "temperature")


class MoCo(nn.Module):
    """Encoder, momentum encoder and queue.

    Args:
        encoder: maps images to ``(N, dim)`` features; the momentum encoder starts as its copy.
        dim: dimension of the features.
        size: of the queue.
    """

    def __init__(self, encoder: nn.Module, dim: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = hyperkern.FeatureQueue(size, dim, device=next(encoder.parameters()).device)

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the momentum encoder towards the encoder."""
        for slow, fast in zip(self.momentum_encoder.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - momentum)


class Training:
    """A run, one step after the other; its state is all that the next step depends on.

    Args:
        options: of the command line.
        images: ``(N, 1, 8, 8)`` training images.
    """

    def __init__(self, options: argparse.Namespace, images: Tensor) -> None:
        self.options, self.images = options, images
        self.moco = MoCo(new_encoder(options.dim, options.seed, images.device), options.dim, options.queue)
        self.steps_per_epoch = len(images) // options.batch
        self.steps = options.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.Adam(self.moco.encoder.parameters(), lr=options.lr)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=self.steps)
        self.generator = torch.Generator(images.device).manual_seed(options.seed)
        self.order = torch.empty(0, dtype=torch.int64)
        self.step = 0
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Fill the queue: a mean over no pairs has no value, and one over few pairs is noise."""
        while not self.moco.queue.is_full:
            self.draw()
            for rows in self.order.split(self.options.batch):
                self.moco.queue.enqueue(self.moco.momentum_encoder(augment(self.images[rows], self.generator)))

    def draw(self) -> None:
        """Draw the order of the images for an epoch; a last incomplete batch is left out."""
        order = torch.randperm(len(self.images), generator=self.generator, device=self.images.device)
        self.order = order[: self.steps_per_epoch * self.options.batch]

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """The loss of queries ``q`` and keys ``k``, ``(N, D)`` each, against the queue."""
        queue = self.moco.queue.features
        if self.options.contrastive:
            return hyperkern.info_nce(q, k, negatives=queue, in_batch=False, temperature=self.options.temperature)
        align = hyperkern.alignment(q, k, alpha=2.0)
        return 3 * align + hyperkern.uniformity(q, queue, t=3.0, intra=not self.options.no_intra)

    def advance(self) -> float:
        """Take one step.

        Returns:
            Its loss.

        Raises:
            FloatingPointError: the loss became infinite or NaN.
        """
        position = self.step % self.steps_per_epoch
        if position == 0:
            self.draw()
        chosen = self.images[self.order[position * self.options.batch :][: self.options.batch]]
        q = self.moco.encoder(augment(chosen, self.generator))
        with torch.no_grad():
            k = self.moco.momentum_encoder(augment(chosen, self.generator))
        loss = self.loss(q, k)
        self.moco.queue.enqueue(k)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.moco.follow(self.options.momentum)
        self.step += 1
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} after step {self.step}")
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "options": {name: getattr(self.options, name) for name in RECIPE},
            "moco": self.moco.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "order": self.order,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run with the same options was.

        Raises:
            OptionError: an option differs; it is named, with both values.
        """
        for name, value in state["options"].items():
            if getattr(self.options, name) != value:
                given = getattr(self.options, name)
                raise OptionError(name.replace("_", "-"), given, f"the checkpoint was made with {str(value)!r}")
        for name in ("moco", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.order, self.step = state["order"].to(self.images.device), state["step"]


def save(training: Training, path: Path) -> None:
    """Write a checkpoint; what was there stays whole until the new one is."""
    content = io.BytesIO()
    torch.save(training.state_dict(), content)
    write_files({path: content.getvalue()})


def restore(training: Training, path: Path) -> None:
    """Go on from a checkpoint, on whatever device."""
    training.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--epochs", type=int, default=60, help="passes over the training images (%(default)s)")
    options.add_argument("--batch", type=int, default=128, help="images of a step (%(default)s)")
    options.add_argument("--queue", type=int, default=1024, help="keys in the queue (%(default)s)")
    options.add_argument("--momentum", type=float, default=0.99, help="of the momentum encoder (%(default)s)")
    options.add_argument("--lr", type=float, default=3e-3, help="Adam's, at the start of a cosine decay (%(default)s)")
    options.add_argument("--dim", type=int, default=64, help="dimension of the features (%(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of weights, order and views (%(default)s)")
    options.add_argument("--no-intra", action="store_true", help="Eq. 17: no pairs within the batch")
    options.add_argument("--contrastive", action="store_true", help="MoCo's own loss instead")
    options.add_argument("--temperature", type=float, default=0.1, help="of --contrastive (%(default)s)")
    options.add_argument("--device", help="cpu, cuda or cuda:<index>; by default a GPU if there is one")
    options.add_argument("--steps", type=int, help="stop after this many steps, those before a checkpoint included")
    options.add_argument("--checkpoint", type=Path, help="file to go on from, if it exists, and to save to")
    return options


def train(options: argparse.Namespace, images: Tensor) -> tuple[MoCo, list[float]]:
    """Train, from the checkpoint if there is one, and save it after each epoch and at the end.

    Args:
        options: of `parser`.
        images: ``(N, 1, 8, 8)`` training images.

    Returns:
        Encoders and queue, and the losses of the steps taken.
    """
    training = Training(options, images)
    if options.checkpoint is not None and options.checkpoint.exists():
        restore(training, options.checkpoint)
        print(f"goes on after step {training.step} of {options.checkpoint}")
    last = training.steps if options.steps is None else min(options.steps, training.steps)
    losses = []
    while training.step < last:
        losses.append(training.advance())
        is_epoch, epoch = training.step % training.steps_per_epoch == 0, training.step // training.steps_per_epoch
        if options.checkpoint is not None and (is_epoch or training.step == last):
            save(training, options.checkpoint)
        if is_epoch and epoch % 10 == 0:
            print(f"epoch {epoch:3}: loss {losses[-1]:.4f}", flush=True)
    return training.moco, losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and evaluate."""
    command = parser()
    options = command.parse_args(arguments)
    # The layers are so small that threads wait for each other more than they compute.
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        digits = load(resolve_device(options.device))
        config = DemoConfig(seeds=1, epochs=options.epochs, dim=options.dim, batch=options.batch)
        check_ranges(config, len(digits.train_labels))
        moco, losses = train(options, digits.train_images)
    except OptionError as error:
        command.error(str(error))
    print(f"{len(losses)} steps in {time.perf_counter() - start:.0f} s")
    loss = "MoCo" if options.contrastive else f"3 align + uniform, Eq. {17 if options.no_intra else 18}"
    untrained = new_encoder(options.dim, options.seed, digits.train_images.device)
    rows = [
        row(name, evaluate(encoder.eval(), digits, backend=None))
        for name, encoder in ((loss, moco.encoder), ("untrained encoder", untrained))
    ]
    title = f"{len(digits.held_out_labels)} held-out images, {options.dim} dimensions, seed {options.seed}"
    print_table(Console(), title, rows)


def row(name: str, found: Evaluation) -> tuple[str, ...]:
    """The line of an encoder in the table of the demo."""
    percent = (f"{100 * share:.1f}" for share in (found.linear_probe, found.scaled_probe, found.knn))
    return name, f"{found.alignment:.4f}", f"{found.uniformity:.3f}", *percent


if __name__ == "__main__":
    main()
