"""The handwritten-digit images, their split, and the random views of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SPLIT_SEED = 0
HELD_OUT_SIZE = 600  # a third: one image is 0.17 % of accuracy

MAX_ROTATION = math.radians(20)
MAX_LOG_SCALE = 0.2
MAX_SHEAR = 0.2
MAX_SHIFT = 0.25  # one pixel: grid coordinates span 2 over 8 pixels
MAX_CONTRAST_CHANGE = 0.4
MAX_NOISE = 0.15


class Digits(NamedTuple):
    """The 1797 images of scikit-learn's digits in a fixed stratified split.

    Images are `(N, 1, 8, 8)` float32 in [0, 1]; labels are `(N,)` digits 0 to 9.
    """

    train_images: Tensor
    train_labels: NDArray[np.int64]
    held_out_images: Tensor
    held_out_labels: NDArray[np.int64]


def load(device: torch.device) -> Digits:
    """Load the images that scikit-learn carries (no download) and split them."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    train_images, held_out_images, train_labels, held_out_labels = train_test_split(
        images,
        digits.target,
        test_size=HELD_OUT_SIZE,
        random_state=SPLIT_SEED,
        stratify=digits.target,
    )
    return Digits(
        torch.from_numpy(train_images).to(device),
        train_labels,
        torch.from_numpy(held_out_images).to(device),
        held_out_labels,
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one random view of each image: affine warp, contrast, noise.

    Args:
        images: `(N, 1, H, W)`, values in [0, 1].
        generator: source of all the randomness, on the images' device.

    Returns:
        The views, of the images' shape, dtype and range.
    """
    n = images.shape[0]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=images.device) * 2 - 1

    angle = MAX_ROTATION * uniform(n)
    scale = torch.exp(MAX_LOG_SCALE * uniform(n))
    shear = MAX_SHEAR * uniform(n)
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    linear = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], dim=-1).view(n, 2, 2)
    affine = torch.cat([linear, MAX_SHIFT * uniform(n, 2, 1)], dim=-1)  # (N, 2, 3)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    views = views * (1 + MAX_CONTRAST_CHANGE * uniform(n, 1, 1, 1))
    views = views + MAX_NOISE * uniform(*images.shape)
    return views.clamp(0, 1)
