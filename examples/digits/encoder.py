"""The encoder that every objective trains."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Three convolutions and one linear layer: `(N, 1, 8, 8)` images to `(N, dim)` raw features.

    The features are not normalised here: the losses and the evaluation do that.
    """

    def __init__(self, dim: int) -> None:
        """Take the dimension of the features."""
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, 16, stride=1),
            *_convolution(16, 32, stride=2),
            *_convolution(32, 64, stride=2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Encode a batch of images."""
        features: Tensor = self.layers(images)
        return features


def _convolution(channels_in: int, channels_out: int, *, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def new_encoder(dim: int, seed: int, device: torch.device) -> Encoder:
    """Build an encoder whose weights depend on the seed alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(dim).to(device)
