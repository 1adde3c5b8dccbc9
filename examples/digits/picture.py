"""The picture: features on the circle, and the alignment-uniformity plane."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from .objectives import OBJECTIVES, UNTRAINED
from .results import ACCURACIES, CircleRun, Run

# M. Petroff, "Accessible Color Sequences for Data Visualization" (arXiv:2107.02270): ten colours that
# stay apart under the common colour-vision deficiencies.
DIGIT_COLORS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKERS = ("o", "s", "^", "D")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "svg.hashsalt": "hyperkern",
    "svg.fonttype": "path",
}
CONCENTRATION = 50.0  # of the von Mises kernel: a bandwidth of about 8°
UNIFORM_DENSITY = 1 / (2 * np.pi)
DENSITY_TOP = 4 * UNIFORM_DENSITY
GRAY = "#555555"
DASHES = (0, (4, 3))
POINTS = (("#0072B2", "o"), ("#009E73", "^"), ("#D55E00", "s"))  # of the Okabe-Ito palette, as in ACCURACIES
ERROR_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 90)


def draw(runs: Sequence[Run], circle: Sequence[CircleRun], labels: NDArray[np.int64], limit: float) -> dict[str, bytes]:
    """Draw the picture.

    Args:
        runs: the runs of the plane and of the accuracies, the untrained encoders among them.
        circle: one two-dimensional run for each objective.
        labels: `(N,)` digits of the held-out images, in the order of the angles of `circle`.
        limit: uniformity of the uniform distribution at the dimension of `runs`.

    Returns:
        The file contents by kind, `png` and `svg`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 9.6), layout="constrained")
        halves = figure.add_gridspec(2, 1, height_ratios=[4.3, 3.5])
        top, bottom = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
        circles, densities = top.subplots(2, len(circle), height_ratios=[2.6, 1])
        for column, one in enumerate(circle):
            _draw_circle(circles[column], one, labels)
            _draw_angles(densities[column], one, labels, first=column == 0)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=color, markersize=6, label=str(digit))
            for digit, color in enumerate(DIGIT_COLORS)
        ]
        top.legend(
            handles=handles,
            loc="outside upper center",
            ncols=len(handles),
            frameon=False,
            title="Held-out features of two-dimensional encoders, coloured by digit (ring 0 innermost, 9 outermost)",
            title_fontproperties={"size": 11, "weight": "bold"},
            handletextpad=0.1,
        )
        plane, errors = bottom.subplots(1, 2, width_ratios=[1.25, 1])
        _draw_plane(bottom, plane, runs, limit)
        _draw_errors(errors, runs)
        contents = {}
        for kind, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, **options)
            contents[kind] = buffer.getvalue()
        return contents


def _draw_circle(axes: Axes, circle: CircleRun, labels: NDArray[np.int64]) -> None:
    # Each digit has a ring of its own just inside the unit circle, so that classes never hide each other.
    outline = np.linspace(-np.pi, np.pi, 361)
    for digit, color in enumerate(DIGIT_COLORS):
        radius = 0.52 + 0.048 * digit
        axes.plot(radius * np.cos(outline), radius * np.sin(outline), color="#eeeeee", linewidth=0.6, zorder=0)
        angles = circle.angles[labels == digit]
        axes.scatter(radius * np.cos(angles), radius * np.sin(angles), s=11, color=color, alpha=0.75, linewidths=0)
    axes.plot(np.cos(outline), np.sin(outline), color=GRAY, linewidth=1)
    objective = next(one for one in OBJECTIVES if one.name == circle.run.objective)
    evaluation = circle.run.evaluation
    axes.set_title(objective.label)
    axes.text(
        0,
        0,
        f"alignment\n{_number(evaluation.alignment)}\nuniformity\n{_number(evaluation.uniformity)}",
        ha="center",
        va="center",
        fontsize=8.5,
    )
    axes.set_aspect("equal")
    axes.set_xlim(-1.06, 1.06)
    axes.set_ylim(-1.06, 1.06)
    axes.axis("off")


def _draw_angles(axes: Axes, circle: CircleRun, labels: NDArray[np.int64], *, first: bool) -> None:
    grid = np.linspace(-np.pi, np.pi, 721)
    shares = [von_mises_density(circle.angles[labels == digit], grid) * np.mean(labels == digit) for digit in range(10)]
    axes.stackplot(grid, shares, colors=DIGIT_COLORS, linewidth=0)
    axes.axhline(UNIFORM_DENSITY, color="black", linestyle=DASHES, linewidth=1)
    total = np.sum(shares, axis=0)
    if total.max() > DENSITY_TOP:
        # The label stands on the side where the peak is not.
        x, side = (0.04, "left") if grid[total.argmax()] > 0 else (0.96, "right")
        axes.text(
            x,
            0.95,
            f"peak {total.max() / UNIFORM_DENSITY:.0f} × uniform",
            transform=axes.transAxes,
            ha=side,
            va="top",
            fontsize=8.5,
        )
    axes.set_xlim(-np.pi, np.pi)
    axes.set_ylim(0, DENSITY_TOP)
    axes.set_xticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
    axes.set_yticks([0, UNIFORM_DENSITY], ["0", "uniform"] if first else ["", ""])
    axes.set_xlabel("angle")
    if first:
        axes.set_ylabel("density")


def von_mises_density(angles: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Estimate the density of angles with a von Mises kernel.

    Args:
        angles: `(N,)` radians.
        grid: `(M,)` radians.

    Returns:
        `(M,)` densities; they integrate to 1 over the circle.
    """
    # exp(κ(cos - 1)) with the scaled Bessel function: no overflow however large κ.
    kernel = np.exp(CONCENTRATION * (np.cos(grid[:, None] - angles[None, :]) - 1))
    norm = 2 * np.pi * np.i0(CONCENTRATION) * np.exp(-CONCENTRATION)
    density: NDArray[np.float64] = kernel.mean(axis=1) / norm
    return density


def _draw_plane(figure: SubFigure, axes: Axes, runs: Sequence[Run], limit: float) -> None:
    trained = [run for run in runs if run.objective != UNTRAINED]
    errors = [_error_percent(run, "linear_probe") for run in trained]
    # Accuracies near 100 % differ in their errors: a logarithmic scale of the errors tells them apart.
    lowest = min(errors) / 1.2
    norm = LogNorm(lowest, 100)
    for objective, marker in zip(OBJECTIVES, MARKERS, strict=True):
        points = [run for run in trained if run.objective == objective.name]
        image = axes.scatter(
            [run.evaluation.alignment for run in points],
            [run.evaluation.uniformity for run in points],
            c=[_error_percent(run, "linear_probe") for run in points],
            norm=norm,
            cmap="cividis_r",
            marker=marker,
            s=80,
            edgecolors="black",
            linewidths=0.8,
            zorder=3,
            label=objective.label,
        )
    axes.axhline(limit, color="black", linestyle=DASHES, linewidth=1)
    axes.annotate(
        f"uniform distribution on the sphere: {_number(limit, 3)}",
        (0.02, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, -4),
        textcoords="offset points",
        va="top",
    )
    axes.margins(0.08, 0.1)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, limit - 0.12 * (high - low)), high)
    axes.set_xlabel("alignment of held-out positive pairs (lower is better)")
    axes.set_ylabel("uniformity (lower is better)")
    axes.set_title(f"Alignment–uniformity plane, D = {trained[0].dim}, one point per seed", fontweight="bold")
    axes.legend(loc="upper right", frameon=False)
    bar = figure.colorbar(image, ax=axes, label="linear probe accuracy (%)", pad=0.02, aspect=30)
    ticks = [error for error in ERROR_TICKS if lowest <= error]
    bar.set_ticks(ticks, labels=[f"{100 - error:g}" for error in ticks])
    bar.ax.minorticks_off()
    bar.ax.invert_yaxis()


def _draw_errors(axes: Axes, runs: Sequence[Run]) -> None:
    rows = [*((one.name, one.label) for one in OBJECTIVES), (UNTRAINED, "untrained encoder")]
    for offset, (metric, label), (color, marker) in zip((-0.2, 0.0, 0.2), ACCURACIES.items(), POINTS, strict=True):
        for row, (name, _) in enumerate(rows):
            values = [_error_percent(run, metric) for run in runs if run.objective == name]
            axes.plot([min(values), max(values)], [row + offset] * 2, color=color, linewidth=1.2)
            axes.scatter(
                values,
                [row + offset] * len(values),
                s=30,
                color=color,
                marker=marker,
                alpha=0.85,
                linewidths=0,
                zorder=3,
                label=label if row == 0 else None,
            )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, max(high, 120))
    ticks = [error for error in ERROR_TICKS if low <= error]
    axes.set_xticks(ticks, [f"{error:g}" for error in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [label for _, label in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("errors on held-out images (%, log scale)")
    axes.set_title("Downstream errors, one point per seed", fontweight="bold")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.11), ncols=2, frameon=False)


def _error_percent(run: Run, metric: str) -> float:
    # A logarithmic axis has no zero: an encoder without errors is drawn at the left end.
    error: float = 100 * (1 - getattr(run.evaluation, metric))
    return max(error, ERROR_TICKS[0])


def _number(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")  # the sum makes -0.0 a plain zero
