"""Images and depths, the random views of them, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from examples.digits.config import OptionError

from ..recipes.checkpoint import seeded
from ..recipes.session import Session

MARGIN = 70 / 64  # what an evaluated image is larger than its crop, as for STL-10


class Scenes(NamedTuple):
    """Images with their depths.

    Attributes:
        images: ``(N, 3, H, W)`` uint8.
        depths: ``(N, 1, H, W)`` float32 in metres; what is not finite is not known.
    """

    images: Tensor
    depths: Tensor

    def resized(self, size: int) -> Scenes:
        """As they are evaluated: the shorter side a little more than ``size``."""
        side = [round(size * MARGIN)]
        parts = (whole.split(64) for whole in self)  # some at a time: in between they are floating-point numbers
        return Scenes(*(torch.cat([v2.functional.resize(part, side, antialias=True) for part in one]) for one in parts))


class Scale(NamedTuple):
    """Mean and standard deviation of each colour, of values from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Scale:
        """That of the images, ``(N, 3, H, W)`` uint8."""
        moments = torch.stack([torch.stack(torch.std_mean(image / 255, dim=(1, 2))[::-1]) for image in images])
        mean = moments[:, 0].mean(0)
        var = (moments[:, 1] ** 2 + (moments[:, 0] - mean) ** 2).mean(0)
        return cls(tuple(mean.tolist()), tuple(var.sqrt().tolist()))

    def layers(self) -> list[v2.Transform]:
        """Transforms from uint8 to what a network is given."""
        return [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(*self)]


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Positive pairs: two random views of each image, as the paper draws them on STL-10.

    Args:
        images: ``(N, 3, H, W)`` uint8.
        size: of the views.
        scale: of the colours.
        least_area: the least share of an image that a view shows.
    """

    def __init__(self, images: Tensor, size: int, scale: Scale, least_area: float) -> None:
        self._images = images
        self._view = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=(least_area, 1), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.4, 0.4, 0.4, 0.4),
                v2.RandomGrayscale(0.2),
                *scale.layers(),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(self._images[index])
        return self._view(image).as_subclass(Tensor), self._view(image).as_subclass(Tensor)


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Crops of resized images with their depths.

    Args:
        scenes: see `Scenes.resized`.
        size: of the crops.
        scale: of the colours.
        random: crops anywhere, every other one mirrored; else those of the middle.
    """

    def __init__(self, scenes: Scenes, size: int, scale: Scale, *, random: bool) -> None:
        self._scenes = scenes
        crop = [v2.RandomCrop(size), v2.RandomHorizontalFlip()] if random else [v2.CenterCrop(size)]
        self._transform = v2.Compose([*crop, *scale.layers()])

    def __len__(self) -> int:
        return len(self._scenes.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = tv_tensors.Image(self._scenes.images[index])
        image, depth = self._transform(image, tv_tensors.Mask(self._scenes.depths[index]))
        return image.as_subclass(Tensor), depth.as_subclass(Tensor)


class Loader(NamedTuple):
    """Makes the batches of an epoch.

    Attributes:
        session: this process, which gets its share of each batch.
        batch: images of a batch, of all processes.
        seed: of order and views; both depend on it and the epoch alone.
        workers: processes that make the views, 0 for none.
        steps: at most so many batches.
    """

    session: Session
    batch: int
    seed: int
    workers: int = 0
    steps: int | None = None

    def __call__(self, dataset: Dataset[tuple[Tensor, Tensor]], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the data set in random order, on the session's device; a last incomplete one is left out.

        Raises:
            OptionError: there are fewer images than a batch takes, or it cannot be shared evenly.
        """
        rows = len(dataset)
        share = self.session.share("batch", self.batch)
        if self.batch > rows:
            raise OptionError("batch", self.batch, f"must be at most {rows}, the number of training images")
        steps = rows // self.batch if self.steps is None else min(self.steps, rows // self.batch)
        order = torch.randperm(rows, generator=seeded(self.seed, epoch))[: steps * self.batch]
        own = order.view(steps, self.session.ranks, share)[:, self.session.rank]
        generator = seeded(self.seed, epoch, 1 + self.session.rank)
        loader = DataLoader(
            dataset,
            batch_sampler=own.tolist(),
            num_workers=self.workers,
            generator=generator,
            pin_memory=self.session.device.type == "cuda",
        )
        for first, second in loader:
            yield first.to(self.session.device), second.to(self.session.device)


def all_of(dataset: Dataset[tuple[Tensor, Tensor]], seed: int) -> tuple[Tensor, Tensor]:
    """The whole data set in its order, with the random views of a seed."""
    seeded(seed, 0)
    first, second = zip(*(dataset[index] for index in range(len(dataset))), strict=True)
    return torch.stack(first), torch.stack(second)
