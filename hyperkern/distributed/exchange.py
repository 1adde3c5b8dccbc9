"""The rows of the other ranks: all at once, or one shard after the other."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .group import ProcessGroup
from .ranks import Ranks, all_gather

# Of tensors, and of None where there is none on any rank.
Tensors = tuple[Any, ...]
# Waits for a transfer and gives what has arrived.
Arrival = Callable[[], Tensors]


# Rows of other ranks: whose they are, in the order of the rows, and the tensors in the order in which they were shared,
# ``(B, rows, ...)``; ``None`` for what was ``None``.
Block = tuple[list[int], Tensors]


# What has been sent by losses that failed before they took it in: nobody else would, and the next transfer of the group
# would meet it. By the identity of the arrival.
_under_way: dict[int, tuple[ProcessGroup | None, Arrival]] = {}


def settle(handle: ProcessGroup) -> None:
    """Takes in what a loss that failed on all ranks has left on its way."""
    for key, (of, arrival) in list(_under_way.items()):
        if of is handle:
            del _under_way[key]
            arrival()


class Remote:
    """What the other ranks hold of tensors that all ranks share; on its way from the moment this is made.

    Every rank goes through `blocks` the same number of times, to the end, and first without vectors.

    Args:
        ranks: who shares.
        tensors: ``(B, rows, ...)`` of this rank, the same but for the rows on every rank.

    Attributes:
        ranks: who shares.
        is_kept: whether the rows of the other ranks stay here between visits.
        state: after a visit all that a further one needs, for autograd to keep and to free.
    """

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor | None]) -> None:
        own, row_bytes = [], 0
        for tensor in tensors:
            rows = None if tensor is None else tensor.detach().contiguous()
            own.append(rows)
            if rows is not None:
                row_bytes += rows.itemsize * math.prod(rows.shape[:1] + rows.shape[2:])
        self.ranks, self.is_kept = ranks, ranks.keeps(row_bytes)
        self.state: Tensors = tuple(own)
        # The first transfer runs while the caller is busy with its own rows.
        arrival = self._gather(self.state) if self.is_kept else self._hop(1, _packed(self.state))
        self._first: Arrival | None = arrival
        _under_way[id(arrival)] = ranks.handle, arrival

    @classmethod
    def restored(cls, ranks: Ranks, state: Sequence[Tensor | None], *, kept: bool) -> "Remote":
        """One that has been visited before."""
        remote = cls.__new__(cls)
        remote.ranks, remote.is_kept, remote.state, remote._first = ranks, kept, tuple(state), None
        return remote

    def blocks(self, *vectors: Tensor | None, apart: bool = False) -> Iterable[Block]:
        """Visits the rows of all other ranks, with ``vectors``, ``(B, rows)`` of this rank, shared as well.

        ``apart`` is for the rows of each rank alone.
        """
        first, self._first = self._first, None
        if first is not None:
            _under_way.pop(id(first), None)
        if not self.is_kept:
            return self._around(first, vectors)
        if first is not None:
            self.state = first()
        tensors = self.state + self._gather(vectors)() if vectors else self.state
        others = self.ranks.others
        if apart and len(others) > 1:
            return self._apart(tensors)
        return [(others, tensors)] if others else []

    def _apart(self, tensors: Tensors) -> Iterator[Block]:
        others = self.ranks.others
        lengths = [self.ranks.counts[owner] for owner in others]
        shards = [[None] * len(others) if t is None else t.split(lengths, 1) for t in tensors]
        for i, owner in enumerate(others):
            yield [owner], tuple(shard[i] for shard in shards)

    def _around(self, first: Arrival | None, more: Tensors) -> Iterator[Block]:
        assert first is None or not more  # the first visit, under way already, is one without vectors
        own = self.state + more
        arrival = first or self._hop(1, _packed(own))
        del first  # or it would hold the first shard to the end
        size = len(self.ranks.counts)
        for distance in range(1, size):
            current = arrival()
            if distance + 1 < size:
                arrival = self._hop(distance + 1, current)  # under the computation with the current shard
            owner = self._owner(distance)
            if self.ranks.counts[owner]:
                yield [owner], _unpacked(current, own)
            del current

    def _owner(self, distance: int) -> int:
        """Whose shard is here after so many hops."""
        return (self.ranks.rank + distance) % len(self.ranks.counts)

    def _hop(self, distance: int, payload: Tensors) -> Arrival:
        """Passes the shard at hand to the rank below and takes that of the rank above, ``distance`` from its owner."""
        ranks = self.ranks
        count = ranks.counts[self._owner(distance)]
        arriving = tuple(t.new_empty(t.shape[0], count, *t.shape[2:]) for t in payload)
        below, above = (ranks.rank - 1) % len(ranks.counts), (ranks.rank + 1) % len(ranks.counts)
        transfers = [
            # One element for a shard without rows: a communicator is made by the first transfer that all ranks take
            # part in.
            dist.P2POp(operation, tensor if tensor.numel() else tensor.new_zeros(1), None, ranks.handle, tag, peer)
            for operation, peer, tensors in ((dist.isend, below, payload), (dist.irecv, above, arriving))
            for tag, tensor in enumerate(tensors)
        ]
        works = dist.batch_isend_irecv(transfers)

        def arrived() -> Tensors:
            for work in works:
                work.wait()
            return arriving

        return arrived

    def _gather(self, payload: Tensors) -> Arrival:
        """The rows of all other ranks, one rank after the other."""
        ranks, transfers = self.ranks, []
        most = max(ranks.counts)
        for tensor in _packed(payload):
            padded = _padded(tensor, most) if tensor.shape[1] < most else tensor
            transfers.append(all_gather(padded, len(ranks.counts), ranks.handle, wait=False))

        def arrived() -> Tensors:
            found = []
            for everywhere, work in transfers:
                work.wait()
                if ranks.others:
                    shards = []
                    for r in ranks.others:
                        shards.append(everywhere[r][:, : ranks.counts[r]])
                    found.append(torch.cat(shards, 1))
            return _unpacked(found, payload) if ranks.others else (None,) * len(payload)

        return arrived


def gather_rows(rows: Tensor, counts: Sequence[int], handle: ProcessGroup | None) -> Callable[[], list[Tensor]]:
    """Starts to gather ``(B, rows, ...)`` of every rank, of which each has its number of rows.

    Returns:
        A function that waits for them.
    """
    most = max(counts)
    padded = _padded(rows, most) if rows.shape[1] < most else rows
    everywhere, work = all_gather(padded, len(counts), handle, wait=False)

    def arrived() -> list[Tensor]:
        work.wait()
        return [shard[:, :count] for shard, count in zip(everywhere.unbind(), counts, strict=True)]

    return arrived


def _padded(rows: Tensor, most: int) -> Tensor:
    """With so many rows: a collective takes equal shapes only."""
    padding = rows.new_zeros(rows.shape[0], most - rows.shape[1], *rows.shape[2:])
    return torch.cat([rows, padding], 1)


def _packed(tensors: Tensors) -> Tensors:
    """What travels: the vectors of one dtype as one tensor, since each transfer has its price, however small."""
    found: list[Tensor] = []
    vectors: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor is not None and tensor.dim() > 2:
            found.append(tensor)
        elif tensor is not None:
            vectors.setdefault(tensor.dtype, []).append(tensor)
    for together in vectors.values():
        found.append(together[0].contiguous() if len(together) == 1 else torch.cat(together))
    return tuple(found)


def _unpacked(arrived: Sequence[Tensor], like: Tensors) -> Tensors:
    """What another rank has of ``like``, from what its `_packed` has become on the way."""
    found: list[Tensor | None] = [None] * len(like)
    places: dict[torch.dtype, list[int]] = {}
    at = 0
    for place, tensor in enumerate(like):
        if tensor is not None and tensor.dim() > 2:
            found[place] = arrived[at]
            at += 1
        elif tensor is not None:
            places.setdefault(tensor.dtype, []).append(place)
    for packed, together in zip(arrived[at:], places.values(), strict=True):
        for place, vector in zip(together, packed.chunk(len(together)), strict=True):
            found[place] = vector
    return tuple(found)
