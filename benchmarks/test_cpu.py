"""Loss + gradient on the CPU: time against the baselines and the machine's own matrix rate, and peak memory.

The cases and implementations are those of ``hyperkern bench``, and two more that only belong here.
"""

import functools

import pytest
import torch
from torch import Tensor

import hyperkern
from hyperkern import textbook
from hyperkern.bench import registry
from hyperkern.bench.cases import by_mode
from hyperkern.bench.child import Alone, each_alone
from hyperkern.bench.gate import check, step
from hyperkern.bench.machine import Rates
from hyperkern.bench.registry import CASES, IMPLEMENTATIONS, Setup
from hyperkern.integrations.align_uniform import uniform_loss

ROUNDS = 15
registry.load_all()


@registry.implementation("clip", "hyperkern learned", package="hyperkern")
def learned():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return hyperkern.clip_loss(x, y, logit_scale=torch.tensor(textbook.LOGIT_SCALE, dtype=x.dtype))

    return loss


PAPER = "paper's uniform_loss"
registry.case(PAPER, inputs=1, flops=by_mode(1, 2, 3), counted="as uniformity", baseline="pdist", unit=True)(
    textbook.paper_uniform_loss
)
registry.implementation(PAPER, "pdist", most_rows=4096)(lambda: textbook.paper_uniform_loss)
registry.implementation(PAPER, "hyperkern drop-in", package="hyperkern")(lambda: uniform_loss)

# The sizes of the targets, and ordinary batches, where the cost of a call decides.
SIZES = [(4096, 512), (4096, 128), (2048, 128), (1024, 128), (256, 128)]
RUNS = [
    pytest.param(case, each.name, n, d, id=f"{case}-{each.name}-{n}-{d}")
    for case in ("uniformity", PAPER, "nt_xent", "clip")
    for n, d in SIZES
    for each in registry.implementations(case)
]


@functools.cache
def rates() -> Rates:
    return Rates("cpu", "float32")


@pytest.mark.parametrize(("case", "name", "n", "dim"), RUNS)
def test_loss_and_gradient(benchmark, record, case, name, n, dim):
    setup, implementation = Setup(case, "float32", n, dim, "both"), IMPLEMENTATIONS[case, name]
    if reason := implementation.refusal(setup):
        pytest.skip(reason)
    check(CASES[case], implementation, implementation.make, setup)
    torch._dynamo.reset()
    loss, inputs = implementation.make(), CASES[case].draw(n, dim, "float32", "cpu")
    since = len(rates().found["flops"])
    benchmark.pedantic(step, setup=lambda: rates().measure() or ((loss, inputs), {}), rounds=ROUNDS, warmup_rounds=1)
    seconds, rate = benchmark.stats.stats.median, rates().limit(since).flops
    flops = CASES[case].flops(n, dim, "both")
    record(
        case=f"{case} N={n} D={dim}",
        implementation=name,
        median_ms=seconds * 1e3,
        iqr_ms=benchmark.stats.stats.iqr * 1e3,
        gflops=flops / seconds / 1e9,
        sgemm_gflops=rate / 1e9,
        of_sgemm=flops / seconds / rate,
    )


def test_uniformity_peak_memory(benchmark, record):
    n, dim = 65536, 128
    found = benchmark.pedantic(
        each_alone, args=("hyperkern", "eager", [Setup("uniformity", "float32", n, dim, "both")], []), rounds=1
    )
    assert isinstance(found[0], Alone), found[0]
    peak, seconds = found[0].peak_bytes, 1e-3 * found[0].ms
    flops, rate = CASES["uniformity"].flops(n, dim, "both"), rates().limit().flops
    record(
        case=f"uniformity N={n} D={dim}",
        implementation="hyperkern",
        median_ms=seconds * 1e3,
        gflops=flops / seconds / 1e9,
        sgemm_gflops=rate / 1e9,
        of_sgemm=flops / seconds / rate,
        peak_bytes=peak,
    )
    assert peak < 300e6, f"peak extra memory {peak / 1e6:.0f} MB"
