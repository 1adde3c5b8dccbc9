"""The paper's figures, beside which a recipe shows its own.

Of Wang & Isola, arXiv:2005.10242, and the repositories that go with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hyperkern.files import as_json, write_files

RESULT = "result.json"
# By recipe, whose figures they are; where it is not said, the first two of these.
USUAL = ("paper, best contrastive", "paper, best alignment + uniformity")
OF: Mapping[str, tuple[str, ...]] = {
    "stl10": (
        "paper, contrastive(τ=0.19)",
        "paper, 0.98 alignment + 0.96 uniformity(t=2)",
        "paper, contrastive(τ=0.5) + uniformity(t=2)",
    ),
    "nyu-depth": ("paper, 0.5 contrastive(τ=0.1)", "paper, 0.75 alignment + 0.5 uniformity(t=2)"),
    "imagenet100 --recipe paper": ("paper, contrastive(τ=0.07)", "paper, 3 alignment + uniformity(t=3)"),
    "imagenet100 --recipe plain": ("repository, contrastive(τ=0.2)", "repository, 3 alignment + uniformity(t=3)"),
    "imagenet100 --recipe strong": ("repository, contrastive(τ=0.2)", "repository, 3 alignment + uniformity(t=3)"),
    "imagenet": ("MoCo v2, contrastive(τ=0.2), ± 0.1", "paper, 3 alignment + uniformity(t=3)"),
}
# By recipe and measure, in that order.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "stl10": {
        "output, linear (%)": (80.46, 81.15, 81.06),
        "output, 5-NN (%)": (78.75, 78.89, 79.05),
        "fc7, linear (%)": (83.89, 84.43, 84.14),
        "fc7, 5-NN (%)": (76.33, 76.78, 76.48),
    },
    "nyu-depth": {"conv5, MSE": (0.7024, 0.7014), "conv4, MSE": (0.7575, 0.7592)},
    "imagenet100 --recipe paper": {"top-1 (%)": (72.80, 74.60), "top-5 (%)": (91.64, 92.74)},
    "imagenet100 --recipe plain": {"top-1 (%)": (75.54, 75.62)},
    "imagenet100 --recipe strong": {"top-1 (%)": (77.54, 77.66)},
    "imagenet": {"top-1 (%)": (67.5, 67.69)},
    "bookcorpus": {"MR (%)": (77.51, 73.76), "CR (%)": (83.86, 80.95)},
}


def show(
    name: str,
    found: Mapping[str, float],
    out: Path,
    recipe: Mapping[str, Any],
    *,
    tried: bool,
    published_with: Mapping[str, Any] | None = None,
) -> None:
    """Print what was found beside what was published, and write it to ``out/result.json``.

    Args:
        name: of the recipe in `PUBLISHED`.
        found: value of each of its measures; further ones are shown without a published value.
        out: folder.
        recipe: options that the figures belong to.
        tried: whether ``--steps`` cut it short, which is said: its figures mean nothing.
        published_with: options, by the names of ``recipe``, that the published figures belong to, but for the loss;
            which of them were others here is said.
    """
    published = PUBLISHED.get(name, {})
    of = OF.get(name, USUAL) if published else ()
    other = {key: value for key, value in (published_with or {}).items() if recipe.get(key) != value}
    table = Table()
    for head in ("measure", "here", *of):
        table.add_column(head, justify="left" if head == "measure" else "right")
    for measure, value in found.items():
        table.add_row(measure, f"{value:.4g}", *(f"{one:.4g}" for one in published.get(measure, ())))
    console = Console(width=100)
    console.print(f"{name}{': a trial of a few steps, whose figures mean nothing' if tried else ''}", highlight=False)
    console.print(table)
    if of and other:
        told = ", ".join(f"{key} {value} (here {recipe.get(key)})" for key, value in other.items())
        console.print(f"The published figures are of {told}.", highlight=False)
    content = {"recipe": name, "options": json.loads(json.dumps(recipe, default=str)), "tried": tried}
    results = {measure: {"here": value, "published": published.get(measure)} for measure, value in found.items()}
    write_files(
        {
            out / RESULT: as_json(
                {**content, "published": of, "published with": dict(published_with or {}), "results": results}
            )
        }
    )
