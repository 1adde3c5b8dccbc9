"""What several processes ask of a drop-in replacement.

Where an original gathers features with a gradient that is summed over processes, a process gets the gradient of the sum
of what all of them compute, for its own features: the semantics of ``reduction="none"`` with a group.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from ..distributed import Group


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
