"""Pairs of ordinary rows, tile by tile: their exponentials are made once and kept for the gradient while they fit.

Tiles are wide and flat: a product, an exponential and two products more on each, as few and as long steps as the cache
allows, because the threads of a CPU wait for each other after every step.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...workspace import workspace_bytes

# Rows and columns of a tile: of seven shapes this was never slower than 256 x 2048, by up to 8 % faster, for N = 2048,
# 4096 and D = 128, 512 on two cores.
_ROWS = 512
_COLS = 2048
# Both are doubled where all sums come before any weight and no half of the pairs is the mirror of the other, which a
# longer tile would compute twice: 4096 rows are four tiles instead of sixteen, with as many waits less for a core that
# another process has taken (`benchmarks/busy.py`).
_LONGER = 2
# Rows whose tiles are kept together where each row knows its weights as soon as its candidates have been seen.
_GROUP_BYTES = 8 << 20
_FEWEST_ROWS = 32


class Tile(NamedTuple):
    """Some rows and some columns.

    Attributes:
        rows: which.
        cols: which.
        shape: their numbers.
        size: the number of pairs.
        mirrored: of a symmetric problem, the first column that stands for its mirror image too.
        whole: whether these are all rows and all columns.
    """

    rows: slice
    cols: slice
    shape: tuple[int, int]
    size: int
    mirrored: int
    whole: bool


class Pairs(NamedTuple):
    """Rows against columns.

    Attributes:
        x: ``(M, D)`` rows.
        y: ``(N, D)`` columns.
        scale: of the logit ``scale <x_i, y_j>``.
        shift: subtracted from it, so that no sum overflows.
        symmetric: whether ``y`` stands for ``x``: each pair is its mirror image too, and tiles cover the diagonal and
            what is right of it. Two arguments of a loss may be one tensor without that.
        left_out: the diagonals ``j - i`` of pairs that do not count, and room for their logits less the shift, one for
            each row from the first that has one, where they are wanted.
    """

    x: Tensor
    y: Tensor
    scale: float
    shift: float = 0.0
    symmetric: bool = False
    left_out: tuple[tuple[int, Tensor | None], ...] = ()

    def tiles(self, rows: slice, longer: int = 1) -> tuple[Tile, ...]:
        """Those of some rows with all columns, a multiple of the usual in both directions."""
        shape, sizes = (self.x.shape[0], self.y.shape[0]), (_ROWS * longer, _COLS * longer)
        return _tiles(*shape, rows.start, rows.stop, self.symmetric, sizes)

    def exponentials(self, tile: Tile, room: Tensor | None = None) -> Tensor:
        """``exp(l_ij - shift)`` of a tile, 0 for the pairs that are left out, at the beginning of ``room`` if given."""
        x, y = (self.x, self.y) if tile.whole else (self.x[tile.rows], self.y[tile.cols])
        out = x.new_empty(tile.shape) if room is None else room[: tile.size].view(tile.shape)
        torch.addmm(out, x, y.T, beta=0, alpha=self.scale, out=out)
        if self.shift:
            out.sub_(self.shift)
        for offset, room_for in self.left_out:
            if (found := _diagonal(out, tile, offset)) is not None:
                diagonal, start = found
                if room_for is not None:
                    _of_rows(room_for, diagonal, start).copy_(diagonal)
                diagonal.fill_(-math.inf)
        return out.exp_()

    def contract(self, tile: Tile, weights: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """Adds the weighted sums of a tile to those of its rows and columns, which are one in a symmetric problem."""
        rows, cols, mirrored = tile.rows, tile.cols, tile.mirrored
        if grad_x is not None:
            grad_x[rows].addmm_(weights, self.y[cols])
            if self.symmetric and mirrored < cols.stop:
                grad_x[mirrored : cols.stop].addmm_(weights[:, mirrored - cols.start :].T, self.x[rows])
        if grad_y is not None:
            grad_y[cols].addmm_(weights.T, self.x[rows])


@functools.lru_cache(maxsize=1024)
def _tiles(m: int, n: int, start: int, stop: int, symmetric: bool, sizes: tuple[int, int]) -> tuple[Tile, ...]:
    """The same for a shape, which comes back at every call."""
    found = []
    for of_rows in _slices(start, stop, sizes[0]):
        for of_cols in _slices(of_rows.start if symmetric else 0, n, sizes[1]):
            shape = of_rows.stop - of_rows.start, of_cols.stop - of_cols.start
            mirrored = max(of_cols.start, of_rows.stop)
            found.append(Tile(of_rows, of_cols, shape, shape[0] * shape[1], mirrored, shape == (m, n)))
    return tuple(found)


def _diagonal(values: Tensor, tile: Tile, offset: int) -> tuple[Tensor, int] | None:
    """Of a tile, the elements whose column is the row plus ``offset``, and the first row that has one."""
    rows, cols = tile.shape
    first = tile.rows.start + offset - tile.cols.start
    if not -rows < first < cols:
        return None
    return values.diagonal(first), tile.rows.start + max(0, -first)


def _of_rows(values: Tensor, diagonal: Tensor, start: int) -> Tensor:
    """Those that belong to a diagonal; all of them need no slice."""
    size = diagonal.shape[0]
    return values if size == values.shape[0] else values[start : start + size]


def put_weights(weights: Tensor, tile: Tile, own: dict[int, Tensor], first: int = 0) -> None:
    """Puts the weights of the positives, those of the rows from ``first`` on, where they belong."""
    for offset, of_rows in own.items():
        if (found := _diagonal(weights, tile, offset)) is not None:
            diagonal, start = found
            diagonal.copy_(_of_rows(of_rows, diagonal, start - first))


class Weights(NamedTuple):
    """What exponentials are multiplied by to give the derivatives of a loss by the logits.

    Attributes:
        row: ``(M,)`` factors ``e_i``.
        col: ``(N,)`` factors ``f_j`` that are added to them; ``None`` for none. Of a symmetric problem ``e`` itself.
        own: for the diagonals ``j - i`` that hold the positives, ``(M,)`` the weight of the pair of each row there.
            Of `one_way` it is multiplied by ``e_i`` too.
    """

    row: Tensor
    col: Tensor | None
    own: dict[int, Tensor]


def _contracted(
    pairs: Pairs, weights: Tensor, grad_x: Tensor | None, grad_y: Tensor | None, *, first: bool = True
) -> None:
    """`Pairs.contract` where one tile is everything, in place of what is there, of rows where these come first."""
    if grad_x is not None:
        if first:
            torch.mm(weights, pairs.y, out=grad_x)
        else:
            grad_x.addmm_(weights, pairs.y)
    if grad_y is not None:
        torch.mm(weights.T, pairs.x, out=grad_y)


def accurate_sum(values: Tensor) -> float:
    """Of a tile, in float64 but for the rows: the loss is the logarithm of a mean of N^2 numbers."""
    return values.sum(1).sum(dtype=torch.float64).item()


def energy(
    pairs: Pairs,
    grad_x: Tensor | None = None,
    grad_y: Tensor | None = None,
    weigh: Callable[[Tensor, Tile], float] | None = None,
) -> float:
    """The sum of a potential over all ordered pairs, and its derivatives by the logits, contracted meanwhile.

    Args:
        pairs: which.
        grad_x: ``(M, D)``, which is set to ``sum_j w_ij y_j``, if wanted.
        grad_y: ``(N, D)``, which is set to ``sum_i w_ij x_i``, where the problem is not symmetric.
        weigh: makes the weights of the exponentials of a tile, in their place, and returns the sum of the potential;
            ``None`` where both are the exponential itself. For problems that are not symmetric.
    """
    tiles = pairs.tiles(slice(0, pairs.x.shape[0]))
    if tiles[0].whole:
        weights = pairs.exponentials(tiles[0])
        total = accurate_sum(weights) if weigh is None else weigh(weights, tiles[0])
        _contracted(pairs, weights, grad_x, grad_y)
        return total
    for grad in (grad_x, grad_y):
        if grad is not None:
            grad.zero_()
    room, total = pairs.x.new_empty(_largest(tiles)), 0.0
    for tile in tiles:
        weights = pairs.exponentials(tile, room)
        if weigh is not None:
            total += weigh(weights, tile)
        elif not pairs.symmetric:
            total += accurate_sum(weights)
        else:  # what is right of the diagonal counts in both orders
            diagonal = weights[:, : tile.mirrored - tile.cols.start]
            total += 2 * accurate_sum(weights) - accurate_sum(diagonal)
        pairs.contract(tile, weights, grad_x, grad_y)
    return total


def two_sided(
    pairs: Pairs, head: Callable[[Tensor], Weights], grad_x: Tensor | None = None, grad_y: Tensor | None = None
) -> None:
    """The derivatives by the logits of a loss that knows its weights when all pairs have been seen, contracted.

    Args:
        pairs: which.
        head: makes the weights of the sums of the exponentials, ``(2, M)`` of rows and columns or, of a symmetric
            problem, ``(M,)``.
        grad_x: ``(M, D)``, which is set to ``sum_j w_ij y_j``, if wanted, of a symmetric problem with both orders of
            each pair in it.
        grad_y: ``(N, D)``, which is set to ``sum_i w_ij x_i``, where the problem is not symmetric.
    """
    symmetric, with_grad = pairs.symmetric, grad_x is not None or grad_y is not None
    tiles = pairs.tiles(slice(0, pairs.x.shape[0]), 1 if symmetric else _LONGER)
    if tiles[0].whole:  # without the steps that put tiles together: they take as long as the tile
        found = pairs.exponentials(tiles[0])
        sums = found.sum(1) if symmetric else torch.stack((found.sum(1), found.sum(0)))
        weights = head(sums)
        if with_grad:
            w = torch.add(weights.row.unsqueeze(1), weights.row if weights.col is None else weights.col).mul_(found)
            put_weights(w, tiles[0], weights.own)
            _contracted(pairs, w, grad_x, grad_y)
        return
    for grad in (grad_x, grad_y):
        if grad is not None:
            grad.zero_()
    kept = _Kept(pairs, tiles, workspace_bytes() if with_grad else 0)
    sums = pairs.x.new_zeros(1 if symmetric else 2, pairs.x.shape[0])
    of_rows, of_cols = sums[0], sums[-1]
    for i, tile in enumerate(tiles):
        found = kept.make(i)
        of_rows[tile.rows].add_(found.sum(1))
        if not symmetric:
            of_cols[tile.cols].add_(found.sum(0))
        elif tile.mirrored < tile.cols.stop:
            of_rows[tile.mirrored : tile.cols.stop].add_(found[:, tile.mirrored - tile.cols.start :].sum(0))
    weights = head(of_rows if symmetric else sums)
    if not with_grad:
        return
    e, f = weights.row.unsqueeze(1), weights.row if weights.col is None else weights.col
    room = pairs.x.new_empty(_largest(tiles))
    for i in range(len(tiles) - 1, -1, -1):  # from the last on, which is in the cache
        tile = tiles[i]
        w = torch.add(e[tile.rows], f[tile.cols], out=room[: tile.size].view(tile.shape)).mul_(kept.get(i))
        put_weights(w, tile, weights.own)
        pairs.contract(tile, w, grad_x, grad_y)


def one_way(
    sets: Sequence[Pairs],
    head: Callable[[slice, Tensor], Weights],
    grad_x: Tensor | None = None,
    grads_y: Sequence[Tensor | None] = (),
) -> None:
    """The same where a row knows its weights as soon as its candidates have been seen: a visit of some rows at a time.

    Many columns without a gradient, among which no positive is, need no weights: exponentials are contracted, and the
    factor of the row comes later. All rows visit them at once, so that a long queue is read once. Not behind a shift:
    there ``head`` may decline what the first rows have summed, before all that work.

    Args:
        sets: the same rows against several sets of columns; the positives are in the first, if in any.
        head: makes the weights of some rows, a slice, of the sums of their exponentials.
        grad_x: ``(M, D)``, which is set to the weighted sums of the rows, if wanted.
        grads_y: for each set ``(N, D)``, which is set to the weighted sums of its columns, or ``None``.
    """
    x = sets[0].x
    with_grad = grad_x is not None or any([grad is not None for grad in grads_y])
    everything = slice(0, x.shape[0])
    tiles = [pairs.tiles(everything)[0] for pairs in sets]
    if all([tile.whole for tile in tiles]):  # as in `two_sided`
        exponentials = [pairs.exponentials(tile) for pairs, tile in zip(sets, tiles, strict=True)]
        sums = exponentials[0].sum(1)
        for more in exponentials[1:]:
            sums.add_(more.sum(1))
        weights = head(everything, sums)
        if with_grad:
            put_weights(exponentials[0], tiles[0], weights.own)
            row = weights.row.unsqueeze(1)
            for i, (pairs, of_pairs, grad_y) in enumerate(itertools.zip_longest(sets, exponentials, grads_y)):
                _contracted(pairs, of_pairs.mul_(row), grad_x, grad_y, first=i == 0)
        return
    for grad in (grad_x, *grads_y):
        if grad is not None:
            grad.zero_()
    sums = x.new_zeros(x.shape[0])
    weighed: list[tuple[Pairs, Tensor | None]] = []
    for pairs, grad_y in itertools.zip_longest(sets, grads_y):
        if grad_y is None and not pairs.left_out and not pairs.shift:
            _contract_exponentials(pairs, sums, grad_x)
        else:
            weighed.append((pairs, grad_y))
    for group in _groups(x, sum(pairs.y.shape[0] for pairs, _ in weighed)):
        kept, room = [], workspace_bytes() if with_grad else 0
        for pairs, _ in weighed:
            kept.append(_Kept(pairs, pairs.tiles(group), room))
            room -= kept[-1].size_bytes
        for of_set in kept:
            for i, tile in enumerate(of_set.tiles):
                sums[tile.rows].add_(of_set.make(i).sum(1))
        weights = head(group, sums[group])
        if not with_grad:
            continue
        row = weights.row.unsqueeze(1)
        weighted = x[group] * row
        for of_set, (pairs, grad_y) in zip(kept, weighed, strict=True):
            for i in range(len(of_set.tiles) - 1, -1, -1):  # from the last on, which is in the cache
                tile, found = of_set.tiles[i], of_set.get(i)
                if pairs is sets[0]:
                    put_weights(found, tile, weights.own, group.start)
                of_set.pairs.contract(tile, found, grad_x, None)
                if grad_y is not None:
                    of_rows = weighted[tile.rows.start - group.start : tile.rows.stop - group.start]
                    grad_y[tile.cols].addmm_(found.T, of_rows)
        if grad_x is not None:
            grad_x[group].mul_(row)


def _contract_exponentials(pairs: Pairs, sums: Tensor, grad: Tensor | None) -> None:
    """Adds the sums of rows, and of the columns what they multiply: a column block after another, each for all rows."""
    tiles = sorted(pairs.tiles(slice(0, pairs.x.shape[0])), key=lambda tile: tile.cols.start)
    room = pairs.x.new_empty(_largest(tiles))
    for tile in tiles:
        found = pairs.exponentials(tile, room)
        sums[tile.rows].add_(found.sum(1))
        pairs.contract(tile, found, grad, None)


class _Kept:
    """The exponentials of some tiles, in the order of the tiles; those that find no room are made again."""

    def __init__(self, pairs: Pairs, tiles: tuple[Tile, ...], most_bytes: int) -> None:
        self.pairs, self.tiles = pairs, tiles
        most = most_bytes // pairs.x.element_size()
        self._starts, end = [], 0
        for tile in tiles:
            if end + tile.size > most:
                break
            self._starts.append(end)
            end += tile.size
        self.size_bytes = end * pairs.x.element_size()
        self._room = pairs.x.new_empty(end)
        rest = tiles[len(self._starts) :]
        self._scratch = pairs.x.new_empty(_largest(rest)) if rest else None

    def make(self, i: int) -> Tensor:
        """Those of a tile, computed."""
        room = self._room[self._starts[i] :] if i < len(self._starts) else self._scratch
        assert room is not None
        return self.pairs.exponentials(self.tiles[i], room)

    def get(self, i: int) -> Tensor:
        """The same again."""
        if i >= len(self._starts):
            return self.make(i)
        start, tile = self._starts[i], self.tiles[i]
        return self._room[start : start + tile.size].view(tile.shape)


def _largest(tiles: Sequence[Tile]) -> int:
    return max([tile.size for tile in tiles])


def _groups(x: Tensor, columns: int) -> list[slice]:
    """Rows that are visited together in `one_way`; all where they have nobody left to visit."""
    if columns == 0:
        return [slice(0, x.shape[0])]
    of_row = columns * x.element_size()
    step = max(_ROWS, _GROUP_BYTES // of_row // _ROWS * _ROWS)
    if step * of_row > workspace_bytes():  # against a long queue fewer rows, rather than pairs that are made again
        step = max(_FEWEST_ROWS, min(step, workspace_bytes() // of_row // _FEWEST_ROWS * _FEWEST_ROWS))
    return _slices(0, x.shape[0], step)


def _slices(start: int, stop: int, step: int) -> list[slice]:
    return [slice(at, min(at + step, stop)) for at in range(start, stop, step)]
