"""The second data set: one-dimensional signals that mnist1d generates, random views of them, and their encoder.

Source: Greydanus & Kobak, "Scaling Down Deep Learning with MNIST-1D" (arXiv:2011.14439).
"""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LENGTH = 40
TRAIN_SIZE, HELD_OUT_SIZE = 2000, 1000

# A view varies what the generator varies between the signals of a class: two views lie as far apart as two signals.
MAX_SHIFT = 13.0  # samples, around the circle: the generator shifts by up to 27
MAX_STRETCH = 0.2
MAX_AMPLITUDE_CHANGE = 0.2
MAX_TILT = 0.5
MAX_NOISE = 0.1


class Signals(NamedTuple):
    """Signals `(N, 1, 1, 40)`, float32 of mean 0 and standard deviation 1; labels `(N,)` are digits 0 to 9."""

    train: Tensor
    train_labels: NDArray[np.int64]
    held_out: Tensor
    held_out_labels: NDArray[np.int64]


def load() -> Signals:
    """Generate the signals, always the same. The global generators, which mnist1d seeds, are left as they were."""
    from mnist1d.data import get_dataset_args, make_dataset  # late: it loads matplotlib

    numpy_state, python_state = np.random.get_state(), random.getstate()
    options = get_dataset_args()
    options.num_samples = TRAIN_SIZE + HELD_OUT_SIZE
    options.train_split = TRAIN_SIZE / options.num_samples
    try:
        made = make_dataset(options)
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
    train, held_out = (torch.from_numpy(made[key].astype(np.float32))[:, None, None] for key in ("x", "x_test"))
    return Signals(train, made["y"], held_out, made["y_test"])


def augment(signals: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one random view of each signal: shift and stretch around the circle, amplitude, tilt, noise.

    Args:
        signals: `(N, 1, 1, L)`.
        generator: source of all the randomness.

    Returns:
        The views, of the signals' shape.
    """
    n, length = signals.shape[0], signals.shape[-1]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) * 2 - 1

    time = torch.linspace(-1, 1, length)
    position = (1 + MAX_STRETCH * uniform(n, 1)) * torch.arange(length) + MAX_SHIFT * uniform(n, 1)
    before = position.floor()
    share = position - before
    left, right = before.long() % length, (before.long() + 1) % length
    flat = signals.view(n, length)
    views = flat.gather(1, left) * (1 - share) + flat.gather(1, right) * share
    views = views * (1 + MAX_AMPLITUDE_CHANGE * uniform(n, 1)) + MAX_TILT * uniform(n, 1) * time
    return (views + MAX_NOISE * uniform(n, length)).view_as(signals)


class SignalEncoder(nn.Module):
    """Three convolutions and one linear layer: `(N, 1, 1, 40)` signals to `(N, dim)` raw features.

    A signal is an image of one row: PyTorch's two-dimensional convolutions are twice as fast here.
    """

    def __init__(self, dim: int) -> None:
        """Take the dimension of the features."""
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(1, 16, 5),
            *_convolution(16, 32, 3),
            *_convolution(32, 64, 3),
            nn.Flatten(),
            nn.Linear(64 * LENGTH // 8, dim),
        )

    def forward(self, signals: Tensor) -> Tensor:
        """Encode a batch of signals."""
        features: Tensor = self.layers(signals)
        return features


def _convolution(channels_in: int, channels_out: int, width: int) -> tuple[nn.Module, ...]:
    padding = (0, width // 2)
    return (
        nn.Conv2d(channels_in, channels_out, (1, width), stride=(1, 2), padding=padding, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )
