"""ImageNet's folders: the images of some of its classes, and the batches of an epoch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset
from torchvision.datasets import ImageFolder

from examples.digits.config import OptionError

from ..checkpoint import seeded
from ..session import Session

SPLITS = ("train", "val")
# WordNet's ids of the classes, drawn by Tian et al. ("Contrastive Multiview Coding", ECCV 2020), taken by Wang & Isola.
CLASSES = Path(__file__).with_name("classes.txt").read_text(encoding="utf-8").split()


def classes_of(data: Path, *, everything: bool) -> list[str]:
    """The classes to train with: those of ImageNet-100, or all that there are.

    Raises:
        OptionError: a folder or some classes are missing; they are counted, and the first are named.
    """

    def refuse(what: str) -> OptionError:
        wanted = "must be a folder of ImageNet (image-net.org), train/ and val/ with a folder of images for each class"
        return OptionError("data", data, f"{wanted}; {what}")

    there: dict[str, set[str]] = {}
    for split in SPLITS:
        if not (data / split).is_dir():
            raise refuse(f"there is no {split}/")
        there[split] = {folder.name for folder in (data / split).iterdir() if folder.is_dir()}
    wanted = sorted(there["train"] | there["val"]) if everything else CLASSES
    if len(wanted) < 2:
        raise refuse(f"it has {len(wanted)} classes")
    for split in SPLITS:
        if missing := [name for name in wanted if name not in there[split]]:
            more = ", …" if len(missing) > 5 else ""
            raise refuse(f"{split}/ lacks {len(missing)} of {len(wanted)} classes: {', '.join(missing[:5])}{more}")
    return wanted


class SomeClasses(ImageFolder):
    """Images of the classes given; folders of others are not looked at.

    Raises:
        OptionError: a class has no image.
    """

    def __init__(self, data: Path, split: str, classes: Sequence[str], transform: Callable[[Any], Any]) -> None:
        self._chosen = list(classes)
        try:
            super().__init__(str(data / split), transform)
        except FileNotFoundError as error:
            raise OptionError("data", data, f"{split}/ has classes without images ({error})") from error

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """The classes, and their numbers."""
        return self._chosen, {name: number for number, name in enumerate(self._chosen)}


def training_batches(
    images: Dataset[Any], options: argparse.Namespace, option: str, session: Session, epoch: int, *, drop_last: bool
) -> DataLoader[Any]:
    """This process's part of the batches of an epoch, in random order.

    Order and views depend on seed, epoch, and the numbers of processes and workers alone.

    Args:
        images: with their random transforms.
        options: of the command line.
        option: the one that has the size of a batch, of all processes.
        session: of this process.
        epoch: from 0.
        drop_last: whether a last incomplete batch is left out. Otherwise some images come twice where the processes
            cannot share all of them evenly.
    """
    share = session.share(option, getattr(options, option.replace("-", "_")))
    # Seed and epoch are added there: no two runs shall have an order in common.
    order: DistributedSampler[Any] = DistributedSampler(
        images, session.ranks, session.rank, seed=100_003 * options.seed
    )
    order.set_epoch(epoch)
    views = seeded(options.seed, epoch, 1 + session.rank)  # 0 is what all processes have in common
    return _batches(images, share, options, session, sampler=order, generator=views, drop_last=drop_last)


def validation_batches(
    images: Dataset[Any], batch: int, options: argparse.Namespace, session: Session
) -> DataLoader[Any]:
    """This process's part of the images, each of them once."""
    own = Subset(images, range(session.rank, len(images), session.ranks))
    return _batches(own, batch, options, session)


def _batches(
    images: Dataset[Any], batch: int, options: argparse.Namespace, session: Session, **others: Any
) -> DataLoader[Any]:
    pinned = session.device.type == "cuda"
    return DataLoader(images, batch, num_workers=options.workers, pin_memory=pinned, **others)


def to_device(images: torch.Tensor, session: Session) -> torch.Tensor:
    """On the device of the process."""
    return images.to(session.device, non_blocking=True)
