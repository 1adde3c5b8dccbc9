"""Loss + gradient on the CPU in pytest-benchmark: ``pytest benchmarks --benchmark-only``, `make bench-pytest`.

The cases and implementations are those of ``python -m benchmarks``, each group beside its baseline. ``--benchmark-json
FILE`` writes the result, in whose ``extra_info`` stand the rate and its ratio to that of the library's own product.
"""

import functools
from typing import Any

import pytest
import torch

from hyperkern.bench import registry
from hyperkern.bench.child import Alone, each_alone
from hyperkern.bench.gate import check, step
from hyperkern.bench.load import load_file
from hyperkern.bench.machine import Rates
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Setup

from .studies import PEERS

ROUNDS = 15
load_file(PEERS)

# The sizes of the targets, and ordinary batches, where the cost of a call decides.
SIZES = [(4096, 512), (4096, 128), (2048, 128), (1024, 128), (256, 128)]
RUNS = [
    pytest.param(case, each.name, n, d, id=f"{case}-{each.name}-{n}-{d}")
    for case in ("uniformity", "paper's uniform_loss", "nt_xent", "clip", "clip_learned")
    for n, d in SIZES
    for each in registry.implementations(case)
]


@functools.cache
def rates() -> Rates:
    return Rates("cpu", "float32")


@pytest.mark.parametrize(("case", "name", "n", "dim"), RUNS)
def test_loss_and_gradient(benchmark: Any, case: str, name: str, n: int, dim: int) -> None:
    setup, implementation = Setup(case, "float32", n, dim, "both"), IMPLEMENTATIONS[case, name]
    if reason := implementation.refusal(setup):
        pytest.skip(reason)
    check(CASES[case], implementation, implementation.make, setup)
    torch._dynamo.reset()
    loss, inputs = implementation.make(), CASES[case].draw(n, dim, "float32", "cpu")
    since = len(rates().found["flops"])
    benchmark.group = f"{case} N={n} D={dim}"
    benchmark.pedantic(step, setup=lambda: rates().measure() or ((loss, inputs), {}), rounds=ROUNDS, warmup_rounds=1)
    rate = CASES[case].flops(n, dim, "both") / benchmark.stats.stats.median
    benchmark.extra_info |= {"gflops": rate / 1e9, "of_sgemm": rate / rates().limit(since).flops}


def test_uniformity_peak_memory(benchmark: Any) -> None:
    setup = Setup("uniformity", "float32", 65536, 128, "both")
    found = benchmark.pedantic(each_alone, args=("hyperkern", "eager", [setup], []), rounds=1)
    assert isinstance(found[0], Alone), found[0]
    peak = found[0].peak_bytes
    benchmark.extra_info |= {"peak_bytes": peak, "ms": found[0].ms}
    assert peak is None or peak < 300e6, f"peak extra memory {peak / 1e6:.0f} MB"
