"""What fills the registry: the cases and baselines that come with the package, and files of your own."""

from __future__ import annotations

import runpy
from pathlib import Path

from .registry import BenchError


def load_all() -> None:
    """Enters what comes with the package."""
    from . import baselines, cases  # noqa: F401, imported they are entered


def load_file(path: Path) -> None:
    """Runs a file of your own that registers cases and implementations.

    Raises:
        BenchError: it cannot be read, or fails.
    """
    load_all()
    try:
        runpy.run_path(str(path), run_name="hyperkern_bench_file")
    except OSError as error:
        raise BenchError(f"argument --load: cannot read {str(path)!r}: {error.strerror}") from error
    except (Exception, SystemExit) as error:
        raise BenchError(f"argument --load: {str(path)!r} fails: {type(error).__name__}: {error}") from error
