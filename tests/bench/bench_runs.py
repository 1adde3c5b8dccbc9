"""Results made by hand, and a matrix so small that it takes a second."""

import random
from pathlib import Path
from typing import Any

from hyperkern.bench import registry
from hyperkern.bench.result import COLUMNS, MACHINE, SCHEMA, quantile

registry.load_all()  # before tests are collected that run over all of them

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


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def machine(**changes: Any) -> dict[str, Any]:
    return {**dict.fromkeys(MACHINE, "same"), "threads": 1, **changes}


def row(name: str, samples: list[float], **changes: Any) -> dict[str, Any]:
    found = dict.fromkeys(COLUMNS)
    found |= {"case": "uniformity", "implementation": name, "mode": "both", "execution": "eager", "dtype": "float32"}
    found |= {"n": 512, "d": 64, "status": "ok", "samples_ms": samples, "flops": 1e9, "bytes": 1e6, "floor_ms": 1.0}
    found |= {"median_ms": quantile(samples, 0.5) if samples else None, "baseline": "dense", "package": "torch"}
    return found | changes


def result(rows: list[dict[str, Any]], rate: float = 1e11, **changes: Any) -> dict[str, Any]:
    limits = {"float32": {"flops": rate, "bytes": 1e10}}
    return {"schema": SCHEMA, "machine": machine(**changes), "limits": limits, "rows": rows}


def simulated(seed: int, *, slower: float = 1.0, rounds: int = 11) -> dict[str, Any]:
    """A run on a noisy machine: each run has its own speed, each round too, each sample an error of 8 %."""
    draw = random.Random(seed)
    speed = draw.lognormvariate(0, 0.15)
    rows = []
    for n in (512, 1024, 4096):
        of_round = [speed * draw.lognormvariate(0, 0.2) for _ in range(rounds)]
        for name, factor in (("dense", 3.0), ("hyperkern", slower), ("chunked", 4.0)):
            rows.append(row(name, [n * 0.01 * factor * r * draw.lognormvariate(0, 0.08) for r in of_round], n=n))
    return result(rows, rate=1e11 / speed * draw.lognormvariate(0, 0.02))
