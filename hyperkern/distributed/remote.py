"""The rows of the other ranks: all at once, or one shard after the other."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .group import ProcessGroup
from .ranks import Ranks, all_gather

# Of tensors, and of None where there is none on any rank.
Tensors = tuple[Any, ...]
# Waits for a transfer and gives what has arrived.
Arrival = Callable[[], Tensors]


class Block(NamedTuple):
    """Rows of other ranks.

    Attributes:
        owners: whose they are, in the order of the rows.
        tensors: in the order in which they were shared, ``(B, rows, ...)``; ``None`` for what was ``None``.
    """

    owners: list[int]
    tensors: Tensors


# What has been sent by losses that failed before they took it in: nobody else would, and the next transfer of the group
# would meet it.
_under_way: list[tuple[ProcessGroup | None, Arrival]] = []


def settle(handle: ProcessGroup) -> None:
    """Takes in what a loss that failed on all ranks has left on its way."""
    left = [transfer for transfer in _under_way if transfer[0] is handle]
    _under_way[:] = [transfer for transfer in _under_way if transfer[0] is not handle]
    for _, arrival in left:
        arrival()


class Remote:
    """What the other ranks hold of tensors that all ranks share; on its way from the moment this is made.

    Every rank goes through `blocks` the same number of times, to the end, and first without vectors.

    Args:
        ranks: who shares.
        tensors: ``(B, rows, ...)`` of this rank, the same but for the rows on every rank.
    """

    def __init__(self, ranks: Ranks, tensors: Sequence[Tensor | None]) -> None:
        self.ranks, self._own = ranks, _detached(tensors)
        self._keeps = ranks.keeps(sum(map(_row_bytes, self._own)))
        self._kept: Tensors | None = None
        # The first transfer runs while the caller is busy with its own rows.
        arrival = self._gather(self._own) if self._keeps else self._hop(1, self._own)
        self._started: tuple[ProcessGroup | None, Arrival] | None = (ranks.handle, arrival)
        _under_way.append(self._started)

    def state(self) -> Tensors:
        """After a visit all that a further one needs, for autograd to keep and to free."""
        return self._own if self._kept is None else self._kept

    @classmethod
    def restored(cls, ranks: Ranks, state: Sequence[Tensor | None], *, kept: bool) -> "Remote":
        """One that has been visited before."""
        remote = cls.__new__(cls)
        remote.ranks, remote._keeps, remote._started = ranks, kept, None
        remote._own = remote._kept = tuple(state)
        return remote

    @property
    def is_kept(self) -> bool:
        """Whether the rows of the other ranks stay here between visits."""
        return self._keeps

    def blocks(self, *vectors: Tensor | None) -> Iterator[Block]:
        """Visits the rows of all other ranks, with ``vectors``, ``(B, rows)`` of this rank, shared as well."""
        return (self._gathered if self._keeps else self._around)(_detached(vectors))

    def _first(self) -> Arrival | None:
        started, self._started = self._started, None
        if started is None:
            return None
        # By identity: equality would compare what is not comparable.
        _under_way[:] = [transfer for transfer in _under_way if transfer is not started]
        return started[1]

    def _gathered(self, more: Tensors) -> Iterator[Block]:
        first = self._first()
        if first is not None:
            self._kept = first()
        assert self._kept is not None
        arrived = self._gather(more)()
        if self.ranks.others:
            yield Block(self.ranks.others, self._kept + arrived)

    def _around(self, more: Tensors) -> Iterator[Block]:
        first = self._first()
        assert first is None or not more  # the first visit, under way already, is one without vectors
        arrival = first or self._hop(1, self._own + more)
        del first  # or it would hold the first shard to the end
        size = len(self.ranks.counts)
        for distance in range(1, size):
            current = arrival()
            if distance + 1 < size:
                arrival = self._hop(distance + 1, current)  # under the computation with the current shard
            owner = self._owner(distance)
            if self.ranks.counts[owner]:
                yield Block([owner], current)
            del current

    def _owner(self, distance: int) -> int:
        """Whose shard is here after so many hops."""
        return (self.ranks.rank + distance) % len(self.ranks.counts)

    def _hop(self, distance: int, payload: Tensors) -> Arrival:
        """Passes the shard at hand to the rank below and takes that of the rank above, ``distance`` from its owner."""
        ranks = self.ranks
        arriving = tuple(
            None if t is None else t.new_empty(t.shape[0], ranks.counts[self._owner(distance)], *t.shape[2:])
            for t in payload
        )
        below, above = (ranks.rank - 1) % len(ranks.counts), (ranks.rank + 1) % len(ranks.counts)
        transfers = [
            # One element for a shard without rows: a communicator is made by the first transfer that all ranks take
            # part in.
            dist.P2POp(operation, tensor if tensor.numel() else tensor.new_zeros(1), None, ranks.handle, tag, peer)
            for operation, peer, tensors in ((dist.isend, below, payload), (dist.irecv, above, arriving))
            for tag, tensor in enumerate(tensors)
            if tensor is not None
        ]
        works = dist.batch_isend_irecv(transfers)

        def arrived() -> Tensors:
            for work in works:
                work.wait()
            return arriving

        return arrived

    def _gather(self, payload: Tensors) -> Arrival:
        """The rows of all other ranks, one rank after the other."""
        ranks = self.ranks
        transfers = [None if t is None else gather_rows(t, ranks.counts, ranks.handle) for t in payload]

        def arrived() -> Tensors:
            shards = [None if transfer is None else transfer() for transfer in transfers]
            if not ranks.others:
                return (None,) * len(shards)
            return tuple(None if s is None else torch.cat([s[r] for r in ranks.others], 1) for s in shards)

        return arrived


def gather_rows(rows: Tensor, counts: Sequence[int], handle: ProcessGroup | None) -> Callable[[], list[Tensor]]:
    """Starts to gather ``(B, rows, ...)`` of every rank, of which each has its number of rows.

    Returns:
        A function that waits for them.
    """
    most = max(counts)
    if rows.shape[1] < most:  # a collective takes equal shapes only
        padding = rows.new_zeros(rows.shape[0], most - rows.shape[1], *rows.shape[2:])
        rows = torch.cat([rows, padding], 1)
    everywhere, work = all_gather(rows, len(counts), handle, wait=False)

    def arrived() -> list[Tensor]:
        work.wait()
        return [shard[:, :count] for shard, count in zip(everywhere, counts, strict=True)]

    return arrived


def _detached(tensors: Sequence[Tensor | None]) -> Tensors:
    return tuple(None if t is None else t.detach().contiguous() for t in tensors)


def _row_bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.itemsize * math.prod(tensor.shape[:1] + tensor.shape[2:])
