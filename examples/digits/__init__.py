"""The demo: the paper's comparison of objectives on real images, and one huge batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import DemoConfig, OptionError

if TYPE_CHECKING:
    from .report import Results

__all__ = ["DemoConfig", "OptionError", "run_demo"]


def run_demo(config: DemoConfig) -> Results:
    """Train, evaluate, report and write the files; needs ``pip install '.[demo]'``.

    Args:
        config: the options.

    Returns:
        All that was found.

    Raises:
        OptionError: an option cannot work; raised before any training.
        hyperkern.files.OutputError: the folder could be written to before the training, and not after it.
    """
    # Late, so that the command line can name the options without the demo's own dependencies.
    from .pipeline import run

    return run(config)
