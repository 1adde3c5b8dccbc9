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
# By recipe and measure: the best with a contrastive loss, the best with alignment and uniformity alone.
PUBLISHED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "stl10": {
        "output, linear (%)": (80.46, 81.15),
        "output, 5-NN (%)": (78.75, 78.89),
        "fc7, linear (%)": (83.89, 84.43),
        "fc7, 5-NN (%)": (76.33, 76.78),
    },
    "nyu-depth": {"conv5, MSE": (0.7024, 0.7014), "conv4, MSE": (0.7575, 0.7592)},
    "imagenet100": {"top-1 (%)": (72.80, 74.60), "top-5 (%)": (91.64, 92.74)},
    "imagenet100 --strong": {"top-1 (%)": (77.54, 77.66)},
    "imagenet": {"top-1 (%)": (67.5, 67.69)},
    "bookcorpus": {"MR (%)": (77.51, 73.76), "CR (%)": (83.86, 80.95)},
}


def show(name: str, found: Mapping[str, float], out: Path, recipe: Mapping[str, Any], *, tried: bool) -> None:
    """Print what was found beside what was published, and write it to ``out/result.json``.

    Args:
        name: of the recipe in `PUBLISHED`.
        found: value of each of its measures; further ones are shown without a published value.
        out: folder.
        recipe: options that the figures belong to.
        tried: whether ``--steps`` cut it short, which is said: its figures mean nothing.
    """
    published = PUBLISHED.get(name, {})
    table = Table(title=f"{name}{': a trial of a few steps, whose figures mean nothing' if tried else ''}")
    for head in ("measure", "here", "paper, contrastive", "paper, alignment + uniformity"):
        table.add_column(head, justify="left" if head == "measure" else "right")
    for measure, value in found.items():
        table.add_row(measure, f"{value:.4g}", *(f"{one:.4g}" for one in published.get(measure, ())))
    Console(width=100).print(table)
    content = {"recipe": name, "options": json.loads(json.dumps(recipe, default=str)), "tried": tried}
    results = {measure: {"here": value, "published": published.get(measure)} for measure, value in found.items()}
    write_files({out / RESULT: as_json({**content, "results": results})})
