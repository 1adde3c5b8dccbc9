"""Results made by hand, and a matrix so small that it takes a second."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.studies import PEERS
from hyperkern.bench import registry
from hyperkern.bench.load import load_all, load_file
from hyperkern.bench.result import MACHINE, SCHEMA, Limit, Provenance, Result, Row, quantile

TIMES = ("median_ms", "p20_ms", "p80_ms")

load_all()  # before tests are collected that run over all of them

# So many seconds that each row gets its two samples on the busiest machine; it takes a few milliseconds.
TINY = ["--device", "cpu", "--sizes", "40", "--dims", "8", "--rounds", "2", "--seconds", "100", "--no-memory"]

WRONG = """
from hyperkern.bench import implementation
from hyperkern.textbook import dense_uniformity

@implementation("uniformity", "wrong")
def wrong():
    return lambda x: 1.01 * dense_uniformity(x)
"""

OWN = """
import torch
from hyperkern.bench import case, implementation

@case("norm", inputs=1, flops=lambda n, d, mode: 2 * n * d, counted="2 ND", baseline="plain")
def norm(x):
    return x.square().sum().sqrt()

@implementation("norm", "plain")
def plain():
    return norm

@implementation("norm", "by torch")
def by_torch():
    return torch.linalg.vector_norm
"""


def with_peers() -> list[tuple[str, str]]:
    """Case and name of all implementations, those of the peers too; the registry stays as it is."""
    with mock.patch.dict(registry.CASES), mock.patch.dict(registry.IMPLEMENTATIONS):
        load_file(PEERS)
        return list(registry.IMPLEMENTATIONS)


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def machine(**changes: Any) -> Provenance:
    return Provenance(**{**dict.fromkeys(MACHINE, "same"), "threads": 1, **changes})


def row(name: str, samples: Sequence[float], **changes: Any) -> Row:
    times = {key: quantile(samples, q) if samples else None for key, q in zip(TIMES, (0.5, 0.2, 0.8), strict=True)}
    found = {
        **{"case": "uniformity", "implementation": name, "package": "torch", "version": None, "mode": "both"},
        **{"execution": "eager", "dtype": "float32", "n": 512, "d": 64, "status": "ok", "reason": None, "error": None},
        **{"samples_ms": tuple(samples), **times, "peak_bytes": None, "flops": 1e9, "bytes": 1e6, "floor_ms": 1.0},
        **{"tflops": None, "gbs": None, "of_limit": None, "baseline": "dense", "vs_baseline": None},
    }
    return Row(**found | changes)


def result(rows: Sequence[Row], rate: float = 1e11, **changes: Any) -> Result:
    limits = {"float32": Limit(flops=rate, bytes=1e10, best_flops=2 * rate)}
    return Result(schema=SCHEMA, machine=machine(**changes), limits=limits, rows=list(rows))


def simulated(seed: int, *, slower: float = 1.0, rounds: int = 11) -> Result:
    """A run on a noisy machine: each run has its own speed, each round too, each sample an error of 8 %."""
    draw = random.Random(seed)
    speed = draw.lognormvariate(0, 0.15)
    rows = []
    for n in (512, 1024, 4096):
        of_round = [speed * draw.lognormvariate(0, 0.2) for _ in range(rounds)]
        for name, factor in (("dense", 3.0), ("hyperkern", slower), ("chunked", 4.0)):
            rows.append(row(name, [n * 0.01 * factor * r * draw.lognormvariate(0, 0.08) for r in of_round], n=n))
    return result(rows, rate=1e11 / speed * draw.lognormvariate(0, 0.02))
