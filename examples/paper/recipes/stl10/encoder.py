"""The paper's encoder of STL-10, a small AlexNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .data import SIZE

# Of STL-10's channels, in [0, 1].
MEAN = (0.44087801806139126, 0.42790631331699347, 0.3867879370752931)
STD = (0.26826768628079806, 0.2610450402318512, 0.26866836876860795)
CONVOLUTIONS = (96, 192, 384, 384, 192)  # channels, of 3 x 3 each
POOLED = (0, 1, 4)  # after which there is max pooling, 3 x 3 by steps of 2
HIDDEN = 4096
INIT_STD = 0.02


class Encoder(nn.Module):
    """Eight blocks: five convolutions, fc6, fc7 and a linear one. The output is not normalised: losses do that.

    Batch norm and ReLU follow all but the last. Weights are drawn from N(0, 0.02²), biases are 0.

    Args:
        dim: of the output.
        hidden: width of fc6 and fc7.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        blocks, channels, side = [], 3, SIZE
        for index, wider in enumerate(CONVOLUTIONS):
            layers = [
                nn.Conv2d(channels, wider, 3, padding=1, bias=False),
                nn.BatchNorm2d(wider),
                nn.ReLU(inplace=True),
            ]
            if index in POOLED:
                layers.append(nn.MaxPool2d(3, 2))
                side = (side - 3) // 2 + 1
            blocks.append(nn.Sequential(*layers))
            channels = wider
        blocks.append(nn.Sequential(nn.Flatten(), *_dense(channels * side**2, hidden)))
        blocks.append(nn.Sequential(*_dense(hidden, hidden)))
        blocks.append(nn.Sequential(nn.Linear(hidden, dim)))
        self.blocks = nn.ModuleList(blocks)
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, 0, INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, layer: int = -1) -> Tensor:
        """Features of a layer.

        Args:
            images: ``(N, 3, 64, 64)`` bytes.
            layer: index of the block, -1 for the output, -2 for fc7.

        Returns:
            ``(N, dim)`` for the output, ``(N, hidden)`` for fc7.
        """
        features = (images / 255 - self.mean) / self.std
        for block in self.blocks[: range(len(self.blocks))[layer] + 1]:
            features = block(features)
        return features


def _dense(width: int, wider: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, wider, bias=False), nn.BatchNorm1d(wider), nn.ReLU(inplace=True)


def new_encoder(dim: int, seed: int) -> Encoder:
    """An encoder whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(dim, HIDDEN)
