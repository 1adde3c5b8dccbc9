"""The command line of the recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from torchvision.datasets import STL10

from examples.digits.config import OptionError

from ...objective import Objective
from ..options import add_loss, at_least, command_line, folder_for_results, guarded, objective_of, positive
from ..published import show
from ..session import Session, session
from .choose import choose
from .data import COUNTS, FOLDER, Data, load
from .evaluate import Frozen, accuracies
from .linear import BATCH, Settings
from .train import RATE, Training, train

# Of the published accuracies, by the names of the options.
PUBLISHED: dict[str, Any] = {
    "batch": 768,
    "epochs": 200,
    "lr": RATE * 768 / 256,
    "dim": 128,
    "amp": False,
    "probe-epochs": 100,
}
DESCRIPTION = """\
The paper's experiment on STL-10: trains its small AlexNet without labels, then
a linear classifier and 5 nearest neighbours of the features, and shows their
accuracy beside the published one. DIR has stl10_binary/, or is it.

The paper's best alignment + uniformity, 200 epochs; started again it goes on:
    --data DIR
Does it work? A minute on a GPU, a few on a CPU:
    --data DIR --steps 2 --batch 32
The paper's best contrastive loss; its best of all encoders:
    --data DIR --out a --align-weight 0 --uniform-weight 0 \\
               --contrastive-weight 1
    --data DIR --out b --align-weight 0 --uniform-weight 1 \\
               --contrastive-weight 1 --temperature 0.5
The best of finished runs, by a linear classifier of the output in 5-fold cross-
validation on the training split, and its accuracy on the test split:
    --data DIR --out best --choose stl10-out a b"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("stl10", DESCRIPTION, out="stl10-out")
    command.add_argument("--download", action="store_true", help="download STL-10 into DIR if it is not there, 2.6 GB")
    command.add_argument("--choose", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    command.add_argument("--train-only", action="store_true", help="no evaluation: for runs to --choose from")
    add_loss(command, Objective(align_weight=0.98, uniform_weight=0.96, temperature=0.19))
    training = command.add_argument_group("training")
    training.add_argument("--batch", type=int, default=768, metavar="N", help="images of all processes (%(default)s)")
    training.add_argument("--epochs", type=int, metavar="N", help="rate / 10 at 155, 170, 185 of 200 (200)")
    training.add_argument("--lr", type=float, metavar="X", help=f"first rate ({RATE:g} for each 256 of the batch)")
    training.add_argument("--dim", type=int, default=128, metavar="N", help="of the output (%(default)s)")
    training.add_argument("--amp", action="store_true", help="in bfloat16, for speed; the paper's was float32")
    training.add_argument("--probe-epochs", type=int, metavar="N", help="of the classifiers (100)")
    return command


def training_of(options: argparse.Namespace) -> Training:
    """What to train, from the command line.

    Raises:
        OptionError: an option has a value that cannot work.
    """
    objective = objective_of(options)
    at_least(options, 1, "epochs", "probe_epochs")
    at_least(options, 2, "batch", "dim")
    positive(options, "lr")
    lr = RATE * options.batch / 256 if options.lr is None else options.lr
    epochs = options.epochs or (1 if options.steps else PUBLISHED["epochs"])
    return Training(objective, options.batch, epochs, lr, options.dim, options.seed, options.amp, options.steps)


def work(options: argparse.Namespace) -> None:
    """Train and evaluate, or choose."""
    training = training_of(options)
    for name in ("choose", "download"):
        if getattr(options, name) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise OptionError(name, os.environ["WORLD_SIZE"], "is for one process")
    if options.download:
        download(options.data)
    data = load(options.data)
    if not options.choose and training.batch > len(data.unlabelled):
        raise OptionError("batch", training.batch, f"must be at most {len(data.unlabelled)}, the number of images")
    out = folder_for_results(options)
    if options.steps:  # of every pass over images
        data = data._replace(train=data.train.head(options.steps * BATCH), test=data.test.head(options.steps * BATCH))
    with session(options.device) as here:
        if not options.steps:
            compare_counts(data, here)
        probe_epochs = options.probe_epochs or (1 if options.steps else PUBLISHED["probe-epochs"])
        settings = Settings(probe_epochs, options.workers, here.alone(), {"steps": options.steps})
        if options.choose:
            show_choice(options, data, settings)
            return
        encoder = train(training, data.unlabelled, out, options.workers, here)
    # The first process is enough for the rest: the others need not wait for it.
    if here.is_first and not options.train_only:
        frozen, recipe = Frozen(encoder), training.recipe()
        found = accuracies(frozen, data, out, settings._replace(recipe=recipe))
        found |= frozen.metrics(data.test.pixels, settings)
        made = recipe | {"probe-epochs": probe_epochs, "ranks": here.ranks}
        show("stl10", found, out, made, tried=bool(options.steps), published_with=PUBLISHED)


def download(folder: Path) -> None:
    """Download STL-10 if it is not there.

    Raises:
        OptionError: it cannot be had; with the reason.
    """
    try:
        STL10(folder.parent if folder.name == FOLDER else folder, download=True)
    except (OSError, RuntimeError) as error:
        raise OptionError("download", folder, f"{STL10.url} cannot be had ({error})") from error


def compare_counts(data: Data, here: Session) -> None:
    """Say so if these are not all of STL-10's images."""
    train, test = len(data.train.labels), len(data.test.labels)
    counts = {"train": train, "test": test, "unlabeled": len(data.unlabelled) - train}
    if counts != COUNTS:
        here.say(f"note: these are not all of STL-10's images: {counts}, of {COUNTS}")


def show_choice(options: argparse.Namespace, data: Data, settings: Settings) -> None:
    """Choose among runs; the result goes to ``--out``."""
    chosen = choose(options.choose, data, settings)
    settings.here.say(f"best: {chosen.run}")
    about = chosen.recipe | {"probe-epochs": settings.epochs, "run": chosen.run, "folds": chosen.folds}
    show("stl10", chosen.test, options.out, about, tried=bool(options.steps), published_with=PUBLISHED)


def main(words: list[str]) -> int:
    """Do what the command line says; see `guarded` for what is returned."""
    return guarded(parser(), work, words)
