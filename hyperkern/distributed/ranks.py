"""The processes that share a batch."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .graphs import outside_of_graphs
from .group import Group, ProcessGroup

# PyTorch 2.14 warns of the old name.
ALL_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
# Above it "auto" sends rows around a ring: what a rank may keep of other ranks' rows without much thought.
GATHER_BYTES = 512 << 20


class Ranks:
    """Who holds which rows of the batch.

    Attributes:
        rank: index of this process in the group.
        counts: rows of each rank.
        alone: whether this process has the whole batch.
        total: rows of the batch.
        offset: index in the batch of the first row of this rank.
        others: all ranks but this one that have rows.
        grad_factor: what gradients are multiplied by, see `Group`.
    """

    def __init__(self, counts: Sequence[int], handle: ProcessGroup | None = None, options: Group | None = None) -> None:
        self.counts, self.handle, self.options = counts, handle, options
        self.rank = 0 if handle is None else handle.rank()
        self.grad_factor = len(counts) if options is not None and options.grad_scale == "ddp" else 1
        self.alone = len(counts) == 1
        self.total, self.offset = (counts[0], 0) if self.alone else (sum(counts), sum(counts[: self.rank]))
        self.others: list[int] = []
        for r, count in enumerate(counts):
            if r != self.rank and count:
                self.others.append(r)

    def of_views(self, views: int) -> "Ranks":
        """The same ranks with the rows of several views each, one view after the other."""
        return Ranks([views * count for count in self.counts], self.handle, self.options)

    def keeps(self, row_bytes: int) -> bool:
        """Whether all rows are to be gathered and kept, rather than sent around."""
        assert self.options is not None
        if self.options.transport == "auto":
            return len(self.counts) * max(self.counts) * row_bytes <= GATHER_BYTES  # shards are padded to the longest
        return self.options.transport == "gather"

    def all(self, value: Tensor) -> Tensor:
        """``value``, of the same shape everywhere, of every rank, with a leading dimension for the ranks."""
        return value.unsqueeze(0) if self.alone else self._gathered(value.detach())

    @outside_of_graphs
    def _gathered(self, value: Tensor) -> Tensor:
        return all_gather(value, len(self.counts), self.handle)[0]

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, of the same numbers in the same order: the same bits on each of them."""
        return value if self.alone else self._gathered(value.detach()).sum(0)

    def max(self, value: Tensor) -> Tensor:
        """The largest of all ranks; nan if one has it."""
        return value if self.alone else self.all(value).amax(0)

    def to_owners(self, parts: dict[int, Tensor], like: Tensor) -> list[Tensor]:
        """Sends each rank what this one has for its rows.

        Args:
            parts: for other ranks ``(B, rows of that rank)``; what is missing goes as -inf.
            like: ``(B, rows of this rank)``.

        Returns:
            What the other ranks have for the rows of this one, ``(B, rows)`` each, in their order.
        """
        batch, own = like.shape
        arriving, leaving, sent = [batch * own] * len(self.counts), [], []
        arriving[self.rank] = 0
        for r, count in enumerate(self.counts):
            leaving.append(0 if r == self.rank else batch * count)
            part = parts.get(r)
            sent.append(like.new_full((leaving[r],), -torch.inf) if part is None else part.reshape(leaving[r]))
        received = like.new_empty(sum(arriving))
        dist.all_to_all_single(received, torch.cat(sent), arriving, leaving, group=self.handle)
        parts_here = received.view(-1, batch, own) if received.numel() else received.new_empty(0, batch, own)
        return list(parts_here.unbind())


def all_gather(value: Tensor, ranks: int, handle: ProcessGroup | None, *, wait: bool = True) -> tuple[Tensor, Any]:
    """``value`` of every rank, ``(ranks, ...)``, in one piece; unless ``wait``, with the work that fills it."""
    flat = value.reshape(1) if value.dim() == 0 else value.contiguous()
    everywhere = flat.new_empty(ranks * flat.shape[0], *flat.shape[1:])
    work = getattr(dist, ALL_GATHER)(everywhere, flat, group=handle, async_op=not wait)
    return everywhere.view(ranks, *value.shape), work
