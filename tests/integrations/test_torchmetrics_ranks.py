"""The metrics in several processes: on each of them the value of the rows of all."""

from typing import Any

import oracle
import pytest
import torch
import torch.distributed as dist
from parity import library
from ranks import Ranks
from torch import Tensor

library("torchmetrics")

from hyperkern.integrations.torchmetrics import Alignment, NormStatistics, Uniformity, UniformityLimit  # noqa: E402
from hyperkern.metrics import uniformity_limit  # noqa: E402

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

DIM = 6


def views(counts: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, sum(counts), DIM, generator=draw, dtype=torch.float64)
    return list(zip(x.split(counts), (x + y).split(counts), strict=True))


def synced(rank: int, counts: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    x, y = (view.to(dtype) for view in views(counts)[rank])
    metrics: dict[str, Any] = {
        "alignment": Alignment(),
        "exact": Uniformity(standard_error=True),
        "all": Uniformity(reservoir=100, standard_error=True),
        "some": Uniformity(reservoir=16, standard_error=True),
        "batch": Uniformity(pairs="batch"),
        "limit": UniformityLimit(),
        "norm": NormStatistics(),
    }
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        metric.set_dtype(torch.promote_types(dtype, torch.float32))
        for own, partner in zip(x.split(7), y.split(7), strict=True):
            if len(own):
                metric.update(own, partner) if name == "alignment" else metric.update(own)
        metric._update_count = 1  # no warning where a process has no rows
        found[name] = metric.compute()
        # Again on its own, and after more rows: what was gathered is not kept.
        metric._computed = None
        assert repr(metric.compute()) == repr(found[name])  # nan is nan
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("counts", [(9, 16), (25, 0), (0, 3), (1, 1), (11, 0, 8)], ids=str)
def test_values_of_all_rows(ranks: Ranks, counts: tuple[int, ...], dtype: torch.dtype) -> None:
    first, *others = ranks(len(counts)).run(synced, counts, dtype)
    for other in others:
        assert repr(other) == repr(first)
    x, y = (torch.cat(side).to(dtype).double() for side in zip(*views(counts), strict=True))
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    truth = oracle.uniformity(x)

    def near(value: float) -> Any:
        return pytest.approx(float(value), rel=tolerance, abs=tolerance)

    assert first["alignment"] == near(oracle.alignment(x, y))
    for name in ("exact", "all"):
        assert first[name]["uniformity"] == near(truth)
        assert first[name]["uniformity_error"] == 0
    if len(x) <= 16:
        assert first["some"] == {"uniformity": near(truth), "uniformity_error": 0}
    else:
        assert abs(first["some"]["uniformity"] - truth) < 4 * first["some"]["uniformity_error"] < 2
    assert first["limit"] == near(uniformity_limit(DIM))
    norms = torch.linalg.vector_norm(x, dim=1)
    values = [norms.mean(), norms.min(), norms.max(), norms.std(correction=0)]
    assert list(first["norm"].values()) == [near(value) for value in values]
    if dtype == torch.float64:
        parts = [part for own, _ in views(counts) for part in own.split(7) if len(part) > 1]
        pairs = torch.tensor([len(part) * (len(part) - 1) / 2 for part in parts], dtype=torch.float64)
        if len(parts):
            mean = sum(n * oracle.uniformity(part).exp() for n, part in zip(pairs, parts, strict=True)) / pairs.sum()
            assert first["batch"] == near(mean.log())
        else:
            assert first["batch"].isnan()


def goes_on(rank: int) -> list[int]:
    """How many rows are held after each of: an update, a value of all processes, another update."""
    metric, held = Uniformity(), []
    for _ in range(2):
        metric.update(torch.randn(4, DIM))
        metric.compute()
        held.append(sum(map(len, metric.rows)))
    return held


def test_a_process_keeps_its_own(ranks: Ranks) -> None:
    assert ranks(2).run(goes_on) == [[4, 8], [4, 8]]
