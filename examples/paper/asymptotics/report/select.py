"""Results by what a claim speaks of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ...part import Summary


class Rate(NamedTuple):
    """A configuration of the loss against M."""

    features: str
    cell: Mapping[str, Any]


def rates(summary: Summary) -> Iterator[Rate]:
    """Every configuration, with what its features are of."""
    for name, found in summary["rate"].items():
        for cell in found["temperatures"]:
            yield Rate(name, cell)


def kinds(summary: Summary) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    """The configurations by features and temperature; encoders of several seeds stand together."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for name, cell in rates(summary):
        kind, index = name.split("-")
        label = f"uniform, D = {index[1:]}" if kind == "uniform" else f"{kind} encoder"
        found.setdefault((label, cell["temperature"]), []).append(cell)
    return found


def flows(summary: Summary) -> Iterator[tuple[str, float, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Dimension and t in words, the limit, the result and its runs."""
    for name, found in summary["flow"].items():
        dim, t = name.split("-")
        yield f"D = {dim[1:]}, t = {t[1:]}", found["limit"], found, found["runs"]
