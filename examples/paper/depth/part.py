"""The part as the reproduction runs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..job import Job
from ..part import Part
from . import figures, report
from .experiment import ALIGN_UNIFORM, CONTRASTIVE, OBJECTIVES, QUICK, SEEDS, UNTRAINED, Budget, encoders


def jobs(quick: bool) -> list[Job]:
    """A job for each seed: its encoders are trained on the same views."""
    names = [UNTRAINED, ALIGN_UNIFORM, CONTRASTIVE] if quick else list(OBJECTIVES)
    budget = list(QUICK if quick else Budget())
    return [
        Job(f"seed {seed}", encoders, {"seed": seed, "names": names, "budget": budget}, seconds=45)
        for seed in range(2 if quick else SEEDS)
    ]


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """The error of the mean depth, and what each encoder has, in the order of the seeds."""
    found = list(results.values())
    encoders_of = {
        name: {measure: [one["encoders"][name][measure] for one in found] for measure in measures}
        for name, measures in found[0]["encoders"].items()
    }
    formulas = {name: str(objective) for name in encoders_of if (objective := OBJECTIVES[name]) is not None}
    return {"mean depth": found[0]["mean depth"], "formulas": formulas, "encoders": encoders_of}


DEPTH = Part("depth", jobs, summarize, report.claims, report.blocks, figures.figures, is_smoke_test=True)
