"""How much memory may hold what is used twice."""

import numbers

_DEFAULT = 64 << 20

_size = _DEFAULT


def set_workspace_bytes(size: int) -> None:
    """Sets the memory in which a loss of plain PyTorch, while it is computed, keeps exponentials for its gradient.

    A loss whose weights are known only when all pairs have been seen (`hyperkern.clip_loss`, `hyperkern.nt_xent` and
    their kind) keeps what fits, and makes the rest again: a third more arithmetic where nothing does. 64 MiB, the
    default, hold all pairs of 4096 rows in float32. Memory beyond it is O(N D), whatever the size.

    Args:
        size: in bytes, for each call that is running, >= 0.

    Raises:
        TypeError: ``size`` is no integer.
        ValueError: it is negative.
    """
    global _size
    if isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise TypeError(f"size must be an integer, got {type(size).__name__}")
    if size < 0:
        raise ValueError(f"size must be at least 0 bytes, got {size}")
    _size = int(size)


def workspace_bytes() -> int:
    """What `set_workspace_bytes` set."""
    return _size
