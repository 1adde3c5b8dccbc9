"""The processes that the tests of several ranks share."""

import pytest
from ranks import RankError, Ranks


def number(rank: int) -> int:
    return rank


def test_a_rank_that_was_killed_is_said_once() -> None:
    ranks = Ranks()
    try:
        killed = ranks(2).processes[1]
        killed.kill()
        killed.join()
        with pytest.raises(RankError, match="rank 1 has ended"):
            ranks(2).run(number)
        assert ranks(2).run(number) == [0, 1]
    finally:
        ranks.close()
