"""What the results file has of the encoders: every one with its configuration, and the statistics of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from examples.digits.data import HELD_OUT_SIZE

from ..statistics import Estimate, spread
from .agreement import Columns, agreement, best_of, best_weight, gain_of_both
from .plan import DATA, Planned, named
from .training.evaluation import Measures
from .training.signals import HELD_OUT_SIZE as HELD_OUT_SIGNALS

HELD_OUT = {"digits": HELD_OUT_SIZE, "mnist1d": HELD_OUT_SIGNALS}
ACCURACIES = ("probe", "knn")
# exp(uniformity), the mean Gaussian potential of two rows, is 1 where all rows are one point.
COLLAPSED = math.log(0.9)
# In few dimensions no encoder can be uniform: what is left of the agreement among those that could.
WIDE = 32
GRIDS = {"ratio": "align_uniform", "temperature": "contrastive"}  # the family of each


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise the results of the jobs, by their names."""
    quick = f"{DATA[0]}-{list(named(False))[-1][0]}" not in results
    planned = [one for _, of_job in named(quick) for one in of_job]
    measures = {
        data: [found for name, _ in named(quick) for found in results[f"{data}-{name}"]["measures"]] for data in DATA
    }
    sweeps = {data: _of(planned, measures[data], lambda one: one.group == "sweep") for data in DATA}
    wide = {
        data: _of(planned, measures[data], lambda one: one.group == "sweep" and one.configuration.dim >= WIDE)
        for data in DATA
    }
    grids = {group: {data: _grid(planned, measures[data], group) for data in DATA} for group in GRIDS}
    other = dict(zip(DATA, reversed(DATA), strict=True))
    weights = {
        data: {accuracy: best_weight(_columns(sweeps[other[data]], accuracy)) for accuracy in ACCURACIES}
        for data in DATA
    }
    return {
        "held_out": HELD_OUT,
        "encoders": [_described(one) for one in planned],
        "measures": measures,
        "counts": {data: _counts(planned, measures[data]) for data in DATA},
        "weights": weights,
        "agreement": {
            data: {
                accuracy: {
                    "all": agreement(_columns(sweeps[data], accuracy), weights[data][accuracy]),
                    "wide": agreement(_columns(wide[data], accuracy), weights[data][accuracy]),
                }
                for accuracy in ACCURACIES
            }
            for data in DATA
        },
        "halves": {
            data: {accuracy: _halves(_columns(sweeps[data], accuracy)) for accuracy in ACCURACIES} for data in DATA
        },
        **grids,
        "best": {data: {accuracy: _best(grids, data, accuracy) for accuracy in ACCURACIES} for data in DATA},
        "tuned": {data: _tuned(results, data) for data in DATA},
    }


Measured = Mapping[str, float]


def _described(one: Planned) -> dict[str, Any]:
    options = {name: value for name, value in one.configuration._asdict().items() if value is not None}
    return {"group": one.group, "family": one.family, "seed": one.seed, **options}


def _of(
    planned: Sequence[Planned], measures: Sequence[Measured | None], chosen: Callable[[Planned], bool]
) -> list[Measured]:
    """The measures of those that are chosen and did not diverge."""
    return [found for one, found in zip(planned, measures, strict=True) if found is not None and chosen(one)]


def _columns(measures: Sequence[Measured], accuracy: str) -> Columns:
    names = (accuracy, "alignment", "uniformity", "contrastive")
    return Columns(*(np.array([found[name] for found in measures]) for name in names))


def _counts(planned: Sequence[Planned], measures: Sequence[Measured | None]) -> dict[str, int]:
    sweep = [found for one, found in zip(planned, measures, strict=True) if one.group == "sweep"]
    kept = [found for found in sweep if found is not None]
    return {
        "encoders": len(sweep),
        "diverged": len(sweep) - len(kept),
        "collapsed": sum(found["uniformity"] > COLLAPSED for found in kept),
        "wide": sum(one.group == "sweep" and one.configuration.dim >= WIDE for one in planned),
    }


def _halves(columns: Columns) -> dict[str, Any]:
    groups = {
        name: {"n": int(chosen.sum()), "mean": float(columns.accuracy[chosen].mean()) if chosen.any() else None}
        for name, chosen in best_of(columns).items()
    }
    best_third = int(best_of(columns, parts=3)["both"].sum())
    return {"groups": groups, "gain": gain_of_both(columns), "best_third": best_third}


def _grid(planned: Sequence[Planned], measures: Sequence[Measured | None], group: str) -> list[dict[str, Any]]:
    """Mean and spread over seeds of every measure, by the value of the grid.

    Raises:
        ValueError: all encoders of a value diverged.
    """
    values = sorted({float(one.family) for one in planned if one.group == group})
    found = []
    for value in values:
        of_value = _of(planned, measures, lambda one, value=value: one.group == group and one.family == value)
        if not of_value:
            raise ValueError(f"all encoders of {group} {value:g} diverged")
        row = {name: spread([one[name] for one in of_value]) for name in Measures._fields}
        found.append({"value": value, **row})
    return found


def _best(grids: Mapping[str, Mapping[str, Any]], data: str, accuracy: str) -> dict[str, Any]:
    """Of each family the value that cross-validation on training rows prefers, and its held-out accuracy."""
    found = {}
    for group, family in GRIDS.items():
        row = max(grids[group][data], key=lambda row: row[f"{accuracy}_validation"]["mean"])
        found[family] = {"value": row["value"], **row[accuracy]}
    return found


def _tuned(results: Mapping[str, Any], data: str) -> dict[str, Any]:
    """By objective and measure a list for each seed: the start, then after each epoch that was measured."""
    jobs = [result for name, result in results.items() if name.startswith(f"{data}-tuned-")]
    names = [name for name in Measures._fields if not name.endswith("validation")]
    return {
        objective: {
            name: [[one["start"][name], *(row[name] for row in one["tracks"][objective])] for one in jobs]
            for name in names
        }
        for objective in jobs[0]["tracks"]
    }


def change(track: Sequence[Sequence[float]]) -> Estimate | None:
    """The mean change from start to end over seeds, and its 95 % interval by Student's t; ``None`` for one seed."""
    changes = [values[-1] - values[0] for values in track]
    if len(changes) < 2:
        return None
    low, high = scipy.stats.ttest_1samp(changes, 0).confidence_interval()
    return Estimate(float(np.mean(changes)), float(low), float(high))
