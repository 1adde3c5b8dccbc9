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


def own_mean(losses: Tensor) -> Tensor:
    """The mean of a process over its own anchors, ``(N,)``; without anchors 0, so that the others can go backward."""
    return losses.sum() / max(1, len(losses))
