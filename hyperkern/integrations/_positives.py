"""The pairs of equal labels, class by class: what losses need that look at each positive pair on its own.

Classes of the same size are stacked, so that their logits are one batched product. It makes ``n_c m_c`` numbers for a
class of ``n_c`` rows and ``m_c`` columns, and no others: the cost is ``O((M + N) D)`` memory, a few numbers for each
positive pair, and ``2 D`` operations for it. For V views of each sample that is ``V^2`` numbers a sample; for C classes
of equal size ``M N / C``, which a small C makes large: a loss over single positive pairs has no smaller form.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import autograd


class Block(NamedTuple):
    """All classes with the same numbers of rows and columns: indices ``(classes, rows)`` and ``(classes, columns)``."""

    rows: Tensor
    columns: Tensor


class Classes(NamedTuple):
    """Rows and columns by their labels.

    Attributes:
        row_ids: ``(M,)`` labels of the rows, numbered from 0 on.
        column_ids: ``(N,)`` those of the columns; equal numbers stand for equal labels.
        blocks: the classes that have both rows and columns, stacked by their sizes.
        pairs: number of pairs of equal labels.
    """

    row_ids: Tensor
    column_ids: Tensor
    blocks: list[Block]
    pairs: int


def numbered(row_labels: Tensor, column_labels: Tensor | None = None) -> tuple[Tensor, Tensor, int]:
    """Labels of any dtype as integers from 0 on, those of the rows and of the columns, and how many there are."""
    labels = row_labels if column_labels is None else torch.cat([row_labels, column_labels])
    values, ids = torch.unique(labels, return_inverse=True)
    row_ids = ids[: row_labels.shape[0]]
    return row_ids, row_ids if column_labels is None else ids[row_labels.shape[0] :], len(values)


def classes_of(row_labels: Tensor, column_labels: Tensor | None = None) -> Classes:
    """The classes of some labels. Their sizes are shapes here, so they are read on the host, once.

    Args:
        row_labels: ``(M,)`` of any dtype.
        column_labels: ``(N,)``; ``None`` for those of the rows.

    Returns:
        The classes; with ``column_labels=None`` the columns of a block are its rows.
    """
    row_ids, column_ids, number = numbered(row_labels, column_labels)
    row_order, row_start, row_size = _by_class(row_ids, number)
    column_order, column_start, column_size = _by_class(column_ids, number)
    kinds, kind = torch.unique(torch.stack([row_size, column_size], 1), dim=0, return_inverse=True)
    blocks, pairs = [], 0
    for i, (rows, columns) in enumerate(kinds.tolist()):
        if rows == 0 or columns == 0:
            continue
        (of_kind,) = torch.where(kind == i)
        blocks.append(
            Block(
                row_order[row_start[of_kind, None] + torch.arange(rows, device=row_ids.device)],
                column_order[column_start[of_kind, None] + torch.arange(columns, device=row_ids.device)],
            )
        )
        pairs += len(of_kind) * rows * columns
    return Classes(row_ids, column_ids, blocks, pairs)


def block_logits(x: Tensor, y: Tensor | None, blocks: list[Block], temperature: float | Tensor) -> list[Tensor]:
    """The logits of the pairs of equal labels.

    Args:
        x: ``(M, D)`` features, which are normalised here.
        y: ``(N, D)`` those of the columns; ``None`` for ``x``.
        blocks: of `classes_of`.
        temperature: > 0, a number or a scalar tensor.

    Returns:
        ``(classes, rows, columns)`` for each block.
    """
    rows = autograd.prepare(x, normalize=True)
    return logits_of_blocks(rows, None if y is None else autograd.prepare(y, normalize=True), blocks, 1 / temperature)


def logits_of_blocks(x: Tensor, y: Tensor | None, blocks: list[Block], scale: float | Tensor) -> list[Tensor]:
    """The same of prepared rows and of the scale of their inner products."""
    if not blocks:
        return []
    rows = _gathered(x, [block.rows for block in blocks])
    columns = rows if y is None else _gathered(y, [block.columns for block in blocks])
    # Unit rows are float32 for the accuracy of these logits: autocast would round them before they are multiplied.
    with torch.autocast(x.device.type, enabled=False):
        return [scale * (of_row @ of_column.mT) for of_row, of_column in zip(rows, columns, strict=True)]


def _by_class(ids: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices in the order of their classes, and where each class starts in it and how large it is."""
    size = torch.bincount(ids, minlength=classes)
    return ids.argsort(stable=True), size.cumsum(0) - size, size


def _gathered(x: Tensor, indices: list[Tensor]) -> list[Tensor]:
    """``x[index]`` for all indices, of which none occurs twice: gathered at once, with one gradient of the whole."""
    rows = x[torch.cat([index.flatten() for index in indices])]
    parts = rows.split([index.numel() for index in indices])
    return [part.view(*index.shape, -1) for part, index in zip(parts, indices, strict=True)]
