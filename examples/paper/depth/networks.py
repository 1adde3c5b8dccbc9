"""The encoder, and the network that predicts depth from what is inside of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

CHANNELS = (96, 192, 384, 384, 192)
HIDDEN = 4096
POOLED = (1, 2, 5)  # the convolutions that halve the image, by their numbers from 1
HALVINGS = {layer: sum(pool <= layer for pool in POOLED) for layer in range(1, 6)}
STRIDE = 2 ** len(POOLED)


class Encoder(nn.Module):
    """Five convolutions and three linear layers: ``(N, 3, size, size)`` images to ``(N, dim)`` raw features.

    The layers are those of the paper's encoder of STL-10, a variant of AlexNet. The pools are padded: the depth
    predictor of its Table 6 wants an image that was halved so and so often. The features are not normalised here, the
    losses do that.

    Args:
        size: of the square images, a multiple of 8.
        dim: of the features.
        channels: of the convolutions.
        hidden: width of the linear layers.
    """

    def __init__(self, size: int, dim: int, channels: Sequence[int] = CHANNELS, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.channels = tuple(channels)
        widths = zip((3, *channels), channels, strict=False)
        self.convolutions = nn.ModuleList(
            _convolution(inside, outside, pool=number in POOLED) for number, (inside, outside) in enumerate(widths, 1)
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            *_linear(channels[-1] * (size // STRIDE) ** 2, hidden),
            *_linear(hidden, hidden),
            nn.Linear(hidden, dim),
        )
        self.apply(_initialize)

    def activations(self, images: Tensor, layer: int) -> Tensor:
        """What comes out of a convolution, of its batch norm, ReLU and pool: ``layer`` from 1 to 5."""
        for convolution in self.convolutions[:layer]:
            images = convolution(images)
        return images

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch of images."""
        features: Tensor = self.head(self.activations(images, len(self.convolutions)))
        return features


class DepthPredictor(nn.Module):
    """Table 6 of the paper: transposed convolutions that double the image and halve the channels, and a convolution.

    Args:
        channels: of the activations that it is given.
        doublings: so many, to come back to the size of the encoder's images.
        mean: of the depths of the training images; the network predicts what differs from it,
        std: in this unit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, doublings: int, mean: float, std: float) -> None:
        super().__init__()
        widths = [channels // 2**halving for halving in range(doublings + 1)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(inside, outside, 3, stride=2, padding=1, output_padding=1),
                    nn.BatchNorm2d(outside),
                    nn.ReLU(),
                )
                for inside, outside in itertools.pairwise(widths)
            ),
            nn.Conv2d(widths[-1], 1, 3, padding=1),
        )
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, activations: Tensor) -> Tensor:
        """Depths ``(N, 1, size, size)`` in the unit of the mean."""
        depths: Tensor = self.mean + self.std * self.layers(activations)
        return depths


def _convolution(inside: int, outside: int, *, pool: bool) -> nn.Sequential:
    layers = [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, padding=1)] if pool else []))


def _linear(inside: int, outside: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inside, outside, bias=False), nn.BatchNorm1d(outside), nn.ReLU()


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
