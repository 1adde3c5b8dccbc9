"""What an encoder is trained with, and the configurations of the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Configuration(NamedTuple):
    """Objective and recipe of a training; what the objective does not have is ``None``.

    Attributes:
        align: weight of the alignment.
        uniform: weight of the uniformity.
        contrastive: weight of the contrastive loss.
        alpha: exponent of the alignment.
        t: of the uniformity.
        tau: temperature of the contrastive loss.
        dim: dimension of the features.
        batch: positive pairs in a step.
        epochs: passes over the training rows.
        rate: learning rate of Adam at the start.
        initial: ``default`` (PyTorch's), ``small`` (the paper's, a normal distribution of 0.02) or ``orthogonal``.
    """

    align: float | None = None
    uniform: float | None = None
    contrastive: float | None = None
    alpha: float | None = None
    t: float | None = None
    tau: float | None = None
    dim: int = 64
    batch: int = 128
    epochs: int = 16
    rate: float = 3e-3
    initial: str = "default"


WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
ALPHAS = (1.0, 2.0)
TS = (1.0, 2.0, 3.0, 5.0, 8.0)
TAUS = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0, 2.5)
RECIPES: Mapping[str, tuple[Any, ...]] = {
    "dim": (2, 4, 8, 16, 32, 64, 128),
    "batch": (16, 32, 64, 128, 256, 512),
    "epochs": (4, 8, 16),
    "rate": (1e-3, 3e-3, 1e-2),
    "initial": ("default", "small", "orthogonal"),
}
# Each family: how many are drawn, and the values that its objective may have.
FAMILIES: Mapping[str, tuple[int, Mapping[str, tuple[float, ...]]]] = {
    "align + uniform": (64, {"align": WEIGHTS, "uniform": WEIGHTS, "alpha": ALPHAS, "t": TS}),
    "contrastive": (42, {"contrastive": (1.0,), "tau": TAUS}),
    "contrastive + align": (10, {"contrastive": (1.0,), "tau": TAUS, "align": WEIGHTS, "alpha": ALPHAS}),
    "contrastive + uniform": (10, {"contrastive": (1.0,), "tau": TAUS, "uniform": WEIGHTS, "t": TS}),
    "all three": (
        10,
        {"contrastive": (1.0,), "tau": TAUS, "align": WEIGHTS, "alpha": ALPHAS, "uniform": WEIGHTS, "t": TS},
    ),
    "uniform": (10, {"uniform": (1.0,), "t": TS}),
    "align": (6, {"align": (1.0,), "alpha": ALPHAS}),
}


def drawn(seed: int = 0) -> list[tuple[str, Configuration]]:
    """Draw the configurations of the sweep, each with the name of its family.

    Within a family every value of an option comes as often as every other, up to one; which meet is random.
    """
    generator = np.random.default_rng(seed)
    found = []
    for family, (count, objective) in FAMILIES.items():
        columns: dict[str, list[Any]] = {}
        for option, values in {**objective, **RECIPES}.items():
            # A random start, or else the first values of an option would be the ones that come once more.
            start = int(generator.integers(len(values)))
            order = generator.permutation([(start + row) % len(values) for row in range(count)])
            columns[option] = [values[index] for index in order]
        found += [
            (family, Configuration(*row))
            for row in zip(*(columns.get(option, [None] * count) for option in Configuration._fields), strict=True)
        ]
    return found
