"""Loss + gradient on the CPU: time against the baselines and the machine's own matrix rate, and peak memory."""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import hyperkern
from hyperkern.integrations.align_uniform import uniform_loss

from . import baselines, measure

ROUNDS = 15


class Case(NamedTuple):
    """A loss, the ways to compute it, and the least arithmetic it takes.

    Attributes:
        inputs: number of feature tensors.
        flops: of loss + gradient, as a multiple of N^2 D: with y = x one similarity for each pair and two products
            with the weights, 3; with two sides 8, since the forward similarities are not kept.
        truth: the textbook formula, run in float64 as the gate.
        implementations: by name.
    """

    inputs: int
    flops: int
    truth: Callable[..., Tensor]
    implementations: dict[str, Callable[..., Tensor]]


def learned(loss: Callable[..., Tensor], *features: Tensor) -> Tensor:
    return loss(*features, logit_scale=torch.tensor(1 / 0.07, dtype=features[0].dtype))


dense_clip = functools.partial(baselines.dense_clip, logit_scale=1 / 0.07)
CASES = {
    "uniformity": Case(
        1,
        3,
        baselines.dense_uniformity,
        {
            "pdist": baselines.pdist_uniformity,
            "dense": baselines.dense_uniformity,
            "hyperkern": hyperkern.uniformity,
        },
    ),
    "paper's uniform_loss": Case(
        1,
        3,
        baselines.paper_uniform_loss,
        {"pdist": baselines.paper_uniform_loss, "hyperkern drop-in": uniform_loss},
    ),
    "two-way contrastive": Case(
        2,
        8,
        dense_clip,
        {
            "dense": dense_clip,
            "hyperkern": functools.partial(hyperkern.clip_loss, logit_scale=1 / 0.07),
            "hyperkern learned": functools.partial(learned, hyperkern.clip_loss),
        },
    ),
}
# The sizes of the targets, and ordinary batches, where the cost of a call decides.
SIZES = [(4096, 512), (4096, 128), (2048, 128), (1024, 128), (256, 128)]
RUNS = [
    pytest.param(case, name, n, d, id=f"{case}-{name}-{n}-{d}")
    for case in CASES
    for n, d in SIZES
    for name in CASES[case].implementations
]


def time_it(benchmark, record, case: str, name: str, inputs: Sequence[Tensor]) -> None:
    loss, (n, dim), rates = CASES[case].implementations[name], inputs[0].shape, []
    flops = CASES[case].flops * n * n * dim
    benchmark.pedantic(
        measure.loss_and_grads,
        setup=lambda: rates.append(measure.sgemm_rate()) or ((loss, inputs), {}),
        rounds=ROUNDS,
        warmup_rounds=1,
    )
    seconds, rate = benchmark.stats.stats.median, statistics.median(rates)
    record(
        case=f"{case} N={n} D={dim}",
        implementation=name,
        median_ms=seconds * 1e3,
        iqr_ms=benchmark.stats.stats.iqr * 1e3,
        gflops=flops / seconds / 1e9,
        sgemm_gflops=rate / 1e9,
        of_sgemm=flops / seconds / rate,
    )


@pytest.mark.parametrize(("case", "name", "n", "dim"), RUNS)
def test_loss_and_gradient(benchmark, record, case, name, n, dim):
    def draw(rows: int) -> list[Tensor]:
        return [torch.nn.functional.normalize(torch.randn(rows, dim), dim=-1) for _ in range(CASES[case].inputs)]

    measure.check(CASES[case].implementations[name], CASES[case].truth, draw(500))
    time_it(benchmark, record, case, name, draw(n))


def test_uniformity_peak_memory(benchmark, record):
    n, dim = 65536, 128
    result = benchmark.pedantic(measure.uniformity_peak, args=(n, dim), rounds=1)
    flops, rate = 3 * n * n * dim, measure.sgemm_rate()
    record(
        case=f"uniformity N={n} D={dim}",
        implementation="hyperkern",
        median_ms=result["seconds"] * 1e3,
        gflops=flops / result["seconds"] / 1e9,
        sgemm_gflops=rate / 1e9,
        of_sgemm=flops / result["seconds"] / rate,
        peak_bytes=result["peak_bytes"],
    )
    assert result["peak_bytes"] < 300e6, f"peak extra memory {result['peak_bytes'] / 1e6:.0f} MB"
