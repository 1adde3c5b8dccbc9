"""The part of the reproduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..job import Job
from ..part import Part
from . import figures, report
from .experiment import QUICK, Size, measure

SEEDS = 3


class Configuration(NamedTuple):
    """An objective of the comparison.

    Attributes:
        name: of the job.
        label: in table and figure.
        family: what the claims compare.
        fields: of the recipe's `Objective`; ``None`` is no training.
    """

    name: str
    label: str
    family: str
    fields: Mapping[str, float] | None


def _both(align: float, uniform: float, t: float) -> Configuration:
    fields = {"align_weight": align, "uniform_weight": uniform, "t": t}
    label = f"{align:g}·align + {uniform:g}·uniform, t = {t:g}"
    return Configuration(f"align-{align:g}-uniform-{uniform:g}-t-{t:g}", label, report.BOTH, fields)


def _contrastive(temperature: float) -> Configuration:
    fields = {"align_weight": 0.0, "uniform_weight": 0.0, "contrastive_weight": 1.0, "temperature": temperature}
    return Configuration(
        f"contrastive-{temperature:g}", f"contrastive, τ = {temperature:g}", report.CONTRASTIVE, fields
    )


# The first of either kind is the published best, for contrastive losses the first two: of MR and of CR.
CONFIGURATIONS = (
    Configuration("untrained", "untrained", report.UNTRAINED, None),
    _both(0.9, 0.1, 5),
    _both(0.75, 0.25, 5),
    _both(0.5, 0.5, 2),
    _both(0.9, 0.1, 2),
    _contrastive(0.075),
    _contrastive(0.05),
    _contrastive(0.2),
)


def jobs(quick: bool) -> list[Job]:
    """One for each objective, with all its seeds; the quick ones are of one objective of each kind."""
    size = (QUICK if quick else Size())._asdict()
    seeds = list(range(2 if quick else SEEDS))
    first = {one.family: one for one in reversed(CONFIGURATIONS)}
    return [
        Job(
            one.name,
            measure,
            {"objective": one.fields, "seeds": seeds, "size": size},
            seconds=0.7 if quick else 8.0 if one.fields is None else 32.0,
        )
        for one in (first.values() if quick else CONFIGURATIONS)
    ]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """All encoders, and the texts that they are all of."""
    encoders = [
        {"objective": one.label, "family": one.family, **encoder}
        for one in CONFIGURATIONS
        if one.name in results
        for encoder in results[one.name]["encoders"]
    ]
    return {"encoders": encoders, "corpus": results[CONFIGURATIONS[0].name]["corpus"]}


SENTENCES = Part("sentences", jobs, summarize, report.claims, report.blocks, figures.figures, is_smoke_test=True)
