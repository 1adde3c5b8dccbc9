"""Fills the tables of the documentation from the results that are committed: no figure in them is typed by hand.

``python -m benchmarks.pages`` rewrites what stands between ``<!-- NAME -->`` and ``<!-- end -->`` in docs/scaling.md.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import scaling

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    """The content of a result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown: a first column of words, then figures."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def ranks() -> str:
    """Losses over ranks beside one process."""
    found = result("ranks_cpu")["rows"]
    ranks = found[0]["ranks"]
    kinds = ("one_process", "gather", "ring")
    heads = ["loss + gradient", "N", "one process", f"{ranks} ranks, gathered", f"{ranks} ranks, ring"]
    rows = []
    for row in found:
        cells = (
            f"{row[k]['median_ms']:.0f} ± {row[k]['iqr_ms'] / 2:.0f} ms, {row[k]['peak_mib']:.0f} MiB" for k in kinds
        )
        rows.append([f"`{row['loss']}`", f"{row['n']:,}", *cells])
    return table(heads, rows)


def cached() -> str:
    """Memory and time of `cached_step`."""
    found = result("cached_step_cpu")
    times = {row["n"]: row for row in found["times_s"]}
    heads = ["pairs", "embeddings", "the loss alone", "cached_step", "ordinary step", "time of the same chunks by hand"]
    rows = []
    for row in found["peaks_mib"]:
        time = times[row["n"]]["alignment"]
        sizes = [f"{row[k]:.0f} MiB" for k in ("embeddings", "loss_alone", "cached", "one_shot")]
        rows.append([f"{row['n']:,}", *sizes, f"{time['over_bare']:.2f}"])
    return table(heads, rows)


def estimate() -> str:
    """How good the estimate of uniformity is."""
    heads = ["features", "deviation of columns alone", "deviation", "variance ÷", "the interval covers"]
    rows = []
    for row in result("estimate")["rows"]:
        deviations = [f"{row[k]:.1e}" for k in ("plain_deviation", "deviation")]
        rows.append([row["features"], *deviations, f"{row['variance_ratio']:.1f}", f"{100 * row['coverage']:.1f} %"])
    return table(heads, rows)


BLOCKS: dict[str, Callable[[], str]] = {
    **{f"model {i}": lambda i=i: scaling.tables()[i] for i in range(3)},
    "ranks": ranks,
    "cached": cached,
    "estimate": estimate,
}
PAGES = [ROOT / "docs" / "scaling.md"]


def filled(text: str) -> str:
    """A page with its tables made anew."""
    for name, content in BLOCKS.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        made = content()
        text = re.sub(pattern, lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main() -> None:
    """Writes all pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
