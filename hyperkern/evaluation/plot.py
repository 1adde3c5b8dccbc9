"""The picture: similarities of sampled pairs against the uniform distribution, uniformity beside its floor."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .. import autograd
from .result import Evaluation, Side
from .sources import Source

SAMPLED_ROWS = 1024  # half a million pairs
BINS = 80
COLORS = ("#0072B2", "#D55E00")  # of the Okabe-Ito palette, which stays apart under colour-vision deficiencies
POSITIVES_COLOR = "#009E73"
DASHES = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "hyperkern",
    "svg.fonttype": "path",
}


def draw(result: Evaluation, sources: Sequence[Source], kind: str) -> bytes:
    """Draw the picture.

    Args:
        result: the figures.
        sources: the features, and the positives if the result is of both.
        kind: ``png`` or ``svg``.

    Returns:
        The content of the file.
    """
    generator = torch.Generator().manual_seed(result.seed)
    index = torch.randperm(result.rows, generator=generator)[:SAMPLED_ROWS].sort().values
    taken = (source.take(index).cpu() for source in sources)
    sampled = [autograd.prepare(rows, normalize=result.normalize, backend="reference") for rows in taken]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
        _draw_pairs(left, result, sampled)
        _draw_values(right, result)
        buffer = io.BytesIO()
        options: dict[str, Any] = {"dpi": 160} if kind == "png" else {"metadata": {"Date": None}}
        figure.savefig(buffer, format=kind, **options)
        return buffer.getvalue()


def uniform_density(similarity: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """The density of the inner product of two independent uniform points on the sphere.

    Args:
        similarity: values inside (-1, 1).
        dim: feature dimension D, >= 2.

    Returns:
        ``(1 - s^2)^((D - 3) / 2)``, normalised.
    """
    log_factor = math.lgamma(dim / 2) - math.lgamma((dim - 1) / 2) - math.log(math.pi) / 2
    density: NDArray[np.float64] = np.exp(log_factor + (dim - 3) / 2 * np.log1p(-(similarity**2)))
    return density


def _draw_pairs(axes: Axes, result: Evaluation, sampled: Sequence[torch.Tensor]) -> None:
    on_sphere = result.floor is not None
    pairs = [_finite(_pairs(x, on_sphere)) for x in sampled]
    positives = np.empty(0)
    if len(sampled) == 2:
        x, y = (side.double() for side in sampled)
        positives = _finite(((x * y).sum(1) if on_sphere else (x - y).norm(dim=1)).numpy())
    found = np.concatenate([*pairs, positives])
    low, high = (found.min(), found.max()) if len(found) else (-1.0, 1.0)
    if on_sphere:  # all of the uniform distribution, a similarity's standard deviation being 1 / sqrt(D)
        wide = 4.5 / math.sqrt(result.dim)
        low, high = max(-1.0, min(low, -wide)), min(1.0, max(high, wide))
    edges = np.linspace(low, high if high > low else low + 1e-6, BINS + 1)
    for side, values, color in zip(result.sides, pairs, COLORS, strict=False):
        _draw_histogram(axes, values, edges, color, f"pairs of {_short(side)}")
    if on_sphere and result.dim >= 2:
        top = axes.get_ylim()[1]
        grid = np.linspace(max(low, -0.9999), min(high, 0.9999), 801)
        density = uniform_density(grid, result.dim)
        axes.plot(grid, density, color="black", linestyle=DASHES, linewidth=1.2, label="uniform distribution")
        # In two dimensions the density has no bound.
        axes.set_ylim(0, 1.05 * max(top, density.max() if result.dim > 2 else 0))
    if len(positives):
        # So much narrower that on one scale nothing would be seen of the others.
        own = axes.twinx()
        _draw_histogram(own, positives, edges, POSITIVES_COLOR, "")
        own.set_ylim(0, 1.5 * own.get_ylim()[1])
        own.set_yticks([])
        own.spines["right"].set_visible(False)
        axes.plot([], [], color=POSITIVES_COLOR, label="positive pairs (own scale)")
    axes.set_xlabel("cosine similarity" if on_sphere else "Euclidean distance")
    axes.set_ylabel("density")
    axes.set_title(f"Pairs of {len(sampled[0]):,} sampled rows, D = {result.dim}", fontweight="bold")
    axes.legend(frameon=False, loc="best")


def _draw_histogram(
    axes: Axes, values: NDArray[np.float64], edges: NDArray[np.float64], color: str, label: str
) -> None:
    if len(values):
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, fill=True, color=color, alpha=0.25)
        axes.stairs(density, edges, color=color, linewidth=1.2, label=label or None)


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def _short(side: Side) -> str:
    """The name of a file without its folder, as text that is drawn as it is."""
    name = side.name.rsplit("/", 1)[-1].encode(errors="replace").decode()
    return name.replace("$", r"\$")  # which would begin a formula


def _pairs(x: torch.Tensor, on_sphere: bool) -> NDArray[np.float64]:
    """Similarities, or distances, of the distinct pairs."""
    i, j = torch.triu_indices(len(x), len(x), 1)
    values = (x @ x.mT)[i, j] if on_sphere else torch.cdist(x, x)[i, j]
    array: NDArray[np.float64] = values.double().numpy()
    return array


def _draw_values(axes: Axes, result: Evaluation) -> None:
    values = [side.uniformity for side in result.sides if math.isfinite(side.uniformity)]
    floor = [] if result.floor is None else [result.floor]
    low, high = min([0.0, *floor, *values]), 0.0
    axes.set_xlim(low - 0.06 * (high - low) - 1e-3, high + 0.03 * (high - low) + 1e-3)
    for row, (side, color) in enumerate(zip(result.sides, COLORS, strict=False)):
        shown = f"{side.uniformity:.4f}"
        if side.standard_error and side.interval:
            shown += f" ± {side.standard_error:.2g}"
            axes.errorbar(side.uniformity, row, xerr=side.interval[1] - side.uniformity, color=color, capsize=5)
        axes.plot(side.uniformity, row, color=color, marker="o", markersize=8)
        in_right_half = not side.uniformity < low / 2
        axes.annotate(
            f"{_short(side)}\n{shown}".replace("-", "−"),
            (side.uniformity if math.isfinite(side.uniformity) else 0.0, row),
            xytext=(-12 if in_right_half else 12, 0),
            textcoords="offset points",
            ha="right" if in_right_half else "left",
            va="center",
        )
    if result.floor is not None:
        axes.axvline(result.floor, color="black", linestyle=DASHES, linewidth=1.2)
        axes.annotate(
            f"uniform distribution\n{result.floor:.4f}".replace("-", "−"),
            (result.floor, 0.02),
            xycoords=("data", "axes fraction"),
            xytext=(12, 0),
            textcoords="offset points",
            va="bottom",
        )
    axes.set_ylim(-0.9, len(result.sides) - 0.4)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("uniformity (lower is better)")
    axes.set_title("Uniformity and its floor", fontweight="bold")
