"""What is trained: the sweep, the two grids of one recipe, the fine-tunings; as jobs of a few encoders each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..job import Job
from .sweep import drawn
from .training.configuration import Configuration
from .training.jobs import fine_tune, train_encoders

DATA = ("digits", "mnist1d")
# Of one recipe, that of `Configuration`: the ratio of the weights (of sum 2, as the paper's 1 and 1), the temperature.
RATIOS = tuple(float(f"{10.0**power:.3g}") for power in np.linspace(-2, 2, 9))
TEMPERATURES = tuple(float(f"{tau:.2g}") for tau in np.geomspace(0.05, 2.5, 9))
SEEDS = (0, 1, 2)
SWEEP_SEED = 100  # of its first encoder; the seeds of the grids are others
PER_JOB = 4
TUNED_SEEDS = (0, 1, 2, 3)
TUNED_EPOCHS = (1, 2, 4, 8, 12)  # after which a fine-tuned encoder is measured
START: dict[str, Any] = {}
TUNED: dict[str, Any] = {"epochs": TUNED_EPOCHS[-1], "rate": 1e-3}
# The least that runs every line.
QUICK: dict[str, Any] = {"dim": 32, "batch": 256, "epochs": 1}
QUICK_ROWS = 700


class Planned(NamedTuple):
    """An encoder to be trained on each data set.

    Attributes:
        group: ``sweep``, ``ratio`` or ``temperature``.
        family: of the sweep, or the value of the grid.
        configuration: objective and recipe.
        seed: of weights, order and views.
    """

    group: str
    family: str | float
    configuration: Configuration
    seed: int


def encoders(quick: bool) -> list[Planned]:
    """All encoders but the fine-tuned ones, the same for each data set."""
    sweep = [Planned("sweep", name, one, SWEEP_SEED + row) for row, (name, one) in enumerate(drawn())]
    if quick:
        firsts = list({one.family: one for one in reversed(sweep)}.values())
        sweep = [one._replace(configuration=one.configuration._replace(**QUICK)) for one in firsts[::2]]
        broken = sweep[0].configuration._replace(rate=1e30)  # diverges
        sweep.append(sweep[0]._replace(configuration=broken))
    ratios, temperatures, seeds = (RATIOS, TEMPERATURES, SEEDS) if not quick else ((0.1, 1.0, 10.0), (0.1, 1.0), (0,))
    recipe = QUICK if quick else {}
    grids: list[tuple[str, float, dict[str, Any]]] = [
        *(("ratio", ratio, weighted(ratio)) for ratio in ratios),
        *(("temperature", tau, {"contrastive": 1.0, "tau": tau}) for tau in temperatures),
    ]
    return sweep + [
        Planned(group, value, Configuration(**options, **recipe), seed)
        for group, value, options in grids
        for seed in seeds
    ]


def weighted(ratio: float) -> dict[str, Any]:
    """Options of alignment and uniformity whose weights have a ratio."""
    weights = {"align": 2 * ratio / (1 + ratio), "uniform": 2 / (1 + ratio)}
    return {name: float(f"{weight:.4g}") for name, weight in weights.items()} | {"alpha": 2.0, "t": 2.0}


def named(quick: bool) -> Iterator[tuple[str, list[Planned]]]:
    """The encoders of each job, by the end of its name."""
    for group in ("sweep", "ratio", "temperature"):
        of_group = [one for one in encoders(quick) if one.group == group]
        for number, first in enumerate(range(0, len(of_group), PER_JOB)):
            yield f"{group}-{number:02}", of_group[first : first + PER_JOB]


def jobs(quick: bool) -> list[Job]:
    """All jobs, of both data sets."""
    rows = QUICK_ROWS if quick else None
    found = [
        Job(
            f"{data}-{name}",
            train_encoders,
            {"data": data, "rows": rows, "encoders": [_arguments(one) for one in planned]},
            sum(_seconds(one.configuration) for one in planned),
        )
        for data in DATA
        for name, planned in named(quick)
    ]
    start, tuned, at = (START, TUNED, TUNED_EPOCHS) if not quick else (QUICK, QUICK | {"rate": 1e-3}, (1,))
    seconds = _seconds(Configuration(**START)) + 4 * _seconds(Configuration(**TUNED)) + 4 * len(at) * MEASURE_SECONDS
    for data in DATA:
        for seed in TUNED_SEEDS if not quick else (0,):
            arguments = {"data": data, "rows": rows, "seed": seed, "start": start, "tuned": tuned, "at": at}
            found.append(Job(f"{data}-tuned-{seed}", fine_tune, arguments, seconds))
    return found


MEASURE_SECONDS = 0.3


def _seconds(one: Configuration) -> float:
    # Of both data sets: an epoch of large batches takes 0.2 s, small ones add what a step takes of itself.
    return one.epochs * (0.18 + 6 / one.batch) + MEASURE_SECONDS


def _arguments(one: Planned) -> dict[str, Any]:
    options = {name: value for name, value in one.configuration._asdict().items() if value is not None}
    return {"configuration": options, "seed": one.seed}
