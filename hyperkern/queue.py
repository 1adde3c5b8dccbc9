"""A queue of features: negatives from earlier batches, for losses whose batch alone has too few."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .arguments import check_vector
from .distributed import Agreement, Group, GroupLike, as_group, gather_rows, outside_of_graphs

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class FeatureQueue(nn.Module):
    """The newest features, at most ``size`` of them, in a ring buffer.

    ``queue.features`` goes to ``info_nce(x, y, negatives=queue.features)``, ``nt_xent(x, y, negatives=...)`` or
    ``uniformity(x, queue.features)``; then ``queue.enqueue(keys)``::

        loss = hyperkern.info_nce(q, k, negatives=queue.features, in_batch=False)
        queue.enqueue(k)
        loss.backward()

    Enqueueing between a loss and its backward is safe: the losses keep copies of their rows, and ``queue.ids`` is one.
    An expression of your own, ``q @ queue.features.T``, keeps none; PyTorch then raises in backward, and
    ``queue.features.clone()`` helps. Under ``torch.compile`` the compiler chooses what is kept, with the same error if
    it is the queue.

    **Empty**, it gives ``(0, D)`` features. `hyperkern.info_nce` and `hyperkern.nt_xent` count these as no negatives,
    so ``info_nce(in_batch=False)``, which has no others, is 0; `hyperkern.uniformity` raises a `ValueError`, since a
    mean over no pairs has no value: fill the queue first, or give ``queue.features if len(queue) else None``.

    **State.** The rows (and ids) are buffers and where the next one goes is in the state dict too: a queue that is
    saved and restored goes on bit for bit. Position and fill are integers of the host, so nothing here waits for a
    device, but for ``gather=True``, which must learn how many rows the other ranks have.

    **Ranks.** With ``gather`` every rank enqueues the rows of all, and all queues are equal as long as all ranks
    enqueue together. Without, each rank has a queue of its own; in a module under DDP it then needs
    ``DistributedDataParallel(..., broadcast_buffers=False)``, or rank 0 overwrites the rows of all others.

    **Compiled.** `enqueue` runs outside of the graph, which breaks there. Read ``features`` outside as well and pass
    them to what is compiled as an argument, of dynamic length: inside, every fill of a queue that is not full yet is a
    constant of a graph of its own.

    Args:
        size: the most rows it holds, > 0.
        dim: D, the dimension of the features, > 0.
        dtype: of the stored rows: float64, float32, bfloat16 or float16. The losses want that of their ``x``.
        device: where they are stored.
        with_ids: whether each row has an integer id, for ``info_nce(ids=..., negative_ids=queue.ids)``.
        gather: whether to enqueue the rows of all ranks, in their order. Nothing to do without an initialised process
            group.
        group: the process group, mesh or `hyperkern.Group` to gather in; by default that of all ranks.

    Raises:
        TypeError: a size or dimension that is no integer, a dtype that is none of these.
        ValueError: ``size <= 0`` or ``dim <= 0``.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, Section 3.2.
    """

    buffer: Tensor
    id_buffer: Tensor | None

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        with_ids: bool = False,
        gather: bool = False,
        group: GroupLike = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if dtype not in _DTYPES:
            raise TypeError(f"dtype must be float64, float32, bfloat16 or float16, got {dtype}")
        as_group(group)  # refuses what is none
        self.size, self.dim, self.with_ids = size, dim, with_ids
        self.gather, self.group = gather, group
        self.register_buffer("buffer", torch.zeros(size, dim, dtype=dtype, device=device))
        ids = torch.zeros(size, dtype=torch.int64, device=device) if with_ids else None
        self.register_buffer("id_buffer", ids)
        self._next, self._fill = 0, 0

    @property
    def features(self) -> Tensor:
        """The rows that it holds, ``(len(queue), D)``, without a copy; from the position 0 of the ring, not by age."""
        return self.buffer[: self._fill]

    @property
    def ids(self) -> Tensor | None:
        """Their ids, ``(len(queue),)`` int64, in the same order; ``None`` without ``with_ids``.

        A copy: a loss keeps them for its backward as they are.
        """
        return None if self.id_buffer is None else self.id_buffer[: self._fill].clone()

    @property
    def is_full(self) -> bool:
        """Whether each further row replaces the oldest one."""
        return self._fill == self.size

    def __len__(self) -> int:
        """How many rows it holds."""
        return self._fill

    def clear(self) -> None:
        """Forget all rows."""
        self._next, self._fill = 0, 0

    @outside_of_graphs
    @torch.no_grad()
    def enqueue(self, features: Tensor, ids: Tensor | None = None) -> None:
        """Add rows, in place of the oldest ones once it is full; the same as to add them one by one.

        Args:
            features: ``(N, D)`` rows of a floating dtype, any N, also none or more than the queue holds. They are
                detached and converted to the dtype of the queue, not normalised: the losses do that.
            ids: ``(N,)`` integers, if and only if the queue was made ``with_ids``.

        Raises:
            TypeError: features that are no tensor of a floating dtype, ids that are no integers.
            ValueError: a wrong shape or device, ids missing or not expected; when gathering, on all ranks at once, and
                for queues that differ between ranks.
        """
        gathers = self.gather and dist.is_available() and dist.is_initialized()
        group = (Group() if self.group is None else self.group) if gathers else None
        state = {"dim": self.dim, "dtype": self.buffer.dtype, "with_ids": self.with_ids}
        with Agreement(group, "FeatureQueue.enqueue", rows_optional=True, **state) as agreed:
            self._check(features, ids)
            rows = _apart(features.detach().to(self.buffer.dtype), self.buffer)
            ids = None if ids is None or self.id_buffer is None else _apart(ids.to(torch.int64), self.id_buffer)
            agreed.shard(features=rows, ids=ids)
        ranks = agreed.ranks
        if not ranks.alone:
            rows = torch.cat(gather_rows(rows.unsqueeze(0), ranks.counts, ranks.handle)(), 1).squeeze(0)
            if ids is not None:
                ids = torch.cat(gather_rows(ids.unsqueeze(0), ranks.counts, ranks.handle)(), 1).squeeze(0)
        surplus = max(0, rows.shape[0] - self.size)
        start = (self._next + surplus) % self.size
        self._write(self.buffer, rows[surplus:], start)
        if self.id_buffer is not None and ids is not None:
            self._write(self.id_buffer, ids[surplus:], start)
        self._next = (self._next + rows.shape[0]) % self.size
        self._fill = min(self.size, self._fill + rows.shape[0])

    def get_extra_state(self) -> Tensor:
        """Shape, position and fill, for the state dict."""
        return torch.tensor([self.size, self.dim, self._next, self._fill])

    def set_extra_state(self, state: Tensor) -> None:
        """Position and fill from the state dict of a queue of the same shape."""
        size, dim, position, fill = state.tolist()
        # Rows of another shape are refused by PyTorch, with an error in the end: they stay, and so must this.
        if (size, dim) == (self.size, self.dim):
            self._next, self._fill = position, fill

    def extra_repr(self) -> str:
        """The options, and how many rows it holds."""
        options = [f"size={self.size}, dim={self.dim}, dtype={self.buffer.dtype}"]
        options += [f"{name}=True" for name in ("with_ids", "gather") if getattr(self, name)]
        return f"{', '.join(options)}; {self._fill} rows"

    def __deepcopy__(self, memo: dict[int, Any]) -> "FeatureQueue":
        """A queue of its own in the same process group, which cannot be copied."""
        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        if self.group is not None:
            memo[id(self.group)] = self.group
        duplicate.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return duplicate

    def _check(self, features: Tensor, ids: Tensor | None) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a torch.Tensor of shape (N, {self.dim}), got {type(features).__name__}")
        if features.dtype not in _DTYPES:
            raise TypeError(f"features must be float64, float32, bfloat16 or float16, got {features.dtype}")
        if features.dim() != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features must have shape (N, {self.dim}), got {tuple(features.shape)}")
        if features.device != self.buffer.device:
            raise ValueError(
                f"features must be on the device of the queue, {self.buffer.device}, got {features.device}"
            )
        if self.with_ids != (ids is not None):
            raise ValueError(
                f"ids must be given to a queue with_ids=True and only then, got with_ids={self.with_ids} "
                f"and ids={'None' if ids is None else 'a tensor'}"
            )
        if ids is not None:
            check_vector("ids", ids, "features", features, integer=True)

    def _write(self, ring: Tensor, rows: Tensor, start: int) -> None:
        before_end = min(rows.shape[0], self.size - start)
        ring[start : start + before_end] = rows[:before_end]
        ring[: rows.shape[0] - before_end] = rows[before_end:]


def _apart(rows: Tensor, ring: Tensor) -> Tensor:
    """The rows where writing to the ring does not change them: a queue may be given its own."""
    shared = rows.untyped_storage().data_ptr() == ring.untyped_storage().data_ptr()
    return rows.clone() if shared else rows
