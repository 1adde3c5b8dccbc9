"""What the smoke test says of the paper's statements on depths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from ..claim import Claim, verdict
from ..statistics import bootstrap, spearman, spread
from .experiment import ALIGN_UNIFORM, CONTRASTIVE, OBJECTIVES, UNTRAINED

Summary = Mapping[str, Any]
WORSE = 0.05  # of the contrastive loss's error: what still counts as no worse


class Difference(NamedTuple):
    """The mean of differences by seed and its 95 % interval, by Student's t."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Difference:
        """First minus second, of the same seeds."""
        interval = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
        return cls(float(np.mean(first) - np.mean(second)), float(interval.low), float(interval.high))

    @property
    def is_below(self) -> bool | None:
        """Whether all of the interval is below 0; not if all is above, else ``None``."""
        return True if self.high < 0 else False if self.low > 0 else None

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]".replace("-", "−")


def claims(summary: Summary) -> list[Claim]:
    """The statements with their verdicts."""
    return [_learned(summary), _no_worse(summary), _layers(summary), _agreement(summary)]


def _learned(summary: Summary) -> Claim:
    errors = {name: summary["encoders"][name]["conv5"] for name in (UNTRAINED, ALIGN_UNIFORM, CONTRASTIVE)}
    found = {name: Difference.of(errors[name], errors[UNTRAINED]) for name in (ALIGN_UNIFORM, CONTRASTIVE)}
    below = [one.is_below for one in found.values()]
    means = ", ".join(f"{name} {_spread(values)}" for name, values in errors.items())
    return Claim(
        "What an encoder has learned without depths helps to predict them",
        "Section 5, Table 2",
        "depth predictors on frozen conv5 activations of the paper's best objective of either kind, and on those of "
        "the encoders as they were initialised",
        f"square metres: {means}, the mean depth {summary['mean depth']:.3f}; minus the untrained ones, by seed: "
        + ", ".join(f"{name} {one}" for name, one in found.items()),
        "both 95 % intervals are below 0; it fails if one is above",
        verdict(True if all(below) else False if False in below else None),
    )


def _no_worse(summary: Summary) -> Claim:
    ours, theirs = (summary["encoders"][name]["conv5"] for name in (ALIGN_UNIFORM, CONTRASTIVE))
    found, allowed = Difference.of(ours, theirs), WORSE * float(np.mean(theirs))
    return Claim(
        "Alignment and uniformity alone predict depth no worse than the contrastive loss",
        "Table 2: 0.7014 and 0.7024 from conv5",
        f"{summary['formulas'][ALIGN_UNIFORM]} beside {summary['formulas'][CONTRASTIVE]}, the paper's best, from conv5",
        f"{_spread(ours)} and {_spread(theirs)} square metres; difference by seed {found}",
        f"the 95 % interval is below {allowed:.3f}, {WORSE:.0%} of the contrastive error; it fails if it is above",
        verdict(True if found.high < allowed else False if found.low > allowed else None),
    )


def _layers(summary: Summary) -> Claim:
    conv5, conv4 = (
        np.mean([summary["encoders"][name][layer] for name in (ALIGN_UNIFORM, CONTRASTIVE)], axis=0)
        for layer in ("conv5", "conv4")
    )
    found = Difference.of(conv5, conv4)
    return Claim(
        "Depth is predicted better from conv5 than from conv4",
        "Table 2: 0.70 and 0.76",
        "the mean error of the paper's best objective of either kind, by seed",
        f"{_spread(conv5)} and {_spread(conv4)} square metres; difference by seed {found}",
        "the 95 % interval is below 0; it fails if it is above",
        verdict(found.is_below),
    )


def _agreement(summary: Summary) -> Claim:
    best = OBJECTIVES[ALIGN_UNIFORM]
    assert best is not None
    rows = [one for name, one in summary["encoders"].items() if name != UNTRAINED]
    alignment, uniformity, errors = (
        np.concatenate([one[measure] for one in rows]) for measure in ("alignment", "uniformity", "conv5")
    )
    both = bootstrap(spearman, best.align_weight * alignment + best.uniform_weight * uniformity, errors)
    each = [f"{spearman(values, errors):.2f}".replace("-", "−") for values in (alignment, uniformity)]
    return Claim(
        "Encoders of low alignment and uniformity metrics are those that predict depth best",
        "Section 5, Figure 5",
        f"Spearman's rank correlation of {best.align_weight:g} alignment + {best.uniform_weight:g} uniformity, both on "
        f"held-out views, with the error from conv5, over {len(errors)} trained encoders: so few are an indication",
        f"{both}; of the alignment alone {each[0]}, of the uniformity alone {each[1]}",
        "the 95 % bootstrap interval is above 0; it fails if it is below",
        verdict(True if both.low > 0 else False if both.high < 0 else None),
    )


def blocks(summary: Summary) -> dict[str, str]:
    """The table of all objectives."""
    head = [
        "| trained for | alignment | uniformity | MSE from conv5 | MSE from conv4 |",
        "| --- | --: | --: | --: | --: |",
    ]
    rows = [
        "| " + " | ".join([_label(name, summary), *(_spread(one[measure]) for measure in MEASURES)]) + " |"
        for name, one in summary["encoders"].items()
    ]
    mean = f"{summary['mean depth']:.3f}"
    return {"depth errors": "\n".join([*head, *rows, f"| the mean depth, no encoder | | | {mean} | {mean} |"])}


MEASURES = ("alignment", "uniformity", "conv5", "conv4")


def _label(name: str, summary: Summary) -> str:
    return summary["formulas"].get(name, f"{name}, batch norm's statistics apart")


def _spread(values: Sequence[float]) -> str:
    found = spread(values)
    return f"{found['mean']:.3f} ± {found['std']:.3f}".replace("-", "−")
