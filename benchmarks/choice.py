"""What the choice of a backend costs a call, where the one that is taken was found right by a check on this machine.

``python -m benchmarks.choice --json FILE``. A backend that computes by the reference stands for the kernels, and a
record in a folder of its own for their check, so that this runs anywhere. In turns: the choice of a call as it is; that
of a problem that has not been met before, as with a scale that changes at every step; and both for a backend that a
committed result shows right, which nobody asks about.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hyperkern import backends
from hyperkern.backends import Problem, reference
from hyperkern.bench import clock
from hyperkern.bench.machine import describe
from hyperkern.check import first_use, records
from hyperkern.check.scope import Scope
from hyperkern.spec import PairSpec

from .measured import Measured, Measurements, write

NAME, CPU = "recorded", torch.device("cpu")
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
                    ready = clock.ready(call, "cpu")
                    assert backends.select(None, Problem("loss", CPU, torch.bfloat16, 128, None, "bfloat16")).LOSSES
                    samples.setdefault(f"{name}, {kind}", []).extend(clock.sample(ready, "eager", "cpu"))
    rows = []
    for name, found in samples.items():
        rows.append(Measured.of(found, case="choice of a backend", implementation=name, n=1, d=128))
        print(f"{name:<20}{1e3 * rows[-1].ms:8.3f} us  ± {1e3 * rows[-1].half_ms:.3f}")
    for name in ("again", "anew"):
        pairs = zip(samples[f"{name}, recorded"], samples[f"{name}, committed"], strict=True)
        print(f"{name}, what a record costs: {1e3 * statistics.median(a - b for a, b in pairs):.3f} us")
    if args.json is not None:
        write(args.json, Measurements(machine=describe("cpu"), rows=rows))


if __name__ == "__main__":
    main()
