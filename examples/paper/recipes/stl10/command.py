"""The command line of the recipe."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from torchvision.datasets import STL10

from examples.digits.config import OptionError

from ..options import at_least, command_line, folder_for_results, guarded
from ..published import show
from ..session import Session, session
from .choose import choose
from .data import COUNTS, FOLDER, Data, load
from .evaluate import Frozen, accuracies
from .linear import BATCH, Settings
from .objective import Objective
from .train import RATE, Training, train

EPOCHS, PROBE_EPOCHS = 200, 100
DESCRIPTION = """\
The paper's experiment on STL-10: trains its small AlexNet without labels, then
a linear classifier and 5 nearest neighbours of the features, and shows their
accuracy beside the published one. DIR has stl10_binary/, or is it.

Alignment + uniformity as published, 200 epochs; started again it goes on:
    --data DIR
Does it work? A minute on a GPU, a few on a CPU:
    --data DIR --steps 2 --batch 32
The paper's best weights; the contrastive loss alone:
    --data DIR --out a --align-weight 0.98 --uniform-weight 0.96
    --data DIR --out b --align-weight 0 --uniform-weight 0 \\
               --contrastive-weight 1 --temperature 0.5
The best of finished runs for each measure, by 5-fold cross-validation on the
training split, and the accuracy of the best on the test split:
    --data DIR --out best --choose a b"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("stl10", DESCRIPTION, out="stl10-out")
    command.add_argument("--download", action="store_true", help="download STL-10 into DIR if it is not there, 2.6 GB")
    command.add_argument("--choose", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    command.add_argument("--train-only", action="store_true", help="no evaluation: for runs to --choose from")
    usual = Objective()
    loss = command.add_argument_group("loss")
    for name, what in (
        ("align-weight", "of the alignment"),
        ("uniform-weight", "of the uniformity, the mean of both views"),
        ("contrastive-weight", "of the two-way contrastive loss"),
        ("alpha", "exponent of the distance in the alignment"),
        ("t", "of the Gaussian in the uniformity"),
        ("temperature", "of the contrastive loss"),
    ):
        default = getattr(usual, name.replace("-", "_"))
        loss.add_argument(f"--{name}", type=float, default=default, metavar="X", help=f"{what} (%(default)g)")
    training = command.add_argument_group("training")
    training.add_argument("--batch", type=int, default=768, metavar="N", help="images of all processes (%(default)s)")
    training.add_argument("--epochs", type=int, metavar="N", help=f"rate / 10 at 155, 170, 185 of 200 ({EPOCHS})")
    training.add_argument("--lr", type=float, metavar="X", help=f"first rate ({RATE:g} for each 256 of the batch)")
    training.add_argument("--dim", type=int, default=128, metavar="N", help="of the output (%(default)s)")
    training.add_argument("--amp", action="store_true", help="in bfloat16, for speed; the paper's was float32")
    training.add_argument("--probe-epochs", type=int, metavar="N", help=f"of the classifiers ({PROBE_EPOCHS})")
    return command


def training_of(options: argparse.Namespace) -> Training:
    """What to train, from the command line.

    Raises:
        OptionError: an option has a value that cannot work.
    """
    objective = Objective(**{name: getattr(options, name) for name in Objective._fields})
    at_least(options, 0, "align_weight", "uniform_weight", "contrastive_weight")
    at_least(options, 1, "epochs", "probe_epochs")
    at_least(options, 2, "batch", "dim")
    for name in ("alpha", "t", "temperature", "lr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise OptionError(name, value, "must be above 0")
    if not objective.align_weight + objective.uniform_weight + objective.contrastive_weight:
        raise OptionError("align-weight", objective.align_weight, "of the three weights one must be above 0")
    lr = RATE * options.batch / 256 if options.lr is None else options.lr
    epochs = options.epochs or (1 if options.steps else EPOCHS)
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
    if training.batch > len(data.unlabelled):
        raise OptionError("batch", training.batch, f"must be at most {len(data.unlabelled)}, the number of images")
    out = folder_for_results(options)
    if options.steps:  # of every pass over images
        data = data._replace(train=data.train.head(options.steps * BATCH), test=data.test.head(options.steps * BATCH))
    with session(options.device) as here:
        if not options.steps:
            compare_counts(data, here)
        probe_epochs = options.probe_epochs or (1 if options.steps else PROBE_EPOCHS)
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
        show("stl10", found, out, recipe | {"ranks": here.ranks}, tried=bool(options.steps))


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
    for measure, choice in chosen.items():
        settings.here.say(f"{measure}: {choice.run}, {choice.folds[choice.run]:.2f} over folds")
    recipe = {measure: choice._asdict() for measure, choice in chosen.items()}
    show(
        "stl10",
        {measure: choice.test for measure, choice in chosen.items()},
        options.out,
        recipe,
        tried=bool(options.steps),
    )


def main(words: list[str]) -> int:
    """Do what the command line says; see `guarded` for what is returned."""
    return guarded(parser(), work, words)
