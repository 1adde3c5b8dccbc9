"""The figure of the smoke test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..style import COLORS, MARKERS


def figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """The errors of every objective, and where they lie among the metrics."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    encoders = summary["encoders"]
    for place, errors in enumerate(encoders.values()):
        for shift, layer in ((-0.15, "conv5"), (0.15, "conv4")):
            shown = {"color": COLORS[layer == "conv4"], "marker": MARKERS[layer == "conv4"], "linestyle": ""}
            label = layer if place == 0 else None
            left.plot(errors[layer], np.full(len(errors[layer]), place + shift), alpha=0.7, label=label, **shown)
    left.axvline(summary["mean depth"], color="gray", linestyle="--", label="the mean depth")
    left.set_yticks(range(len(encoders)), [summary["formulas"].get(name, name) for name in encoders], fontsize=7)
    left.invert_yaxis()
    left.set_xlabel("mean squared error, m²")
    left.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    columns = (
        np.concatenate([one[name] for one in encoders.values()]) for name in ("alignment", "uniformity", "conv5")
    )
    alignment, uniformity, error = columns
    points = right.scatter(uniformity, alignment, c=error, cmap="viridis_r", edgecolors="black", linewidths=0.4)
    right.set_xlabel("uniformity")
    right.set_ylabel("alignment")
    figure.colorbar(points, label="MSE from conv5, m²")
    return {"depth": figure}
