"""What several processes ask of a drop-in replacement.

Where an original gathers features with a gradient that is summed over processes, a process gets the gradient of the sum
of what all of them compute, for its own features: the semantics of ``reduction="none"`` with a group.
"""

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
