"""Writes the figures of the documentation from the results that are committed: none of them is typed by hand.

``python -m benchmarks.pages`` rewrites what stands between ``<!-- NAME -->`` and ``<!-- end -->`` in `PAGES`, and the
pictures in docs/images/benchmark.
"""

from collections.abc import Callable
from pathlib import Path

from tools import blocks
from tools.kernels import pages as kernels
from tools.kernels import predict

from . import readme, scaling, shown
from .tables import ROOT

IMAGES = ROOT / "docs" / "images" / "benchmark"


BLOCKS: dict[str, Callable[[], str]] = {
    **{f"model {i}": lambda i=i: scaling.tables()[i] for i in range(3)},
    **shown.BLOCKS,
    **readme.BLOCKS,
    **kernels.BLOCKS,
    **predict.BLOCKS,
}
_DOCS = ("backends", "results", "scaling", "benchmarking", "contrastive-benchmark", "kernels", "performance")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _DOCS)]


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return blocks.filled(text, {name: content() for name, content in BLOCKS.items()})


def files() -> dict[Path, str]:
    """What the documentation's files have to contain."""
    contents = {page: filled(page.read_text(encoding="utf-8")) for page in PAGES}
    return contents | {IMAGES / name: image for name, image in readme.images().items()}


def main() -> None:
    """Writes all of them."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
