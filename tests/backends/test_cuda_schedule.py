"""How the pairs of a problem are shared out among the multiprocessors: no GPU is needed to count tiles."""

import heapq
from collections.abc import Iterator

import pytest

from hyperkern.backends.cuda.operands import Tile
from hyperkern.backends.cuda.primitives import shares

MULTIPROCESSORS = 132
# The tiles of wgmma on an H200: of rows that stay in shared memory, and of those that stream.
RESIDENT, STREAMED = Tile(256, 128, 2, 1), Tile(256, 128, 2, 2)
SQUARE = 2

SIZES = [4096, 8192, 16384, 24576, 32768, 49152, 65536, 131072, 262144, 1048576]


Visits = list[tuple[int, range]]


def visits(i_stripe: int, i_cut: int, n: int, stripes: int, cuts: int, size: Tile, triangle: bool) -> Visits:
    """Row blocks of a block of threads and the tiles of each, as `Schedule` in ``csrc/layout.h`` gives them out."""
    blocks, tiles = -(-n // size.rows), -(-n // size.cols)
    found = []
    for first in range(0, blocks, stripes):
        i_block = first + (stripes - 1 - i_stripe if first // stripes % 2 == 1 else i_stripe)
        if i_block < blocks:
            left = i_block * SQUARE if triangle else 0
            end = -(-tiles // size.cluster) * size.cluster
            found.append((i_block, range(left + (i_cut - left) % cuts, end, cuts)))
    return found


def in_turn(of: Visits) -> Iterator[tuple[int, int]]:
    """Row block and tile of each step."""
    return ((i_block, tile) for i_block, tiles in of for tile in tiles)


def clusters(n: int, stripes: int, cuts: int, size: Tile, *, triangle: bool = True) -> list[list[Visits]]:
    """What the blocks of each cluster visit."""
    return [
        [visits(i_stripe, i_cut + rank, n, stripes, cuts, size, triangle) for rank in range(size.cluster)]
        for i_cut in range(0, cuts, size.cluster)
        for i_stripe in range(stripes)
    ]


def last_to_end(work: list[int], at_once: int) -> int:
    """When the last cluster ends, if each is followed by the next one as soon as it is done."""
    ends = [0] * at_once
    for tiles in work:
        heapq.heapreplace(ends, ends[0] + tiles)
    return max(ends)


@pytest.mark.parametrize("has_cols", [True, False])
@pytest.mark.parametrize("size", [RESIDENT, STREAMED], ids=["resident", "streamed"])
@pytest.mark.parametrize("n", SIZES)
def test_the_triangle_is_half_of_the_square(n: int, size: Tile, has_cols: bool) -> None:
    blocks, tiles = n // size.rows, n // size.cols
    stripes, cuts = shares(1, n, n, size, MULTIPROCESSORS, triangle=True, has_cols=has_cols)
    work = [
        [sum(len(tiles) for _, tiles in block) for block in cluster] for cluster in clusters(n, stripes, cuts, size)
    ]
    total = sum(sum(cluster) for cluster in work)
    assert total == blocks * tiles - SQUARE * blocks * (blocks - 1) // 2
    # Whole tiles: a small problem cannot be shared out evenly.
    share = total / MULTIPROCESSORS
    longest = last_to_end([max(cluster) for cluster in work], MULTIPROCESSORS // size.cluster)
    assert longest <= max(1.15 * share, share + 2)


@pytest.mark.parametrize("size", [RESIDENT, STREAMED], ids=["resident", "streamed"])
def test_a_small_problem_has_one_tile_for_each_block(size: Tile) -> None:
    stripes, cuts = shares(1, 2048, 2048, size, MULTIPROCESSORS, triangle=True, has_cols=True)
    blocks = [block for cluster in clusters(2048, stripes, cuts, size) for block in cluster]
    work = [sum(len(tiles) for _, tiles in block) for block in blocks]
    assert last_to_end(work, MULTIPROCESSORS) == 1


@pytest.mark.parametrize("triangle", [True, False])
@pytest.mark.parametrize("n", [8192, 16384, 65536])
def test_rows_that_stream_are_found_in_l2(n: int, triangle: bool) -> None:
    """The rows and columns that all multiprocessors work on in one step, of 2048 bytes each (D = 1024), against the L2
    of an H200: half of its 50 MB is near. What is not there comes from memory for every tile.
    """
    stripes, cuts = shares(1, n, n, STREAMED, MULTIPROCESSORS, triangle=triangle)
    of_clusters = clusters(n, stripes, cuts, STREAMED, triangle=triangle)
    running = [in_turn(block) for cluster in of_clusters for block in cluster]
    assert len(running) <= MULTIPROCESSORS
    windows = []
    while steps := [step for block in running if (step := next(block, None)) is not None]:
        rows, columns = ({step[i] for step in steps} for i in (0, 1))
        windows.append(STREAMED.rows * len(rows) + STREAMED.cols * len(columns))
    assert 2048 * sum(windows) / len(windows) <= 20e6
    assert 2048 * max(windows) <= 40e6  # for the few steps in which some are a round ahead


@pytest.mark.parametrize(("batch", "m", "n"), [(1, 256, 131072), (1, 100, 100), (3, 1000, 5000), (500, 300, 300)])
def test_odd_problems_fill_the_gpu(batch: int, m: int, n: int) -> None:
    """A short side, one tile, more problems than clusters: as many steps as a perfect share, rounded up."""
    stripes, cuts = shares(batch, m, n, STREAMED, MULTIPROCESSORS)
    assert 1 <= stripes <= -(-m // 256)
    assert cuts % 2 == 0
    steps = -(-m // 256 // stripes) * -(-n // 128 // cuts)
    at_once = MULTIPROCESSORS // 2
    waves = -(-batch * stripes * cuts // 2 // at_once)
    assert waves * steps <= 1.25 * batch * -(-m // 256) * -(-n // 256) / at_once + 1
