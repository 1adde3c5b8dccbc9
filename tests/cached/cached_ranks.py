"""What the tests of the step in chunks on two ranks share: encoders, own batches, the gradients of one process."""

import copy
from collections.abc import Callable

import torch
from cached_models import ROWS, encoder, views
from torch import Tensor, nn

RANKS, SIZE = 2, 4


def wide_encoder(seed: int = 0, *extra: nn.Module) -> nn.Sequential:
    """One whose gradients fill several buckets."""
    return encoder(torch.float64, seed, *extra, hidden=300)


def own_views(rank: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    return views(rows=rows, seed=rank)


def gradients_or_zeros(module: nn.Module) -> list[Tensor]:
    """The gradients of all parameters, zeros for those that no gradient reached; they are then cleared."""
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    return found


def of_one_process(module: nn.Module, step: Callable[[nn.Module, int], Tensor]) -> list[Tensor]:
    """The mean over the ranks of the gradients of their losses."""
    alone = copy.deepcopy(module)
    for rank in range(RANKS):
        (step(alone, rank) / RANKS).backward()
    return gradients_or_zeros(alone)
