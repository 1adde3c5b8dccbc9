"""The encoder: a ResNet whose last layer makes the features."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from examples.digits.config import OptionError

from ..checkpoint import UNREADABLE

ARCHITECTURES = ("resnet18", "resnet34", "resnet50")
# What the checkpoints of MoCo and of its variant have before the names of the encoder's layers.
PREFIX = "module.encoder_q."


class Encoder(nn.Module):
    """A ResNet without its classifier, and a head.

    In training it takes the images in parts, whose batch statistics are their own, as if each part were on a GPU of its
    own. MoCo needs that: where queries and keys have statistics of the same images in common, these give away which key
    belongs to which query.

    Args:
        architecture: one of `ARCHITECTURES`.
        dim: of the features.
        mlp: whether the head has a hidden layer, as wide as its input, as MoCo v2's has.
        norm_rows: images of a part.
        seed: decides the weights.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, Section 3.3.
    """

    def __init__(self, architecture: str, dim: int, *, mlp: bool, norm_rows: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk: nn.Module = models.get_model(architecture, num_classes=dim)
            last: nn.Linear = self.trunk.fc
            width = last.in_features
            self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), last) if mlp else last
        self.trunk.fc = nn.Identity()
        self.width, self.norm_rows = width, norm_rows

    def forward(self, images: Tensor) -> Tensor:
        """``(N, dim)`` features, not normalised, of ``(N, 3, H, W)`` images."""
        parts = images.split(self.norm_rows) if self.training else (images,)
        return self.head(torch.cat([self.trunk(part) for part in parts]))


def new_encoder(options: argparse.Namespace) -> Encoder:
    """The encoder that the options of the command line describe."""
    return Encoder(
        options.arch, options.dim, mlp=options.recipe == "strong", norm_rows=options.norm_rows, seed=options.seed
    )


def load_published(path: Path, encoder: Encoder) -> None:
    """Load the trunk from a checkpoint in the format of MoCo's repository, which its variant's has too.

    Raises:
        OptionError: the file cannot be read, or is not of such an encoder.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        layers = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        encoder.trunk.load_state_dict({name: value for name, value in layers.items() if not name.startswith("fc.")})
    except OSError as error:
        raise OptionError("pretrained", path, f"cannot be read ({error.strerror})") from error
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        wanted = f"must be a checkpoint of MoCo, whose state_dict has {PREFIX}…"
        raise OptionError("pretrained", path, f"{wanted} ({reason})") from error
