"""How the pairs of a symmetric problem are shared out among the multiprocessors: no GPU is needed to count tiles."""

import heapq

import pytest

from hyperkern.backends.common.partials import cut
from hyperkern.backends.cuda.primitives import stripes_of

ROWS, COLS, SQUARE, MULTIPROCESSORS = 256, 128, 2, 132  # the tiles of wgmma on an H200


def tiles_of_blocks(blocks: int, tiles: int, stripes: int, cuts: int) -> list[int]:
    """The tiles of each block of threads, as `Schedule` in ``csrc/layout.h`` gives them out."""
    found = []
    for i_cut in range(cuts):
        for i_stripe in range(stripes):
            count = 0
            for first in range(0, blocks, stripes):
                backwards = first // stripes % 2 == 1
                i_block = first + (stripes - 1 - i_stripe if backwards else i_stripe)
                if i_block < blocks:
                    left = tiles - min(i_block * SQUARE, tiles)
                    count += (i_cut + 1) * left // cuts - i_cut * left // cuts
            found.append(count)
    return found


def last_to_end(work: list[int]) -> int:
    """When the last multiprocessor ends, if each takes the next block of threads as soon as it is free."""
    ends = [0] * MULTIPROCESSORS
    for tiles in work:
        heapq.heapreplace(ends, ends[0] + tiles)
    return max(ends)


@pytest.mark.parametrize("has_cols", [True, False])
@pytest.mark.parametrize("n", [4096, 8192, 16384, 24576, 32768, 49152, 65536, 131072, 262144, 1048576])
def test_the_triangle_is_half_of_the_square(n: int, has_cols: bool) -> None:
    blocks, tiles = n // ROWS, n // COLS
    stripes = stripes_of(1, blocks, tiles, MULTIPROCESSORS, triangle=True, has_cols=has_cols)
    work = tiles_of_blocks(blocks, tiles, stripes, cut(stripes, tiles, 4 * n, MULTIPROCESSORS))
    share = sum(work) / MULTIPROCESSORS
    assert sum(work) == blocks * tiles - SQUARE * blocks * (blocks - 1) // 2
    # Whole tiles: a small problem cannot be shared out evenly.
    assert last_to_end(work) <= max(1.15 * share, share + 2)


def test_a_small_problem_has_one_tile_for_each_block() -> None:
    blocks, tiles = 2048 // ROWS, 2048 // COLS
    stripes = stripes_of(1, blocks, tiles, MULTIPROCESSORS, triangle=True, has_cols=True)
    assert last_to_end(tiles_of_blocks(blocks, tiles, stripes, cut(stripes, tiles, 4 * 2048, MULTIPROCESSORS))) == 1
