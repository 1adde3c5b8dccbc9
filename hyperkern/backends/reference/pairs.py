"""Pairs of ordinary rows, tile by tile: their exponentials are made once and kept for the gradient while they fit.

Tiles are wide and flat: a product, an exponential and two products more on each, as few and as long steps as the cache
allows, because the threads of a CPU wait for each other after every step.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...workspace import workspace_bytes

# Rows and columns of a tile, measured for N = 1024 ... 16384 and D = 128, 512. A problem of few rows is one tile.
_ROWS = 256
_COLS = 2048
_ONE_TILE = 512
# Rows whose tiles are kept together where each row knows its weights as soon as its candidates have been seen.
_GROUP_BYTES = 8 << 20
_FEWEST_ROWS = 32


class Pairs(NamedTuple):
    """Rows against columns.

    Attributes:
        x: ``(M, D)`` rows.
        y: ``(N, D)`` columns; ``x`` itself where the problem is symmetric.
        scale: of the logit ``scale <x_i, y_j>``.
        shift: subtracted from it, so that no sum overflows.
        left_out: the diagonals ``j - i`` of pairs that do not count.
    """

    x: Tensor
    y: Tensor
    scale: float
    shift: float = 0.0
    left_out: tuple[int, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whether each pair stands for its mirror image too: tiles cover the diagonal and what is right of it."""
        return self.y is self.x

    def exponentials(self, tile: "Tile", out: Tensor) -> Tensor:
        """``exp(l_ij - shift)`` of a tile, 0 for the pairs that are left out."""
        rows, cols = tile
        logits = torch.addmm(out, self.x[rows], self.y[cols].T, beta=0, alpha=self.scale, out=out)
        if self.shift:
            logits.sub_(self.shift)
        found = logits.exp_()
        for offset in self.left_out:
            fill_diagonal(found, tile, offset, 0.0)
        return found


class Tile(NamedTuple):
    """Some rows and some columns."""

    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Of the tile."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def size(self) -> int:
        """The number of its pairs."""
        m, n = self.shape
        return m * n

    @property
    def mirrored(self) -> int:
        """Of a symmetric problem, the first column that stands for its mirror image too."""
        return max(self.cols.start, self.rows.stop)


class Weights(NamedTuple):
    """What exponentials are multiplied by to give the derivatives of a loss by the logits.

    Attributes:
        row: ``(M,)`` factors ``e_i``.
        col: ``(N,)`` factors ``f_j`` that are added to them; ``None`` for none. Of a symmetric problem ``e`` itself.
        own: for the diagonals ``j - i`` that hold the positives, ``(M,)`` the weight of the pair of each row there.
            Without ``col`` it is multiplied by ``e_i`` too.
    """

    row: Tensor
    col: Tensor | None
    own: dict[int, Tensor]


def fill_diagonal(values: Tensor, tile: Tile, offset: int, filling: float | Tensor) -> None:
    """Puts a number, or that of each row of the problem, where the column's index is the row's plus ``offset``."""
    first = tile.rows.start + offset - tile.cols.start
    if -values.shape[0] < first < values.shape[1]:
        diagonal = values.diagonal(first)
        if isinstance(filling, Tensor):
            start = tile.rows.start + max(0, -first)
            diagonal.copy_(filling[start : start + diagonal.shape[0]])
        else:
            diagonal.fill_(filling)


def energy(
    pairs: Pairs,
    grad_x: Tensor | None = None,
    grad_y: Tensor | None = None,
    weigh: Callable[[Tensor, Tile], Tensor] | None = None,
) -> Tensor:
    """The sum of a potential over all ordered pairs, and its derivatives by the logits, contracted in the same visit.

    Args:
        pairs: which.
        grad_x: ``(M, D)``, to which ``sum_j w_ij y_j`` is added, if wanted.
        grad_y: ``(N, D)``, to which ``sum_i w_ij x_i`` is, where the problem is not symmetric.
        weigh: makes the weights of the exponentials of a tile, in their place, and returns the sum of the potential;
            ``None`` where both are the exponential itself. For problems that are not symmetric.
    """
    tiles = _tiles(pairs, _panels(pairs.x.shape[0]))
    room = pairs.x.new_empty(max(tile.size for tile in tiles))
    total = pairs.x.new_zeros(())
    for tile in tiles:
        weights = pairs.exponentials(tile, _view(room, tile))
        if weigh is not None:
            total += weigh(weights, tile)
        elif pairs.symmetric:  # what is right of the diagonal counts in both orders
            total.add_(weights.sum(), alpha=2).sub_(weights[:, : tile.mirrored - tile.cols.start].sum())
        else:
            total += weights.sum()
        _contract(pairs, tile, weights, grad_x, grad_y)
    return total


def two_sided(
    pairs: Pairs, head: Callable[[Tensor], Weights], grad_x: Tensor | None = None, grad_y: Tensor | None = None
) -> None:
    """The derivatives by the logits of a loss that knows its weights when all pairs have been seen, contracted.

    Args:
        pairs: which.
        head: makes the weights of the sums of the exponentials, ``(2, M)`` of rows and columns or, of a symmetric
            problem, ``(1, M)``.
        grad_x: ``(M, D)``, to which ``sum_j w_ij y_j`` is added, if wanted, of a symmetric problem with both orders of
            each pair in it.
        grad_y: ``(N, D)``, to which ``sum_i w_ij x_i`` is, where the problem is not symmetric.
    """
    symmetric, with_grad = pairs.symmetric, grad_x is not None or grad_y is not None
    tiles = _tiles(pairs, _panels(pairs.x.shape[0]))
    kept = _Kept(pairs, tiles, workspace_bytes() if with_grad else 0)
    sums = pairs.x.new_zeros(1 if symmetric else 2, pairs.x.shape[0])
    of_rows, of_cols = sums[0], sums[-1]
    for i, tile in enumerate(tiles):
        found = kept.make(i)
        of_rows[tile.rows] += found.sum(1)
        if not symmetric:
            of_cols[tile.cols] += found.sum(0)
        elif tile.mirrored < tile.cols.stop:
            of_rows[tile.mirrored : tile.cols.stop] += found[:, tile.mirrored - tile.cols.start :].sum(0)
    weights = head(sums)
    if not with_grad:
        return
    e, f = weights.row.unsqueeze(1), weights.row if weights.col is None else weights.col
    room = pairs.x.new_empty(max(tile.size for tile in tiles))
    for i, tile in kept.again():
        w = torch.add(e[tile.rows], f[tile.cols], out=_view(room, tile)).mul_(kept.get(i))
        for offset, own in weights.own.items():
            fill_diagonal(w, tile, offset, own)
        _contract(pairs, tile, w, grad_x, grad_y)


def one_way(
    sets: Sequence[Pairs],
    head: Callable[[slice, Tensor], Weights],
    grad_x: Tensor | None = None,
    grads_y: Sequence[Tensor | None] = (),
) -> None:
    """The same where a row knows its weights as soon as its candidates have been seen: a visit of some rows at a time.

    Args:
        sets: the same rows against several sets of columns; the positives are in the first.
        head: makes the weights of some rows, a slice, of the sums of their exponentials.
        grad_x: ``(M, D)``, which is set to the weighted sums of the rows, if wanted.
        grads_y: for each set ``(N, D)``, to which the weighted sums of its columns are added, or ``None``.
    """
    x, with_cols = sets[0].x, any(grad is not None for grad in grads_y)
    for group in _groups(x, sum(pairs.y.shape[0] for pairs in sets)):
        panels, room = _panels(group.stop - group.start, group.start), workspace_bytes()
        kept = []
        for pairs in sets:
            kept.append(_Kept(pairs, _tiles(pairs, panels), room if grad_x is not None or with_cols else 0))
            room -= kept[-1].size_bytes
        sums = x.new_zeros(x.shape[0])  # of all rows, so that a tile need not know where its group starts
        for of_set in kept:
            for i, tile in enumerate(of_set.tiles):
                sums[tile.rows] += of_set.make(i).sum(1)
        weights = head(group, sums[group])
        row = weights.row.unsqueeze(1)
        for of_set, grad_y in itertools.zip_longest(kept, grads_y):
            if grad_x is None and grad_y is None:
                continue
            for i, tile in of_set.again():
                found = of_set.get(i)
                if of_set is kept[0]:
                    for offset, own in weights.own.items():
                        fill_diagonal(found, tile, offset, own)
                if grad_x is not None:
                    grad_x[tile.rows].addmm_(found, of_set.pairs.y[tile.cols])
                if grad_y is not None:
                    of_rows = row[tile.rows.start - group.start : tile.rows.stop - group.start]
                    grad_y[tile.cols].addmm_(found.T, of_rows * x[tile.rows])
        if grad_x is not None:
            grad_x[group].mul_(row)


class _Kept:
    """The exponentials of some tiles, in the order of the tiles; those that find no room are made again."""

    def __init__(self, pairs: Pairs, tiles: list[Tile], most_bytes: int) -> None:
        self.pairs, self.tiles = pairs, tiles
        most = most_bytes // pairs.x.element_size()
        self._starts, end = [], 0
        for tile in tiles:
            if end + tile.size > most:
                break
            self._starts.append(end)
            end += tile.size
        self._room = pairs.x.new_empty(end)
        rest = tiles[len(self._starts) :]
        self.size_bytes = end * pairs.x.element_size()
        self._scratch = pairs.x.new_empty(max(tile.size for tile in rest)) if rest else None

    def make(self, i: int) -> Tensor:
        """Those of a tile, computed."""
        tile = self.tiles[i]
        room = self._room[self._starts[i] :] if i < len(self._starts) else self._scratch
        assert room is not None
        return self.pairs.exponentials(tile, _view(room, tile))

    def again(self) -> Iterator[tuple[int, Tile]]:
        """The tiles from the last on, which is in the cache."""
        for i in reversed(range(len(self.tiles))):
            yield i, self.tiles[i]

    def get(self, i: int) -> Tensor:
        """The same again."""
        return _view(self._room[self._starts[i] :], self.tiles[i]) if i < len(self._starts) else self.make(i)


def _contract(pairs: Pairs, tile: Tile, weights: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
    """Adds a tile's weighted sums to those of the rows and of the columns, which are rows of a symmetric problem."""
    rows, cols = tile.rows, tile.cols
    if grad_x is not None:
        grad_x[rows].addmm_(weights, pairs.y[cols])
        if pairs.symmetric and tile.mirrored < cols.stop:
            grad_x[tile.mirrored : cols.stop].addmm_(weights[:, tile.mirrored - cols.start :].T, pairs.x[rows])
    if grad_y is not None:
        grad_y[cols].addmm_(weights.T, pairs.x[rows])


def _panels(length: int, start: int = 0) -> list[slice]:
    """The rows of tiles."""
    step = _ROWS if length > _ONE_TILE else _ONE_TILE
    return _slices(start, start + length, step)


def _groups(x: Tensor, columns: int) -> list[slice]:
    """Rows that are visited together in `one_way`."""
    of_row = columns * x.element_size()
    step = max(_ROWS, _GROUP_BYTES // of_row // _ROWS * _ROWS)
    if step * of_row > workspace_bytes():  # against a long queue fewer rows, rather than pairs that are made again
        step = max(_FEWEST_ROWS, min(step, workspace_bytes() // of_row // _FEWEST_ROWS * _FEWEST_ROWS))
    return _slices(0, x.shape[0], step)


def _tiles(pairs: Pairs, panels: list[slice]) -> list[Tile]:
    return [
        Tile(rows, cols)
        for rows in panels
        for cols in _slices(rows.start if pairs.symmetric else 0, pairs.y.shape[0], _COLS)
    ]


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]


def _view(room: Tensor, tile: Tile) -> Tensor:
    return room[: tile.size].view(tile.shape)
