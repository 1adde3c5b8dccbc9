"""What the choice of a backend costs a call, where the one that is taken was found right by a check on this machine.

``python -m benchmarks.choice --json FILE``. A backend that computes by the reference stands for the kernels, and a
record in a folder of its own for their check, so that this runs anywhere. In turns: the choice of a call as it is; that
of a problem that has not been met before, as with a scale that changes at every step; and both for a backend that a
committed result shows right, which nobody asks about.
"""

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hyperkern import backends
from hyperkern.backends import Problem, reference
from hyperkern.bench.machine import describe
from hyperkern.check import first_use, records
from hyperkern.check.scope import Scope
from hyperkern.spec import PairSpec

from .measure import write

NAME, CPU = "recorded", torch.device("cpu")
CALLS = 2000
_SCALES = itertools.count(1)


def install(evidence: str) -> None:
    """Puts the backend in front of all others."""
    module: Any = ModuleType(f"hyperkern.backends.{NAME}")
    module.unsupported = module.unverified = lambda problem: []
    module.evidence = lambda device: evidence
    module.LOSSES = reference.LOSSES
    sys.modules[module.__name__] = module
    backends._imported.cache_clear()
    backends.chosen.cache_clear()
    backends.PRIORITY = (NAME, "reference")


def again() -> None:
    """The choice of a loss that has been called before."""
    backends.select(None, Problem("loss", CPU, torch.bfloat16, 128, None, "bfloat16"))


def anew() -> None:
    """The choice of a primitive with a scale that no call has had."""
    spec = PairSpec(float(next(_SCALES)), True, precision="bfloat16")
    backends.select(None, Problem("row_lse", CPU, torch.float32, 128, spec, "bfloat16"))


def microseconds(call: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - start) / CALLS / 1e3


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description="What the choice of a backend costs a call.")
    parser.add_argument("--rounds", type=int, default=25, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        record = records.Record("passed", "", records.now(), 1.0, 1, 0.0)
        records.write(records.machine(NAME, CPU), {Scope("bfloat16", 128): record})
        for _ in range(args.rounds):
            for kind, evidence in (("recorded", ""), ("committed", "a result file")):
                install(evidence)
                first_use._verdicts.clear()
                for name, call in (("again", again), ("anew", anew)):
                    call()
                    assert backends.select(None, Problem("loss", CPU, torch.bfloat16, 128, None, "bfloat16")).LOSSES
                    samples.setdefault(f"{name}, {kind}", []).append(microseconds(call))
    rows = []
    for name, found in samples.items():
        low, _, high = statistics.quantiles(found, n=4)
        rows.append({"choice": name, "median_us": statistics.median(found), "iqr_us": high - low, "samples_us": found})
        print(f"{name:<20}{rows[-1]['median_us']:8.3f} us  ± {rows[-1]['iqr_us'] / 2:.3f}")
    paired = functools.partial(zip, strict=True)
    for name in ("again", "anew"):
        more = [a - b for a, b in paired(samples[f"{name}, recorded"], samples[f"{name}, committed"])]
        rows.append({"choice": f"{name}, what a record costs", "median_us": statistics.median(more)})
        print(f"{name}, what a record costs: {rows[-1]['median_us']:.3f} us")
    if args.json is not None:
        write(args.json, {"machine": describe("cpu"), "calls": CALLS, "rows": rows})


if __name__ == "__main__":
    main()
