"""Logits of any size across ranks: the sum of a pair is made on one rank and its weight on another one."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from torch import Tensor

import hyperkern as hk

# Beyond what a library multiplies by another kernel.
COUNTS = (90, 1, 210)
LOSSES: dict[str, Any] = {
    "nt_xent": lambda x, y, labels, **options: hk.nt_xent(x, y, temperature=0.07, **options),
    "dclw": lambda x, y, labels, **options: hk.dclw(x, y, temperature=0.07, **options),
    "clip_loss": lambda x, y, labels, **options: hk.clip_loss(x, y, logit_scale=14.0, **options),
    "info_nce": lambda x, y, labels, **options: hk.info_nce(x, y, temperature=0.07, **options),
    "sup_con": lambda x, y, labels, **options: hk.sup_con(
        torch.cat([x, y]), torch.cat([labels, labels]), temperature=0.07, **options
    ),
}


def problem(norm: float, dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = (norm / 8 * torch.randn(sum(COUNTS), 64, generator=draw) for _ in range(2))
    return [x.to(dtype), y.to(dtype), torch.arange(sum(COUNTS)) % 5]


def gradients(name: str, x: Tensor, y: Tensor, labels: Tensor, **options: Any) -> list[Tensor]:
    x, y = (t.clone().requires_grad_() for t in (x, y))
    return list(torch.autograd.grad(LOSSES[name](x, y, labels, normalize=False, **options), (x, y)))


def on_rank(rank: int, name: str, norm: float, transport: str) -> list[Tensor]:
    group = hk.Group(dist.group.WORLD, transport=transport)
    own = slice(sum(COUNTS[:rank]), sum(COUNTS[: rank + 1]))
    return gradients(name, *(t[own] for t in problem(norm, torch.float32)), group=group)


@pytest.mark.parametrize("transport", ["gather", "ring"])
@pytest.mark.parametrize("name", LOSSES)
def test_long_rows(name: str, transport: str, ranks: Ranks) -> None:
    for norm in (1000.0, 10_000.0):
        of_ranks = ranks(len(COUNTS)).run(on_rank, name, norm, transport)
        for truth, parts in zip(
            gradients(name, *problem(norm, torch.float64)), zip(*of_ranks, strict=True), strict=True
        ):
            found = torch.cat(parts).double() / len(COUNTS)  # as a wrapper that averages over ranks does
            error = (found - truth).abs().max() / truth.abs().max()
            assert error < 1e-6, (norm, error)
