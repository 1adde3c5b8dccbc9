"""What several processes ask of a drop-in replacement.

Where an original gathers features with a gradient that is summed over processes, a process gets the gradient of the sum
of what all of them compute, for its own features: the semantics of ``reduction="none"`` with a group.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from ..distributed import Group, Ranks, gather_rows, outside_of_graphs


def all_processes(gathers: bool) -> Group | None:
    """The group of all processes where a loss gathers their features and there are several; else ``None``."""
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return Group() if gathers and several else None


def check_gathers(gathers: bool) -> None:
    """Raises where a loss is to gather features and there is nothing to do it with."""
    if gathers and not distributed.is_available():
        raise ValueError("gather_distributed=True needs torch.distributed, which this build of PyTorch does not have")


def own_mean(losses: Tensor) -> Tensor:
    """The mean of a process over its own anchors, ``(N,)``; without anchors 0, so that the others can go backward.

    Raises:
        ValueError: there is one more dimension, that of a batch of problems, on all processes alike.
    """
    if losses.dim() != 1:
        raise ValueError(f"features must have shape (N, D), got (B, N, D) with B={losses.shape[0]}")
    return losses.sum() / max(1, len(losses))


@outside_of_graphs
def all_rows(x: Tensor, ranks: Ranks, *, travels: bool) -> list[Tensor]:
    """The rows of every process, in their order, for a loss that looks at all of them everywhere.

    Args:
        x: ``(N, D)`` rows of this process.
        ranks: who shares the batch.
        travels: whether a process has the gradient of its rows from all processes; else from its own loss alone, to
            which the rows of the others are constants.

    Returns:
        ``(rows of a process, D)`` for each process.
    """
    if travels:
        everywhere: Tensor = _AllRows.apply(x, ranks)
        return list(everywhere.split_with_sizes(list(ranks.counts)))
    parts = gathered(x.detach(), ranks)
    parts[ranks.rank] = x
    return parts


@outside_of_graphs
def gathered(x: Tensor, ranks: Ranks) -> list[Tensor]:
    """What every process has, ``(rows, ...)``."""
    return [part.squeeze(0) for part in gather_rows(x.unsqueeze(0), ranks.counts, ranks.handle)()]


class _AllRows(Function):
    """``(N, D)`` rows -> those of all processes; its gradient is the sum of those of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return torch.cat(gathered(x, ranks))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the gradient of a loss across processes cannot be differentiated again: create_graph=True needs one"
            )
        ranks, total = ctx.ranks, grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=ranks.handle)
        return total[ranks.offset : ranks.offset + ranks.counts[ranks.rank]], None


def on_first_process(function: Callable[[list[Tensor]], dict[str, float]], rows: list[Tensor]) -> dict[str, float]:
    """What a function makes of the rows of all processes: computed by the first one, returned or raised on all."""
    if all_processes(True) is None:
        return function(rows)
    first = distributed.get_rank() == 0
    everywhere: list[Any] | None = [None] * distributed.get_world_size() if first else None
    distributed.gather_object(rows, everywhere)
    answer: list[Any] = [None]
    if everywhere is not None:
        try:
            answer = [function([torch.cat(side) for side in zip(*everywhere, strict=True)])]
        except Exception as error:  # the others would wait
            answer = [error]
    distributed.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    found: dict[str, float] = answer[0]
    return found
