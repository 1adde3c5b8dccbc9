"""STL-10's files, and random views of its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.datasets import STL10
from torchvision.transforms import v2

from examples.digits.config import OptionError

FOLDER = STL10.base_folder
COUNTS = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
CLASSES = 10
SHAPE = (3, 96, 96)  # of an image in a file: channel, column, row
SIZE = 64  # of a view

# Each ends in bytes, (3, 64, 64), which the encoder scales. Of PIL images, as the paper's were.
CROP = (v2.RandomResizedCrop(SIZE, scale=(0.08, 1)), v2.RandomHorizontalFlip())
PAIRS = v2.Compose([*CROP, v2.ColorJitter(0.4, 0.4, 0.4, 0.4), v2.RandomGrayscale(0.2), v2.PILToTensor()])
LABELLED = v2.Compose([*CROP, v2.PILToTensor()])
HELD_OUT = v2.Compose([v2.Resize(70), v2.CenterCrop(SIZE), v2.PILToTensor()])


class Pixels(Dataset[NDArray[np.uint8]]):
    """The images of a file, ``(3, 96, 96)`` bytes each. Workers are given its name, not its content."""

    def __init__(self, path: Path, rows: int) -> None:
        self._file = np.memmap(path, np.uint8, mode="r", shape=(rows, *SHAPE))
        self._opened = path, rows

    def __len__(self) -> int:
        return self._opened[1]

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        image: NDArray[np.uint8] = self._file[index]
        return image

    def __reduce__(self) -> tuple[type[Pixels], tuple[Path, int]]:
        return Pixels, self._opened

    def head(self, rows: int | None) -> Pixels:
        """The first of them."""
        path, all_rows = self._opened
        return self if rows is None else Pixels(path, min(rows, all_rows))


class Labelled(NamedTuple):
    """Images as they are in the file, and their classes from 0."""

    pixels: Pixels
    labels: NDArray[np.int64]

    def head(self, rows: int | None) -> Labelled:
        """The first of them, all for ``None``."""
        return Labelled(self.pixels.head(rows), self.labels[:rows])


Images = Pixels | ConcatDataset[NDArray[np.uint8]]


class Data(NamedTuple):
    """The labelled splits, and the paper's training set: the training split and the images without labels."""

    train: Labelled
    test: Labelled
    unlabelled: Images


def load(folder: Path) -> Data:
    """Open the files. Nothing is read yet but labels: images come from disk, or its cache, as they are needed.

    Torchvision's loader of the same files reads all three gigabytes at each start, to check them, and copies them.

    Args:
        folder: with ``stl10_binary`` in it, or that folder itself.

    Raises:
        OptionError: a file is missing or is none of STL-10; it is named.
    """
    binary = folder if folder.name == FOLDER or not (folder / FOLDER).is_dir() else folder / FOLDER
    names = [name for name, _ in (*STL10.train_list, *STL10.test_list)]
    missing = [name for name in names if not (binary / name).is_file()]
    if missing:
        lacking = missing[0] if folder.is_dir() else "such folder"
        raise OptionError(
            "data",
            folder,
            f"must be a folder with STL-10 in {FOLDER}/ ({', '.join(names)}), from {STL10.url}: --download brings it, "
            f"2.6 GB; there is no {lacking}",
        )
    train, test = (
        Labelled(_pixels(folder, binary / f"{split}_X.bin"), _labels(folder, binary, split))
        for split in ("train", "test")
    )
    unlabelled: Images = ConcatDataset([train.pixels, _pixels(folder, binary / "unlabeled_X.bin")])
    return Data(train, test, unlabelled)


def _pixels(folder: Path, path: Path) -> Pixels:
    size, image = path.stat().st_size, int(np.prod(SHAPE))
    if not size or size % image:
        raise OptionError("data", folder, f"{path} has {size} bytes, no whole number of images of {image}")
    return Pixels(path, size // image)


def _labels(folder: Path, binary: Path, split: str) -> NDArray[np.int64]:
    labels = np.fromfile(binary / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
    images = (binary / f"{split}_X.bin").stat().st_size // int(np.prod(SHAPE))
    if len(labels) != images or labels.min() < 0 or labels.max() >= CLASSES:
        raise OptionError(
            "data", folder, f"{split}_y.bin must have a class, 1 to {CLASSES}, for each of {images} images"
        )
    return labels


def generator(*numbers: int) -> torch.Generator:
    """Random numbers that depend on these alone, and are unrelated to those of other ones."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


class Views(Dataset[Tensor]):
    """Random views of images, ``(copies, 3, 64, 64)`` bytes of ``[epoch, index]``.

    They depend on seed, epoch and index alone, not on batches, processes or workers.
    """

    def __init__(self, pixels: Images, transform: v2.Transform, seed: int, copies: int = 1) -> None:
        self._pixels, self._transform, self._seed, self._copies = pixels, transform, seed, copies

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        epoch, index = place
        image = Image.fromarray(np.ascontiguousarray(self._pixels[index].transpose(2, 1, 0)))
        with torch.random.fork_rng(devices=[]):  # transforms draw from PyTorch's own generator
            torch.set_rng_state(generator(self._seed, epoch, index).get_state())
            return torch.stack([self._transform(image) for _ in range(self._copies)])

    def batches(self, places: Iterator[list[tuple[int, int]]], workers: int, device: torch.device) -> Iterator[Tensor]:
        """Views of the places of each batch, ``(copies, batch, 3, 64, 64)`` bytes on the device."""
        loader = DataLoader(
            self,
            batch_sampler=places,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=generator(self._seed),  # of what no view depends on; PyTorch's own is left as it was
        )
        for views in loader:
            yield views.to(device, non_blocking=True).transpose(0, 1)


def in_order(rows: int, batch: int, epoch: int = 0) -> Iterator[list[tuple[int, int]]]:
    """The places of all images, in batches."""
    for start in range(0, rows, batch):
        yield [(epoch, index) for index in range(start, min(start + batch, rows))]
