"""What the demo found: single runs, their summary over seeds, and the verdict on the paper's finding."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .evaluate import METRICS, Evaluation
from .objectives import ALIGN_UNIFORM, ALIGNMENT, CONTRASTIVE, UNIFORMITY


class Run(NamedTuple):
    """One trained (or untrained) encoder and what was measured of it."""

    objective: str
    seed: int
    dim: int
    evaluation: Evaluation
    seconds: float


class CircleRun(NamedTuple):
    """A two-dimensional run and the angles of its held-out features, `(N,)` in [-π, π]; first views."""

    run: Run
    angles: NDArray[np.float64]


class Spread(NamedTuple):
    """Mean and sample standard deviation over seeds; the latter is None for a single seed."""

    mean: float
    std: float | None


Summary = Mapping[str, Mapping[str, Spread]]  # objective name -> metric name -> spread


class Finding(NamedTuple):
    """Whether the paper's finding holds, and the comparisons that say so."""

    holds: bool
    lines: tuple[str, ...]


ACCURACIES = {"linear_probe": "linear probe", "scaled_probe": "standardised probe", "knn": "5-NN"}
FAR_ERROR_RATIO = 0.5


def summarize(runs: Iterable[Run]) -> dict[str, dict[str, Spread]]:
    """Summarise each metric of each objective over the seeds."""
    by_objective: dict[str, list[Evaluation]] = {}
    for run in runs:
        by_objective.setdefault(run.objective, []).append(run.evaluation)
    return {
        objective: {metric: _spread([getattr(evaluation, metric) for evaluation in evaluations]) for metric in METRICS}
        for objective, evaluations in by_objective.items()
    }


def _spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def judge(summary: Summary, held_out: int) -> Finding:
    """Compare alignment + uniformity with contrastive and with either term alone.

    The finding holds if, for both probes and for 5-NN, alignment + uniformity is

    - at least as good as contrastive within the margin: its mean is not lower by more than the larger
      standard deviation over seeds of the two, or, if that is larger still, the standard error of one
      accuracy measured on this many held-out images;
    - far above either term alone: higher by more than the same margin, with at most half the errors.

    Args:
        summary: mean and spread of each metric of each objective.
        held_out: number of held-out images.

    Returns:
        The verdict and one line for each comparison; the last line is the verdict in words.
    """
    lines, failed = [], []
    for metric, label in ACCURACIES.items():
        both = summary[ALIGN_UNIFORM.name][metric]
        for other in (CONTRASTIVE, ALIGNMENT, UNIFORMITY):
            rival = summary[other.name][metric]
            margin = _margin(both, rival, held_out)
            gain = both.mean - rival.mean
            if other is CONTRASTIVE:
                success = gain >= -margin
                wanted = "at least as good within the margin"
            else:
                success = gain > margin and 1 - both.mean <= FAR_ERROR_RATIO * (1 - rival.mean)
                wanted = "far above"
            lines.append(
                f"{label}: {ALIGN_UNIFORM.label} {_percent(both.mean)}, {other.label} {_percent(rival.mean)}"
                f", margin {100 * margin:.1f} points: {'' if success else 'NOT '}{wanted}"
            )
            if not success:
                failed.append(f"{label} against {other.label}")
    if failed:
        lines.append(f"The paper's finding does NOT hold in this run: it fails for {'; '.join(failed)}.")
    else:
        lines.append(
            "The paper's finding holds in this run: optimising alignment + uniformity directly is at least "
            "as good as the contrastive loss within the margin, and far above either term alone."
        )
    return Finding(not failed, tuple(lines))


def _margin(a: Spread, b: Spread, held_out: int) -> float:
    standard_errors = (math.sqrt(mean * (1 - mean) / held_out) for mean in (a.mean, b.mean))
    return max(a.std or 0.0, b.std or 0.0, *standard_errors)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
