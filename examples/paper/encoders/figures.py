"""The figures: the scatter of the paper, the ratio of the weights, fine-tuning."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..part import Summary
from ..style import COLORS, MARKERS
from .plan import DATA, TUNED_EPOCHS
from .report import LABELS, TUNED
from .summary import ACCURACIES

# The families of the sweep in the scatter.
FAMILIES = {
    "align + uniform": ("align + uniform",),
    "contrastive": ("contrastive",),
    "contrastive + one or both": ("contrastive + align", "contrastive + uniform", "all three"),
    "uniform only": ("uniform",),
    "align only": ("align",),
}


def figures(summary: Summary) -> dict[str, Figure]:
    """By the stems of their files."""
    return {
        "encoders-plane": _plane(summary),
        "encoders-ratio": _ratio(summary),
        "encoders-tuning": _tuning(summary),
    }


def _plane(summary: Summary) -> Figure:
    figure = Figure(figsize=(9.6, 8), layout="constrained")
    grid = figure.subplots(len(DATA), len(ACCURACIES), sharex=True, sharey=True, squeeze=False)
    for row, data in zip(grid, DATA, strict=True):
        for axes, accuracy in zip(row, ACCURACIES, strict=True):
            _scatter(figure, axes, summary, data, accuracy)
        row[0].set_ylabel("uniformity (lower is better)")
    for axes in grid[-1]:
        axes.set_xlabel("alignment (lower is better)")
    handles = [
        Line2D([], [], marker=marker, linestyle="", color="#777777", markeredgecolor="black", label=name)
        for marker, name in zip(MARKERS, FAMILIES, strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _scatter(figure: Figure, axes: Axes, summary: Summary, data: str, accuracy: str) -> None:
    pairs = zip(summary["encoders"], summary["measures"][data], strict=True)
    sweep = [(one["family"], found) for one, found in pairs if one["group"] == "sweep" and found is not None]
    values = [found[accuracy] for _, found in sweep]
    low, high = 100 * min(values), 100 * max(values)
    image = None
    for marker, families in zip(MARKERS, FAMILIES.values(), strict=False):
        points = [found for family, found in sweep if family in families]
        image = axes.scatter(
            [found["alignment"] for found in points],
            [found["uniformity"] for found in points],
            c=[100 * found[accuracy] for found in points],
            vmin=low,
            vmax=high,
            cmap="cividis",
            marker=marker,
            s=34,
            edgecolors="black",
            linewidths=0.4,
        )
    axes.set_title(f"{data}: {LABELS[accuracy]}")
    if image is not None:
        figure.colorbar(image, ax=axes, label="accuracy (%)", pad=0.02)


def _ratio(summary: Summary) -> Figure:
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    grid = figure.subplots(2, len(DATA), sharex=True, height_ratios=[1.6, 1], squeeze=False)
    for column, data in enumerate(DATA):
        rows, (top, bottom) = summary["ratio"][data], grid[:, column]
        ratios = [row["value"] for row in rows]
        for accuracy, color, marker in zip(ACCURACIES, COLORS, MARKERS, strict=False):
            means = [100 * row[accuracy]["mean"] for row in rows]
            bars = [100 * (row[accuracy]["std"] or 0) for row in rows]
            top.errorbar(ratios, means, bars, color=color, marker=marker, capsize=2, label=LABELS[accuracy])
        bottom.plot(
            ratios, [np.exp(row["uniformity"]["mean"]) for row in rows], "o-", color=COLORS[2], label="exp(uniformity)"
        )
        bottom.plot(ratios, [row["alignment"]["mean"] for row in rows], "s-", color=COLORS[1], label="alignment")
        top.set_title(data)
        top.set_xscale("log")
        bottom.set_xlabel("weight of alignment : weight of uniformity")
    grid[0, 0].set_ylabel("accuracy (%)")
    grid[0, 0].legend(frameon=False)
    grid[1, 0].legend(frameon=False)
    return figure


def _tuning(summary: Summary) -> Figure:
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    grid = figure.subplots(2, len(DATA), squeeze=False)
    for column, data in enumerate(DATA):
        plane, curve = grid[:, column]
        for (objective, label), color, marker in zip(TUNED.items(), COLORS, MARKERS, strict=False):
            track = {name: np.array(values) for name, values in summary["tuned"][data][objective].items()}
            epochs = [0, *TUNED_EPOCHS][: track["probe"].shape[1]]
            for alignment, uniformity in zip(track["alignment"], track["uniformity"], strict=True):
                plane.plot(alignment, uniformity, color=color, linewidth=0.9, alpha=0.8)
                plane.plot(alignment[-1], uniformity[-1], marker, color=color, markersize=5)
            plane.plot(*(track[name][:, 0] for name in ("alignment", "uniformity")), "o", color="black", markersize=4)
            curve.plot(epochs, 100 * track["probe"].T, color=color, linewidth=0.6, alpha=0.5)
            curve.plot(epochs, 100 * track["probe"].mean(axis=0), f"{marker}-", color=color, label=label)
        plane.set_title(data)
        plane.set_xlabel("alignment")
        curve.set_xlabel("epochs of fine-tuning")
    grid[0, 0].set_ylabel("uniformity")
    grid[1, 0].set_ylabel("linear probe (%)")
    handles, labels = grid[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure
