"""The command of the recipe on NYU-Depth V2."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from examples.digits.config import OptionError

from ...depth.networks import STRIDE, DepthPredictor, Encoder
from ...depth.training import (
    ENCODER_RATE,
    PREDICTOR_RATE,
    Trainee,
    constant_error,
    depth_error,
    encoder_trainee,
    new_predictor,
    predictor_trainee,
)
from ...depth.views import Loader, Pairs, Samples, Scale, all_of
from ...objective import Objective, metrics
from ..checkpoint import Checkpoint
from ..options import add_loss, at_least, command_line, folder_for_results, guarded, objective_of, positive
from ..published import show
from ..session import Session, session, unwrapped
from .data import Data, load

DESCRIPTION = """\
The paper's experiment on NYU-Depth V2: trains an encoder without depths, then a
depth predictor on its frozen conv5 and one on its conv4 activations, and shows
their errors beside the published ones. DIR has nyu_depth_v2_labeled.mat, and
splits.mat for the official split.

The paper's best, 0.75 alignment + 0.5 uniformity, 400 epochs; started again it goes on:
    --data DIR
Does it work? A minute on a GPU, a few on a CPU:
    --data DIR --steps 2 --batch 32
The paper's best contrastive loss:
    --data DIR --out b --align-weight 0 --uniform-weight 0 --contrastive-weight 0.5"""
# Of the published errors, by the names of the options.
PUBLISHED: dict[str, Any] = {
    "epochs": 400,
    "batch": 128,
    "lr": ENCODER_RATE * 128,
    "dim": 128,
    "probe-epochs": 120,
    "data": "official split",
}
LEAST_AREA = 0.08
VIEW_SEED = 1_000_003  # of the held-out views that the metrics are of
SAVED = 10  # epochs of six steps between two files of half a gigabyte


class Run(NamedTuple):
    """What all steps of a run share."""

    options: argparse.Namespace
    recipe: Mapping[str, Any]
    data: Data
    scale: Scale
    here: Session

    def loader(self, seed: int) -> Loader:
        """Of training batches."""
        options = self.options
        return Loader(self.here, options.batch, seed, options.workers, options.steps)

    def fit(self, name: str, trainee: Trainee, dataset: Pairs | Samples, seed: int, epochs: int) -> None:
        """Train from the last checkpoint on, which is written every `SAVED` epochs and after the last."""
        parts = {"model": unwrapped(trainee.model), "optimizer": trainee.optimizer, "schedule": trainee.schedule}
        checkpoint = Checkpoint(self.options.out / f"{name}.pt", self.recipe, parts)
        done = checkpoint.load(self.here)

        def after(epoch: int, loss: float) -> None:
            if epoch % self.options.save_every == 0 or epoch == epochs:
                self.here.say(f"{name}: epoch {epoch}/{epochs}, loss {loss:.4f}")
                checkpoint.save(epoch, self.here)

        trainee.fit(partial(self.loader(seed), dataset), epochs, done=done, after=after)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("nyu-depth", DESCRIPTION, out="nyu-depth-out")
    add_loss(command, Objective(align_weight=0.75, uniform_weight=0.5))
    training = command.add_argument_group("training")
    training.add_argument("--size", type=int, default=64, metavar="N", help="of the encoder's images (%(default)s)")
    training.add_argument("--batch", type=int, default=128, metavar="N", help="images of all processes (%(default)s)")
    training.add_argument("--epochs", type=int, metavar="N", help="rate / 10 at 310, 340, 370 of 400 (400)")
    training.add_argument("--lr", type=float, metavar="X", help="first rate (0.12 for each 256 of the batch)")
    training.add_argument("--dim", type=int, default=128, metavar="N", help="of the output (%(default)s)")
    training.add_argument("--probe-epochs", type=int, metavar="N", help="of the depth predictors (120)")
    training.add_argument(
        "--save-every", type=int, default=SAVED, metavar="N", help="epochs between checkpoints (%(default)s)"
    )
    return command


def recipe_of(options: argparse.Namespace) -> dict[str, Any]:
    """What the result depends on, checked, but for the data.

    Raises:
        OptionError: an option has a value that cannot work.
    """
    objective = objective_of(options)
    at_least(options, 1, "epochs", "probe_epochs", "save_every")
    at_least(options, 2, "batch", "dim")
    positive(options, "lr")
    if options.size < STRIDE or options.size % STRIDE:
        raise OptionError("size", options.size, f"must be a multiple of {STRIDE}, by which the encoder divides it")
    chosen = {
        "epochs": options.epochs or (1 if options.steps else PUBLISHED["epochs"]),
        "probe-epochs": options.probe_epochs or (1 if options.steps else PUBLISHED["probe-epochs"]),
        "lr": options.lr or ENCODER_RATE * options.batch,
    }
    given = {name: getattr(options, name) for name in ("size", "batch", "dim", "seed", "steps")}
    return {name.replace("_", "-"): value for name, value in objective._asdict().items()} | given | chosen


def pretrained(run: Run) -> Encoder:
    """The encoder, trained on views of the training images."""
    options, recipe = run.options, run.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        encoder = Encoder(options.size, options.dim).to(memory_format=torch.channels_last)
    trainee = encoder_trainee(encoder, objective_of(options), run.here, rate=recipe["lr"], epochs=recipe["epochs"])
    pairs = Pairs(run.data.train.images, options.size, run.scale, LEAST_AREA)
    run.fit("encoder", trainee, pairs, options.seed, recipe["epochs"])
    return encoder


def depth_errors(run: Run, encoder: Encoder) -> dict[str, float]:
    """Mean squared errors in square metres on the held-out images, by what they are predicted from."""
    options, epochs, size = run.options, run.recipe["probe-epochs"], run.options.size
    train, held_out = run.data.train.resized(size), run.data.held_out.resized(size)
    samples = Samples(train, size, run.scale, random=True)
    middles = DataLoader(Samples(held_out, size, run.scale, random=False), options.batch)
    found = {}
    for layer in (5, 4):
        predictor: DepthPredictor = new_predictor(encoder, layer, train.depths, options.seed)
        predictor = predictor.to(memory_format=torch.channels_last)  # as the activations are
        trainee = predictor_trainee(predictor, encoder, layer, run.here, rate=PREDICTOR_RATE, epochs=epochs)
        run.fit(f"conv{layer}", trainee, samples, options.seed + 1, epochs)
        on_device = (tuple(part.to(run.here.device) for part in batch) for batch in middles)
        found[f"conv{layer}, MSE"] = depth_error(predictor, encoder, layer, on_device)
    depths = torch.cat([depths for _, depths in middles])
    return found | {"mean depth, MSE": constant_error(train, depths)}


@torch.no_grad()
def metrics_of(run: Run, encoder: Encoder) -> dict[str, float]:
    """Alignment (α = 2) and uniformity (t = 2) of views of the held-out images."""
    pairs = Pairs(run.data.held_out.images, run.options.size, run.scale, LEAST_AREA)
    views = all_of(pairs, VIEW_SEED)
    x, y = (torch.cat([encoder(part.to(run.here.device)) for part in view.split(run.options.batch)]) for view in views)
    return metrics(x, y)


def work(options: argparse.Namespace) -> None:
    """Train and evaluate."""
    recipe = recipe_of(options)
    data = load(options.data)
    recipe["data"] = "official split" if data.official else "split by scenes"
    if options.batch > len(data.train.images):
        raise OptionError("batch", options.batch, f"must be at most {len(data.train.images)}, the training images")
    out = folder_for_results(options)
    with session(options.device) as here:
        here.share("batch", options.batch)
        here.say(f"{len(data.train.images)} training images, {len(data.held_out.images)} held out")
        if not data.official:
            here.say(
                "no splits.mat: whole scenes were drawn for training, the errors are not those of the official split"
            )
        run = Run(options, recipe, data, Scale.of(data.train.images), here)
        encoder = pretrained(run)
        found = depth_errors(run, encoder) | metrics_of(run, encoder)
        if here.is_first:
            made = {**recipe, "ranks": here.ranks}
            show("nyu-depth", found, out, made, tried=options.steps is not None, published_with=PUBLISHED)


def main(words: list[str]) -> int:
    """Do what the command line says; see `guarded` for what is returned."""
    return guarded(parser(), work, words)
