"""Pairs that are named one by one, as the miners of the original do."""

from typing import Any

import torch
from torch import Tensor

# Anchors and their positives, anchors and their negatives: indices of rows and columns.
Named = tuple[Tensor, Tensor, Tensor, Tensor]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)


def checked(indices_tuple: Any, device: torch.device) -> tuple[Tensor, ...]:
    """Pairs or triplets, on the device of the features.

    Raises:
        TypeError: no tuple of tensors of integers.
        ValueError: neither three nor four of them, of one dimension and of lengths that belong together.
    """
    if not isinstance(indices_tuple, (tuple, list)) or not all(isinstance(t, Tensor) for t in indices_tuple):
        raise TypeError(f"indices_tuple must be a tuple of tensors, got {indices_tuple!r}")
    if len(indices_tuple) not in (3, 4):
        raise ValueError(
            "indices_tuple must be (anchors, positives, negatives) or (anchors, positives, anchors, negatives), "
            f"got {len(indices_tuple)} tensors"
        )
    for indices in indices_tuple:
        if len(indices) and indices.dtype not in _INTEGERS:  # of nothing found some miners make float tensors
            raise TypeError(f"indices_tuple must be of integers, got {indices.dtype}")
    lengths = [tuple(indices.shape) for indices in indices_tuple]
    alike = [lengths] if len(lengths) == 3 else [lengths[:2], lengths[2:]]
    if any(len(shape) != 1 for shape in lengths) or any(len(set(part)) > 1 for part in alike):
        raise ValueError(f"indices_tuple must be of one dimension and of lengths that belong together, got {lengths}")
    return tuple(indices.to(device, torch.int64) for indices in indices_tuple)


def check_range(named: Named, rows: int, columns: int) -> None:
    """Raises unless they are indices of so many rows and columns."""
    for side, size, indices in (("row", rows, named[::2]), ("column", columns, named[1::2])):
        together = indices[0] if indices[0] is indices[1] else torch.cat(indices)
        if not len(together):
            continue
        least, most = map(int, together.aminmax())
        if least < 0 or most >= size:
            raise IndexError(f"indices_tuple must name {side}s from 0 to {size - 1}, got {least} to {most}")


def as_pairs(indices: tuple[Tensor, ...]) -> Named:
    """The pairs of triplets: a pair counts as often as it is in one."""
    if len(indices) == 3:
        anchors, positives, negatives = indices
        return anchors, positives, anchors, negatives
    anchors, positives, others, negatives = indices
    return anchors, positives, others, negatives


def as_triplets(indices: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Each positive pair with each negative pair of the same anchor."""
    if len(indices) == 3:
        return indices
    anchors, positives, others, negatives = indices
    first, second = torch.where(anchors.unsqueeze(1) == others)
    return anchors[first], positives[first], negatives[second]


def without_itself(indices: tuple[Tensor, ...], itself: Tensor) -> tuple[Tensor, ...]:
    """Without the pairs or triplets whose positive is column ``itself[i]`` for row i."""
    anchors, positives = indices[:2]
    kept = positives != itself[anchors]
    last = indices[2:] if len(indices) == 4 else (indices[2][kept],)
    return anchors[kept], positives[kept], *last
