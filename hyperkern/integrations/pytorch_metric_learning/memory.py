"""Earlier features as the candidates of a loss."""

from typing import Any

import torch
from torch import Tensor

from ... import autograd
from ...arguments import check_integer, check_rows
from ...distributed import Agreement, GroupLike, Ranks, as_group, gather_rows
from .._options import DropIn
from .base import Found, Loss, labels_of, zero
from .losses import NTXentLoss, SupConLoss
from .named import as_pairs, as_triplets, check_range, checked, without_itself


class CrossBatchMemory(DropIn):
    """A loss of the rows of a batch against the newest rows of all batches, this one included.

    No pairs are named for it unless a miner does. With a ``group`` every process enqueues the rows of all of them, in
    the order of the processes, so that all have the same memory; the loss is the mean over the anchors of all, the same
    number on each, as of one process with the whole batch. Its gradient is that of the own rows, see `hyperkern.Group`
    for its scale; no gradient travels. The original does this by its ``DistributedLossWrapper``, which does not take
    this class.

    **State.** The buffers are those of the original, ``embedding_memory`` and ``label_memory``, and so is the state
    dict. It has neither ``queue_idx``, where the next row goes, nor ``has_been_filled``, which are attributes: to go on
    from a file set both after loading it.

    What differs: a mask without a row to enqueue leaves the memory as it is, where the original takes an unfilled
    memory for a full one from then on.

    Args:
        loss: a `NTXentLoss` or a `SupConLoss` from here.
        embedding_size: D.
        memory_size: the most rows it holds.
        miner: names the pairs or triplets that count, of anchors, their labels, the memory and its labels; by default
            all pairs of the labels do.
        collect_stats: as the original's; there are no statistics.
        group: the processes that share a memory, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension
            or a `hyperkern.Group`.

    Raises:
        TypeError: another loss, a size that is no integer, or a ``group`` of another type.
        ValueError: a size below 1.

    Source:
        Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020, Section 3.2.
    """

    _not_here = ("add_to_memory", "create_indices_tuple", "check_loss_support", "supported_losses")

    embedding_memory: Tensor
    label_memory: Tensor

    def __init__(
        self,
        loss: NTXentLoss | SupConLoss,
        embedding_size: int,
        memory_size: int = 1024,
        miner: Any = None,
        *,
        collect_stats: bool | None = None,
        group: GroupLike = None,
    ) -> None:
        super().__init__()
        check_integer("embedding_size", embedding_size, 1)
        check_integer("memory_size", memory_size, 1)
        self.loss, self.miner = loss, miner
        self.embedding_size, self.memory_size = embedding_size, memory_size
        self.collect_stats = bool(collect_stats)
        self.group = as_group(group)
        self.reset_queue()
        self._record_these = ["embedding_size", "memory_size", "queue_idx"]  # what loggers of the original read

    def reset_queue(self) -> None:
        """Forgets all rows, and takes the sizes that were set since."""
        device = self.embedding_memory.device if hasattr(self, "embedding_memory") else None
        memory = torch.zeros(self.memory_size, self.embedding_size, device=device)
        self.register_buffer("embedding_memory", memory)
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64, device=device))
        self.queue_idx, self.has_been_filled = 0, False

    def reset_stats(self) -> None:
        """Forgets the statistics, of which there are none."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """Enqueues rows and gives the loss against all that there are; a row is no positive of itself.

        Args:
            embeddings: ``(N, D)``, at most as many as the memory holds; of all processes together.
            labels: ``(N,)`` their classes, of any dtype and on any device.
            indices_tuple: pairs or triplets that count as well, of rows of ``embeddings`` and of the memory.
            enqueue_mask: ``(N,)`` bool, the rows to enqueue; the others are the anchors. By default all are both.

        Returns:
            A scalar, as that of the loss.

        Raises:
            IndexError: rows are named that there are not.
            NotImplementedError: a reducer or a regularizer of the loss, with a ``group``.
            TypeError: an input is no tensor or of a wrong dtype.
            ValueError: wrong shapes, more rows than the memory holds, both ``indices_tuple`` and ``enqueue_mask``; with
                a ``group``, on all processes, also memories that differ.
        """
        self.reset_stats()
        state = {"memory": tuple(self.embedding_memory.shape), "at": self.queue_idx, "filled": self.has_been_filled}
        with Agreement(self.group, "CrossBatchMemory", rows_optional=True, **state) as agreed:
            labels = self._checked(embeddings, labels, indices_tuple, enqueue_mask)
            if agreed.may_be_empty and not self.loss.has_defaults():
                options = f"reducer={self.loss.reducer!r} and embedding_regularizer={self.loss.embedding_regularizer!r}"
                raise NotImplementedError(f"{options} are not supported with a group: only the defaults are")
            rows, row_labels = embeddings.detach(), labels
            if enqueue_mask is not None:
                chosen = enqueue_mask.to(embeddings.device)
                rows, row_labels = rows[chosen], labels[chosen]
                embeddings, labels = embeddings[~chosen], labels[~chosen]
            agreed.shard(embeddings=rows)
            agreed.also(loss=type(self.loss).__name__, temperature=self.loss.temperature, labels=str(labels.dtype))
            agreed.also(enqueue_mask=enqueue_mask is not None)
        start = self._enqueue(rows, row_labels, agreed.ranks)
        found = self._found(embeddings, labels, indices_tuple, start if enqueue_mask is None else None)
        return self._reduced(found, embeddings, labels, agreed.ranks)

    def _checked(self, x: Tensor, labels: Tensor, indices_tuple: Any, mask: Tensor | None) -> Tensor:
        check_rows("embeddings", x, batched=False, may_be_empty=True)
        if x.shape[1] != self.embedding_memory.shape[1]:
            raise ValueError(f"embeddings must have shape (N, {self.embedding_memory.shape[1]}), got {tuple(x.shape)}")
        if mask is None:
            return labels_of("labels", labels, "embeddings", x)
        if indices_tuple is not None:
            raise ValueError("indices_tuple and enqueue_mask exclude each other, got both")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"enqueue_mask must be a tensor of bool, got {mask!r}")
        if mask.shape != x.shape[:1]:
            raise ValueError(f"enqueue_mask must have shape ({len(x)},), got {tuple(mask.shape)}")
        return labels_of("labels", labels, "embeddings", x)

    def _enqueue(self, rows: Tensor, labels: Tensor, ranks: Ranks) -> int:
        """Writes the rows of all processes; returns where those of this one start."""
        size = len(self.embedding_memory)
        if ranks.total > size:
            raise ValueError(f"embeddings must be at most as many as the memory holds, {size}, got {ranks.total}")
        self.embedding_memory = self.embedding_memory.to(rows)
        self.label_memory = self.label_memory.to(labels)
        if not ranks.alone and ranks.total:
            # Of integers the widest: the narrow ones are not sent by every library.
            wide = labels if labels.is_floating_point() else labels.to(torch.int64)
            arriving = [gather_rows(t.unsqueeze(0), ranks.counts, ranks.handle) for t in (rows, wide)]
            rows, labels = (torch.cat(arrived(), 1).squeeze(0) for arrived in arriving)
        at = (self.queue_idx + torch.arange(ranks.total, device=rows.device)) % size
        self.embedding_memory[at] = rows
        self.label_memory[at] = labels.to(self.label_memory.dtype)
        start = (self.queue_idx + ranks.offset) % size
        self.has_been_filled = self.has_been_filled or self.queue_idx + ranks.total >= size
        self.queue_idx = (self.queue_idx + ranks.total) % size
        self.curr_batch_idx = at
        return start

    def _found(self, x: Tensor, labels: Tensor, indices_tuple: Any, start: int | None) -> Found:
        """The terms of the anchors, which are the rows of the memory from ``start`` on if they are in it."""
        known = slice(None) if self.has_been_filled else slice(self.queue_idx)
        memory, memory_labels = self.embedding_memory[known], self.label_memory[known]
        if self.miner is None and indices_tuple is None:
            if start is not None:  # the anchors first: column i is row i then
                memory, memory_labels = memory.roll(-start, 0), memory_labels.roll(-start, 0)
            return self.loss.of_labels(x, labels, memory, memory_labels, itself=start is not None)
        if self.miner is None:
            same = labels.unsqueeze(1) == memory_labels
            indices = (*torch.where(same), *torch.where(~same))
        else:
            indices = checked(self.miner(x, labels, memory, memory_labels), x.device)
        if start is not None:
            indices = without_itself(indices, (start + torch.arange(len(x), device=x.device)) % len(memory))
        if indices_tuple is not None:
            more = checked(indices_tuple, x.device)
            more = as_triplets(more) if len(indices) == 3 else as_pairs(more)
            indices = tuple(torch.cat(pair) for pair in zip(indices, more, strict=True))
        named = as_pairs(indices)
        check_range(named, len(x), len(memory))
        return self.loss.of_pairs(x, memory, named)

    def _reduced(self, found: Found, x: Tensor, labels: Tensor, ranks: Ranks) -> Tensor:
        if ranks.alone:
            return self.loss.reduced(found, x, labels)
        numbers = torch.tensor([found.positive, found.negative], device=x.device)
        positive, negative = ranks.sum(numbers).tolist()
        if not found._replace(positive=positive, negative=negative).counts:
            return zero(x)
        total, number = self.loss.default_sum(found)
        of_all = ranks.sum(torch.as_tensor(number, device=x.device))
        return autograd.sum_over_ranks(total, ranks) / of_all.clamp_min(1)

    def _check_option(self, name: str, value: Any) -> None:
        if name == "loss" and not isinstance(value, Loss):
            raise TypeError(f"loss must be a NTXentLoss or a SupConLoss of this module, got {type(value).__name__}")
