"""All jobs of the part, and what is kept of their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..job import Job
from .counterexample import descents, exact
from .entropy import entropy
from .flow import flow
from .rates import digits, uniform
from .self_pairs import estimators
from .single import single

SEEDS = [0, 1, 2]
RATES = {"temperatures": [0.07, 0.2, 0.5], "doublings": 20, "draws": 24}
RUNS = [
    ["uniformity", "random", 0],
    ["uniformity", "random", 1],
    ["uniformity", "collapsed", 0],
    ["second term", "random", 0],
]
QUICK_RATES = {"temperatures": [0.5], "doublings": 8, "draws": 3}


def jobs(quick: bool) -> Sequence[Job]:
    """Every job; the names say what it is of, the arguments the rest."""
    rates = QUICK_RATES if quick else RATES
    of_images = {"epochs": 1 if quick else 10, "images": 20 if quick else 200, **rates}
    seeds = SEEDS[:1] if quick else SEEDS
    found = [
        Job(f"rate-{kind}-{seed}", digits, {"seed": seed, "trained": kind == "trained", **of_images}, seconds)
        for kind, seconds in (("trained", 11.0), ("random", 7.0))
        for seed in seeds
    ]
    found += [
        Job(f"rate-uniform-d{dim}", uniform, {"seed": 0, "dim": dim, **rates}, 4.0)
        for dim in ([8] if quick else [3, 8])
    ]
    found += [
        Job(
            f"flow-d{dim}-t{t:g}",
            flow,
            {"dim": dim, "t": t, "sizes": [8, 16] if quick else [32, 128, 384], "runs": RUNS[1:] if quick else RUNS},
            5.0,
        )
        for dim in ([3] if quick else [2, 3, 16])
        for t in ([2.0] if quick else [1.0, 2.0, 4.0])
    ]
    found += [
        Job(
            f"single-d{dim}-tau{tau:g}",
            single,
            {"dim": dim, "temperature": tau, "sizes": [8] if quick else [16, 64], "seeds": seeds},
            3.0,
        )
        for dim in ([2] if quick else [2, 3, 8])
        for tau in ([0.5] if quick else [0.1, 0.5, 1.0])
    ]
    found += [Job(f"distributions-d{dim}", exact, {"dim": dim}, 0.1) for dim in ([3] if quick else [3, 16])]
    found += [
        Job(f"descents-d{dim}", descents, {"dim": dim, "count": 16 if quick else 128, "seeds": seeds}, 2.0)
        for dim in ([3] if quick else [3, 16])
    ]
    found += [
        Job(
            f"self-pairs-d{dim}",
            estimators,
            {
                "seed": 0,
                "dim": dim,
                "t": 2.0,
                "sizes": [8] if quick else [16, 64, 256, 1024],
                "draws": 4 if quick else 100,
            },
            4.0,
        )
        for dim in ([8] if quick else [2, 8])
    ]
    found += [
        Job(
            f"entropy-d{dim}",
            entropy,
            {
                "dim": dim,
                "concentrations": [0.0, 20.0] if quick else [0.0, 5.0, 20.0],
                "temperatures": [0.5] if quick else [1.0, 0.5, 0.2, 0.1, 0.05],
                "sizes": [64] if quick else [256, 1024],
                "seeds": seeds,
            },
            5.0,
        )
        for dim in ([3] if quick else [3, 8])
    ]
    return found


def summarize(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results by the kind of job, in its order: what a claim speaks of stands together."""
    kinds = ("rate", "flow", "single", "distributions", "descents", "self-pairs", "entropy")
    return {
        kind: {name[len(kind) + 1 :]: found for name, found in results.items() if name.startswith(f"{kind}-")}
        for kind in kinds
    }
