"""Writes the figures of the documentation from the results that are committed: none of them is typed by hand.

``python -m benchmarks.pages`` rewrites what stands between ``<!-- NAME -->`` and ``<!-- end -->`` in `PAGES`, the
pictures in docs/images/benchmark, and docs/contrastive-benchmark.md.
"""

import re
from collections.abc import Callable
from pathlib import Path

from tools.kernels import predict
from tools.kernels import report as kernels

from . import contrastive, readme, scaling
from .tables import ROOT, result, table

IMAGES = ROOT / "docs" / "images" / "benchmark"


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


def repeats() -> str:
    """How often nothing was called a regression."""
    found = result("repeats_cpu")
    runs = found["runs"]
    failed, once = sum(run["status"] != 0 for run in runs), sum(run["not_again"] for run in runs)
    low, high = min(run["smallest_ratio"] for run in runs), max(run["largest_ratio"] for run in runs)
    beside = f"Of {len(runs)} runs of {runs[0]['rows']} rows beside a first one with `--fail-over "
    verdicts = (
        f"{100 * found['threshold']:g}%`, nothing changed, {failed} failed; {once} rows were slower, but not every time"
    )
    return f"{beside}{verdicts}. The ratios of medians went from {low:.2f} to {high:.2f}."


BLOCKS: dict[str, Callable[[], str]] = {
    **{f"model {i}": lambda i=i: scaling.tables()[i] for i in range(3)},
    "ranks": ranks,
    "cached": cached,
    "estimate": estimate,
    "repeats": repeats,
    **readme.BLOCKS,
    **kernels.BLOCKS,
    **predict.BLOCKS,
}
_DOCS = ("scaling", "benchmarking", "kernels", "performance")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _DOCS)]


def filled(text: str) -> str:
    """A page with its tables made anew."""
    for name, content in BLOCKS.items():
        pattern = rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)"
        made = content()
        text = re.sub(pattern, lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text, flags=re.DOTALL)
    return text


def files() -> dict[Path, str]:
    """What the documentation's files have to contain."""
    contents = {page: filled(page.read_text(encoding="utf-8")) for page in PAGES}
    contents[contrastive.PAGE] = contrastive.page(result("contrastive_cpu"))
    return contents | {IMAGES / name: image for name, image in readme.images().items()}


def main() -> None:
    """Writes all of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
