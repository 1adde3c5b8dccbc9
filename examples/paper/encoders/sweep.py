"""The configurations of the sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .training.configuration import Configuration

WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0)
ALPHAS = (1.0, 2.0)
TS = (1.0, 2.0, 3.0, 5.0, 8.0)
TAUS = (0.05, 0.07, 0.1, 0.2, 0.5, 1.0, 2.5)
RECIPES: Mapping[str, tuple[Any, ...]] = {
    "dim": (2, 4, 8, 16, 32, 64, 128),
    "batch": (16, 32, 64, 128, 256, 512),
    "epochs": (3, 6, 12),
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
