"""ImageNet-100 and ImageNet: MoCo with alignment and uniformity, and its linear evaluation.

The settings are those of the repository that goes with the paper, SsnL/moco_align_uniform.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from examples.digits.config import OptionError

from ..options import at_least, command_line, folder_for_results, guarded
from ..published import show
from ..session import Session, session
from .data import classes_of
from .encoder import ARCHITECTURES, load_published, new_encoder
from .linear import linear_evaluation
from .pretraining import pretrain

ABOUT = """\
Trains a ResNet-50 as the paper's variant of MoCo on the 100 classes of ImageNet that it took, which need not be copied
out of it, or on all of them; then a linear classifier of its frozen features, whose accuracy is the result.

The defaults are the plain recipe of ImageNet-100 (128 images, rate 0.03, 200 epochs, 3 alignment + uniformity of t = 3
against 65,536 keys, Eq. 18). --strong is that of MoCo v2: stronger augmentation, a hidden layer in the head, a cosine
decay. ImageNet: --all-classes --strong."""

# What a run can be resumed with only if it is the same, by the names of the options.
PRETRAINING = (
    *("all-classes", "strong", "arch", "crop", "dim", "queue", "momentum", "norm-rows"),
    *("epochs", "batch", "lr", "schedule", "steps", "seed"),
    *("align", "alpha", "uniform", "t", "no-intra", "contrastive", "temperature"),
)
LINEAR = ("linear-epochs", "linear-batch", "linear-lr", "linear-schedule")
# Of a published checkpoint, instead of those of the pre-training.
PRETRAINED = ("pretrained", "all-classes", "arch", "crop", "steps", "seed")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = command_line("imagenet100", ABOUT, out="imagenet100-out")
    command.add_argument("--all-classes", action="store_true", help="all classes of the folder, ImageNet as a whole")
    command.add_argument("--strong", action="store_true", help="MoCo v2's augmentation, head and schedule")
    command.add_argument("--arch", choices=ARCHITECTURES, default="resnet50", help="the encoder (%(default)s)")
    command.add_argument("--crop", type=int, default=224, help="side of the views (%(default)s)")

    loss = command.add_argument_group("the loss, each term with its weight")
    loss.add_argument("--align", type=float, default=3.0, metavar="WEIGHT", help="of the alignment (%(default)s)")
    loss.add_argument("--alpha", type=float, default=2.0, help="its exponent (%(default)s)")
    loss.add_argument("--uniform", type=float, default=1.0, metavar="WEIGHT", help="of the uniformity (%(default)s)")
    loss.add_argument("--t", type=float, default=3.0, help="its inverse width (%(default)s)")
    loss.add_argument("--no-intra", action="store_true", help="Eq. 17: no pairs within the batch")
    loss.add_argument("--contrastive", type=float, default=0.0, metavar="WEIGHT", help="of MoCo's loss (%(default)s)")
    loss.add_argument("--temperature", type=float, default=0.07, help="its temperature (%(default)s)")

    moco = command.add_argument_group("pre-training")
    moco.add_argument("--epochs", type=int, default=200, help="passes over the images (%(default)s)")
    moco.add_argument("--batch", type=int, help="images of a step, of all processes (128; 256 with --all-classes)")
    moco.add_argument("--lr", type=float, default=0.03, help="rate at the start, for this batch (%(default)s)")
    add_schedule(moco, "--schedule", [120, 160], "; --strong has a cosine instead")
    moco.add_argument("--queue", type=int, default=65536, help="keys in the queue (%(default)s)")
    moco.add_argument("--momentum", type=float, default=0.999, help="of the momentum encoder (%(default)s)")
    moco.add_argument("--dim", type=int, default=128, help="dimension of the features (%(default)s)")
    norm_rows = "images that a batch norm takes together: with a batch of 128, those of one of 4 GPUs (%(default)s)"
    moco.add_argument("--norm-rows", type=int, default=32, help=norm_rows)

    linear = command.add_argument_group("linear evaluation")
    pretrained = "of this checkpoint in MoCo's format, the repository's for instance, instead of pre-training"
    linear.add_argument("--pretrained", type=Path, metavar="FILE", help=pretrained)
    linear.add_argument("--linear-epochs", type=int, default=100, help="passes over the images (%(default)s)")
    linear.add_argument("--linear-batch", type=int, default=256, help="of all processes (%(default)s)")
    linear.add_argument("--linear-lr", type=float, default=30.0, help="rate at the start (%(default)s)")
    add_schedule(linear, "--linear-schedule", [60, 80], "")
    return command


def add_schedule(command: argparse._ArgumentGroup, option: str, default: list[int], more: str) -> None:
    """An option for the epochs at which the rate falls."""
    told = f"epochs after which the rate is a tenth ({' '.join(map(str, default))}){more}"
    command.add_argument(option, type=int, nargs="*", default=default, metavar="EPOCH", help=told)


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
    at_least(options, 0, "align", "uniform", "contrastive")
    for name in ("lr", "linear-lr", "alpha", "t", "temperature"):
        if not value_of(options, name) > 0:
            raise OptionError(name, value_of(options, name), "must be > 0")
    if not 0 <= options.momentum < 1:
        raise OptionError("momentum", options.momentum, "must be at least 0 and less than 1")
    if not options.align + options.uniform + options.contrastive > 0:
        raise OptionError("uniform", options.uniform, "a weight of the loss must be > 0")


def work(options: argparse.Namespace) -> None:
    """What `main` does, of options that are parsed.

    Raises:
        OptionError: one of them cannot work.
    """
    if options.batch is None:
        options.batch = 256 if options.all_classes else 128
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
            show(published_as(options), found, out, recipe, tried=options.steps is not None)


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


def published_as(options: argparse.Namespace) -> str:
    """The name in `published.PUBLISHED` of what the options are, or one of which nothing was published."""
    if options.arch != "resnet50":
        return f"imagenet100 --arch {options.arch}"
    if options.pretrained is not None:
        return "imagenet" if options.all_classes else "imagenet100 --pretrained"
    if options.all_classes:
        return "imagenet" if options.strong else "imagenet100 --all-classes"
    return "imagenet100 --strong" if options.strong else "imagenet100"
