"""The results file: what every part found, the claims' verdicts, and what it all ran on."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperkern.bench.machine import describe

from .parts import PARTS
from .runner import Done

COMMITTED = Path(__file__).parent / "results.json"
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "gensim", "mnist1d", "matplotlib")


class ResultsError(ValueError):
    """A file is not one of results; the message names it."""


def assemble(cells: Mapping[str, Mapping[str, Done]], *, quick: bool) -> dict[str, Any]:
    """Make the content of the file from the jobs' results by part and name; parts that were not run are left out."""
    ran = [part for part in PARTS if part.name in cells]
    summaries = {
        part.name: part.summarize({name: done.result for name, done in cells[part.name].items()}) for part in ran
    }
    return {
        "machine": dataclasses.asdict(describe("cpu")),
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
        "quick": quick,
        "core_seconds": sum(done.seconds for jobs in cells.values() for done in jobs.values()),
        "jobs": sum(map(len, cells.values())),
        "claims": claims(summaries),
        "parts": summaries,
    }


def claims(parts: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The claims of each part, with their verdicts, from what the file has of the parts."""
    return {
        part.name: [claim._asdict() for claim in part.claims(parts[part.name])] for part in PARTS if part.name in parts
    }


def read(path: Path) -> dict[str, Any]:
    """Read a file of results.

    Raises:
        ResultsError: it is missing or no such file.
    """
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["parts"], dict) and isinstance(found["claims"], dict):
            content: dict[str, Any] = found
            return content
    except OSError as error:
        raise ResultsError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError):
        pass
    raise ResultsError(f"{path} is no file of results of the paper's reproduction")


def check_whole(results: Mapping[str, Any], path: Path) -> None:
    """Whether results can be the committed ones.

    Raises:
        ResultsError: they are of a quick run, whose figures mean nothing, or of some parts.
    """
    if results.get("quick") is not False:
        raise ResultsError(f"{path} is of a quick run, whose figures mean nothing")
    if missing := [part.name for part in PARTS if part.name not in results["parts"]]:
        raise ResultsError(f"{path} is of a run without {', '.join(missing)}")
