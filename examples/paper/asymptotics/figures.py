"""The pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..part import Summary
from ..style import COLORS, MARKERS
from .report.select import flows, kinds

GRAY = "#555555"


def figures(summary: Summary) -> dict[str, Figure]:
    """All of them, by the stems of their files."""
    return {
        "asymptotics-rates": _rates(summary),
        "asymptotics-flow": _flow(summary),
        "asymptotics-single": _single(summary),
        "asymptotics-entropy": _entropy(summary),
    }


def _rates(summary: Summary) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    expected, drawn = figure.subplots(1, 2)
    found = kinds(summary)
    labels = list(dict.fromkeys(label for label, _ in found))
    temperatures = sorted({tau for _, tau in found})
    for (label, tau), cells in found.items():
        style: dict[str, Any] = {
            "color": COLORS[labels.index(label)],
            "marker": MARKERS[temperatures.index(tau)],
            "markersize": 3.5,
            "linewidth": 0.9,
            "label": f"{label}, τ = {tau:g}",
        }
        counts = 2.0 ** np.arange(len(cells[0]["deviations"]))
        expected.plot(counts, np.mean([np.abs(cell["deviations"]) for cell in cells], axis=0), **style)
        spreads = np.sqrt(np.mean([np.square(cell["anchor_spread"]) for cell in cells], axis=0))
        drawn.plot(cells[0]["counts"], spreads, **style)
    _reference(expected, -1)
    _reference(expected, -0.5)
    _reference(drawn, -0.5)
    expected.set_title("expectation: |loss − log M − limit|")
    drawn.set_title("one draw of the negatives: deviation from the expectation")
    for axes in (expected, drawn):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("number of negatives M")
        axes.set_ylabel("nats")
    figure.legend(*expected.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _reference(axes: Axes, exponent: float) -> None:
    """A line of the exponent through the top of the axes' left end."""
    counts = np.array(axes.lines[0].get_xdata(), float)
    top = max(np.max(line.get_ydata()) for line in axes.lines if line.get_marker() != "None")
    values = 2 * top * counts**exponent
    axes.plot(counts, values, color=GRAY, linestyle=(0, (4, 3)), linewidth=1)
    text = "M$^{-1}$" if exponent == -1 else "M$^{-1/2}$"
    axes.annotate(text, (counts[-1], values[-1]), xytext=(2, 0), textcoords="offset points", color=GRAY, va="center")


def _flow(summary: Summary) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    course, reached = figure.subplots(1, 2)
    settings = list(flows(summary))
    for index, (label, limit, _, runs) in enumerate(settings):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index // len(COLORS)]
        sizes = list(dict.fromkeys(run["points"] for run in runs))
        some = [run for run in runs if run["objective"] == "uniformity"]
        for key, offset, filled in (("with_self", 0.97, True), ("distinct", 1.03, False)):
            values = [np.mean([run[key] for run in some if run["points"] == size]) - limit for size in sizes]
            reached.plot(
                np.array(sizes) * offset,
                values,
                color=color,
                marker=marker,
                markerfacecolor=color if filled else "white",
                markersize=5,
                linewidth=0.8,
                label=label if filled else None,
            )
        for run in some:
            if run["start"] == "collapsed" and run["points"] == sizes[-1]:
                steps = 10 * np.arange(len(run["curve"]))
                course.plot(steps, np.array(run["curve"]), color=color, marker=marker, markersize=3, linewidth=0.9)
                course.axhline(limit, color=color, linestyle=(0, (4, 3)), linewidth=0.7)
    reached.axhline(0, color="black", linewidth=0.8)
    reached.set_xscale("log", base=2)
    reached.set_yscale("symlog", linthresh=1e-3)
    reached.set_xlabel("points N")
    reached.set_ylabel("uniformity minus its limit")
    reached.set_title("minimised: with self-pairs (filled), distinct pairs (open)")
    course.set_xlabel("iterations of L-BFGS")
    course.set_ylabel("uniformity (distinct pairs)")
    course.set_title("from a collapsed start; dashed: the limit")
    figure.legend(*reached.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def _single(summary: Summary) -> Figure:
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    circles = [(name.split("tau")[1], found) for name, found in summary["single"].items() if found["polygons"]]
    for index, (tau, found) in enumerate(circles):
        corners = [int(corner) for corner in found["polygons"]]
        values = [100 * (value / found["uniform"] - 1) for value in found["polygons"].values()]
        style: dict[str, Any] = {"color": COLORS[index], "marker": MARKERS[index], "markersize": 4, "linewidth": 0.9}
        axes.plot(corners, values, **style, label=f"τ = {tau}")
        best = min(run["aligned_value"] for run in found["runs"])
        axes.axhline(100 * (best / found["uniform"] - 1), color=COLORS[index], linestyle=(0, (1, 2)), linewidth=1)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(-1.2, 2.4)
    axes.set_xlabel("corners of a regular polygon of aligned features on the circle")
    axes.set_ylabel("loss over that of uniform features (%)")
    axes.set_title("one negative: below 0, uniform features are no minimiser\n(dotted: points minimised freely)")
    axes.legend(frameon=False)
    return figure


def _entropy(summary: Summary) -> Figure:
    many = summary["entropy"]
    figure = Figure(figsize=(4.4 * len(many), 3.8), layout="constrained")
    for axes, (name, found) in zip(np.atleast_1d(figure.subplots(1, len(many))), many.items(), strict=True):
        most = max(row["points"] for row in found["rows"])
        for index, concentration in enumerate(dict.fromkeys(row["concentration"] for row in found["rows"])):
            rows = [r for r in found["rows"] if r["concentration"] == concentration and r["points"] == most]
            label = "uniform" if concentration == 0 else f"κ = {concentration:g}"
            taus = [row["temperature"] for row in rows]
            for key, line in (("estimates", "-"), ("without_self", ":")):
                style: dict[str, Any] = {
                    "color": COLORS[index],
                    "marker": MARKERS[index],
                    "markersize": 4,
                    "linestyle": line,
                }
                axes.errorbar(
                    taus,
                    [np.mean(row[key]) for row in rows],
                    [np.ptp(row[key]) / 2 for row in rows],
                    **style,
                    label=label if line == "-" else None,
                )
            axes.axhline(rows[0]["truth"], color=COLORS[index], linestyle=(0, (4, 3)), linewidth=0.9)
        axes.set_xscale("log")
        axes.set_xlabel("temperature τ of the kernel, κ = 1/τ")
        axes.set_ylabel("entropy (nats)")
        axes.set_title(f"D = {name[1:]}, {most} points; dashed: truth, dotted: without self-pairs", fontsize=9)
        axes.legend(frameon=False)
    return figure
