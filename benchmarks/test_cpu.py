"""Loss + gradient on the CPU: time against the baselines and the machine's own matrix rate, and peak memory."""

import functools
import statistics

import pytest
import torch

import hyperkern

from . import baselines, measure

# The gate compares with these, in float64; the baselines pass it too.
UNIFORMITY = {
    "pdist": baselines.pdist_uniformity,
    "dense": baselines.dense_uniformity,
    "hyperkern": hyperkern.uniformity,
}
CLIP = {
    "dense": functools.partial(baselines.dense_clip, logit_scale=1 / 0.07),
    "hyperkern": functools.partial(hyperkern.clip_loss, logit_scale=1 / 0.07),
}


def _measure(benchmark, record, case, implementation, loss, inputs, flops):
    rates = []
    benchmark.pedantic(
        measure.loss_and_grads,
        setup=lambda: rates.append(measure.sgemm_rate()) or ((loss, inputs), {}),
        rounds=7 if implementation == "hyperkern" else 3,
        warmup_rounds=1,
    )
    seconds, rate = benchmark.stats.stats.median, statistics.median(rates)
    record(
        case=case,
        implementation=implementation,
        median_ms=seconds * 1e3,
        iqr_ms=benchmark.stats.stats.iqr * 1e3,
        gflops=flops / seconds / 1e9,
        sgemm_gflops=rate / 1e9,
        of_sgemm=flops / seconds / rate,
    )


@pytest.mark.parametrize("implementation", UNIFORMITY)
@pytest.mark.parametrize("dim", [128, 512])
def test_uniformity(benchmark, record, dim, implementation):
    n, loss = 4096, UNIFORMITY[implementation]
    measure.check(loss, baselines.dense_uniformity, [torch.randn(1000, dim)])
    _measure(
        benchmark, record, f"uniformity N={n} D={dim}", implementation, loss, [torch.randn(n, dim)], 3 * n * n * dim
    )


@pytest.mark.parametrize("implementation", CLIP)
@pytest.mark.parametrize("dim", [128, 512])
def test_clip(benchmark, record, dim, implementation):
    n, loss = 4096, CLIP[implementation]
    measure.check(loss, CLIP["dense"], [torch.randn(1000, dim) for _ in range(2)])
    inputs = [torch.randn(n, dim) for _ in range(2)]
    _measure(
        benchmark, record, f"two-way contrastive N={n} D={dim}", implementation, loss, inputs, 8 * n * n * dim
    )


def test_uniformity_peak_memory(benchmark, record):
    n, dim = 65536, 128
    result = benchmark.pedantic(measure.uniformity_peak, args=(n, dim), rounds=1)
    flops = 3 * n * n * dim
    record(
        case=f"uniformity N={n} D={dim}",
        implementation="hyperkern",
        median_ms=result["seconds"] * 1e3,
        iqr_ms=0.0,
        gflops=flops / result["seconds"] / 1e9,
        of_sgemm=flops / result["seconds"] / measure.sgemm_rate(),
        peak_bytes=result["peak_bytes"],
    )
    assert result["peak_bytes"] < 300e6, f"peak extra memory {result['peak_bytes'] / 1e6:.0f} MB"
