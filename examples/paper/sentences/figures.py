"""The scatter of the sentence encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from ..style import MARKERS
from .report import BOTH, CONTRASTIVE, UNTRAINED


def figures(summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Alignment against uniformity of all encoders, coloured by the accuracy on topics."""
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    accuracies = [100 * encoder["topic"] for encoder in summary["encoders"]]
    for family, marker in zip((BOTH, CONTRASTIVE, UNTRAINED), MARKERS, strict=False):
        encoders = [encoder for encoder in summary["encoders"] if encoder["family"] == family]
        points = axes.scatter(
            [encoder["uniformity"] for encoder in encoders],
            [encoder["alignment"] for encoder in encoders],
            c=[100 * encoder["topic"] for encoder in encoders],
            vmin=min(accuracies),
            vmax=max(accuracies),
            cmap="viridis",
            marker=marker,
            edgecolors="0.3",
            linewidths=0.5,
            label=family,
        )
    axes.set_xlabel("uniformity (t = 2), lower is better")
    axes.set_ylabel("alignment (α = 2), lower is better")
    axes.legend()
    figure.colorbar(points, label="accuracy on topics (%)")
    return {"sentences": figure}
