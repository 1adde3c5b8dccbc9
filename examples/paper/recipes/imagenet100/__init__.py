"""ImageNet-100 and ImageNet: MoCo with alignment and uniformity, and its linear evaluation.

The settings are those of the paper, or of the repository that goes with it, SsnL/moco_align_uniform: see `recipes`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from examples.digits.config import OptionError

from ...objective import Objective
from ..options import add_loss, at_least, command_line, folder_for_results, guarded, objective_of, positive
from ..published import show
from ..session import Session, session
from .data import classes_of
from .encoder import ARCHITECTURES, load_published, new_encoder
from .linear import linear_evaluation
from .pretraining import pretrain
from .recipes import RECIPES, complete, published_as, published_with

ABOUT = """\
Trains a ResNet-50 as the paper's variant of MoCo on the 100 classes of ImageNet that it took, which need not be copied
out of it, or on all of them; then a linear classifier of its frozen features, whose accuracy is the result. DIR has
train/ and val/, in each a folder of images for every class, named by its WordNet id.

The paper's best alignment + uniformity; started again it goes on. Does it work? Two batches of each part:
    --data DIR
    --data DIR --out trial --steps 2

The defaults are the paper's: its recipe of ImageNet-100, or with --all-classes that of ImageNet, 3 alignment +
uniformity of t = 3 (Eq. 18). '--align-weight 0 --uniform-weight 0 --contrastive-weight 1' is MoCo itself, by default
of temperature 0.07, the paper's best; for plain, strong and ImageNet 0.2 is. --recipe:

  paper    the paper's: 240 epochs, a tenth of the rate after 120, 160, 200; 16,384 keys; linear classifier of 60
           epochs at rate 10, a fifth after 30, 40, 50
  plain    its repository's: 200 epochs, a tenth after 120, 160; 65,536 keys; linear classifier of 100 epochs at rate
           30, a tenth after 60, 80
  strong   as plain, with MoCo v2's stronger augmentation, hidden layer in the head and cosine decay"""

# What a run can be resumed with only if it is the same, by the names of the options.
PRETRAINING = (
    *("all-classes", "recipe", "arch", "crop", "dim", "queue", "momentum", "norm-rows"),
    *("epochs", "batch", "lr", "schedule", "steps", "seed"),
    *("no-intra", *(name.replace("_", "-") for name in Objective._fields)),
)
LINEAR = ("linear-epochs", "linear-batch", "linear-lr", "linear-schedule", "linear-decay")
# Of a published checkpoint, instead of those of the pre-training.
PRETRAINED = ("pretrained", "all-classes", "arch", "crop", "steps", "seed")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("imagenet100", ABOUT, out="imagenet100-out")
    command.add_argument("--all-classes", action="store_true", help="all classes of the folder, ImageNet as a whole")
    command.add_argument(
        "--recipe", choices=RECIPES, help="what is not given otherwise (paper; strong for all classes)"
    )
    command.add_argument("--arch", choices=ARCHITECTURES, default="resnet50", help="the encoder (%(default)s)")
    command.add_argument("--crop", type=int, default=224, help="side of the views (%(default)s)")

    loss = add_loss(command, Objective(align_weight=3, uniform_weight=1, t=3, temperature=0.07))
    loss.add_argument("--no-intra", action="store_true", help="Eq. 17: no pairs within the batch")

    moco = command.add_argument_group("pre-training")
    moco.add_argument("--epochs", type=int, help="passes over the images (of the recipe)")
    moco.add_argument("--batch", type=int, help="images of a step, of all processes (128; 256 with --all-classes)")
    moco.add_argument("--lr", type=float, default=0.03, help="rate at the start, for this batch (%(default)s)")
    told = "epochs after which the rate falls (of the recipe; strong has a cosine instead)"
    moco.add_argument("--schedule", type=int, nargs="*", metavar="EPOCH", help=told)
    moco.add_argument("--queue", type=int, help="keys in the queue (of the recipe)")
    moco.add_argument("--momentum", type=float, default=0.999, help="of the momentum encoder (%(default)s)")
    moco.add_argument("--dim", type=int, default=128, help="dimension of the features (%(default)s)")
    norm_rows = "images that a batch norm takes together: with a batch of 128, those of one of 4 GPUs (%(default)s)"
    moco.add_argument("--norm-rows", type=int, default=32, help=norm_rows)

    linear = command.add_argument_group("linear evaluation")
    pretrained = "of this checkpoint in MoCo's format, the repository's for instance, instead of pre-training"
    linear.add_argument("--pretrained", type=Path, metavar="FILE", help=pretrained)
    linear.add_argument("--linear-epochs", type=int, help="passes over the images (of the recipe)")
    linear.add_argument("--linear-batch", type=int, default=256, help="of all processes (%(default)s)")
    linear.add_argument("--linear-lr", type=float, help="rate at the start (of the recipe)")
    told = "epochs after which it falls (of the recipe)"
    linear.add_argument("--linear-schedule", type=int, nargs="*", metavar="EPOCH", help=told)
    linear.add_argument("--linear-decay", type=float, metavar="X", help="factor by which it falls (of the recipe)")
    return command


def main(words: list[str]) -> int:
    """Pre-train, evaluate, and show the accuracy beside the published one."""
    return guarded(parser(), work, words)


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot work.

    Raises:
        OptionError: naming the option and its value.
    """
    at_least(options, 1, "epochs", "queue", "linear_epochs", "linear_batch")
    at_least(options, 2, "batch", "dim", "norm_rows")
    at_least(options, 32, "crop")  # what a ResNet makes one pixel of
    objective_of(options)
    positive(options, "lr", "linear_lr", "linear_decay")
    if not 0 <= options.momentum < 1:
        raise OptionError("momentum", options.momentum, "must be at least 0 and less than 1")


def work(options: argparse.Namespace) -> None:
    """What `main` does, of options that are parsed.

    Raises:
        OptionError: one of them cannot work.
    """
    complete(options)
    published = published_with(options)
    check(options)
    classes = classes_of(options.data, everything=options.all_classes)
    out = folder_for_results(options)
    if options.steps is not None:
        options.epochs = options.linear_epochs = 1
    with session(options.device) as own:
        check_parts(options, own)
        if options.pretrained is None:
            recipe = {name: value_of(options, name) for name in PRETRAINING}
            encoder = pretrain(options, own, classes, recipe)
        else:
            recipe = {name: value_of(options, name) for name in PRETRAINED}
            encoder = new_encoder(options)
            load_published(options.pretrained, encoder)
        recipe |= {name: value_of(options, name) for name in LINEAR}
        found = linear_evaluation(encoder.to(own.device), options, own, classes, recipe)
        if own.is_first:
            tried = options.steps is not None
            show(published_as(options), found, out, recipe, tried=tried, published_with=published)


def value_of(options: argparse.Namespace, name: str) -> Any:
    """The value of the option of this name on the command line, as a checkpoint can keep it."""
    value = getattr(options, name.replace("-", "_"))
    return str(value) if isinstance(value, Path) else value


def check_parts(options: argparse.Namespace, own: Session) -> None:
    """Refuse batches that the processes, and in each the batch norms, cannot share evenly.

    Raises:
        OptionError: naming the option and its value.
    """
    own.share("linear-batch", options.linear_batch)
    share, part = own.share("batch", options.batch), options.norm_rows
    if share > part and share % part:
        reason = f"must be a multiple of --norm-rows {part}, or at most as many, on each of {own.ranks} processes"
        raise OptionError("batch", options.batch, reason)
