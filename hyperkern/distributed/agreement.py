"""One rank's bad argument raises on all ranks, before anything that would leave them waiting for it."""

import functools
import hashlib
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.autograd import forward_ad

from .exchange import settle
from .graphs import outside_of_graphs
from .group import Group, GroupLike, ProcessGroup, resolve
from .ranks import Ranks, all_gather

# Whether a group has a backend for the CPU: PyTorch looks for it in the text of its configuration.
_has_cpu: weakref.WeakKeyDictionary[ProcessGroup, bool] = weakref.WeakKeyDictionary()


class Agreement:
    """The checks of a loss: what they raise on one rank is raised on every rank of the group.

    ::

        with Agreement(group, "info_nce", temperature=temperature) as agreed:
            check_rows("x", x, may_be_empty=agreed.may_be_empty)
            agreed.shard(x=x, y=y)
        ranks = agreed.ranks

    On leaving, the ranks exchange three integers: whether the checks passed, the number of rows, and a digest of all
    that has to be the same everywhere: the loss, its options, dtypes, shapes but for the rows, what requires grad.

    Args:
        group: as the user gave it; without one the checks are ordinary ones.
        loss: its name.
        rows_optional: whether it may be that no rank has a row.
        **options: its options.

    Attributes:
        may_be_empty: whether a rank may have no rows.
        ranks: who has which rows; known when the checks are left.

    Raises:
        TypeError: a ``group`` that is none.
        NotImplementedError: forward mode, which no collective takes part in.
        ValueError: `torch.distributed` is not initialised, this process is not in the group, another rank's checks
            failed, the ranks disagree, or none of them has a row.
    """

    ranks: Ranks

    def __init__(self, group: GroupLike, loss: str, *, rows_optional: bool = False, **options: Any) -> None:
        resolved = None if group is None else resolve(group)
        # A group of one is no group: nothing is exchanged, nothing may be empty.
        self._shared = None if resolved is None or resolved[0].size() == 1 else resolved
        self.may_be_empty = self._shared is not None
        self._loss, self._options, self._rows_optional = loss, options, rows_optional
        self._shards: dict[str, Tensor] = {}
        self._same: dict[str, Tensor] = {}

    def shard(self, **tensors: Tensor | None) -> None:
        """What this rank has of the batch, ``(rows, ...)`` or ``(B, rows, ...)``; features ``(..., rows, D)`` first."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self._shards[name] = tensor

    def also(self, **options: Any) -> None:
        """Further options that every rank must have alike."""
        self._options.update(options)

    def same(self, **tensors: Tensor | None) -> None:
        """Tensors of which every rank has the same, or none has one."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self._same[name] = tensor

    def __enter__(self) -> "Agreement":
        """Itself: the checks say by `shard` and `same` what they were of."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Agrees with the other ranks, and knows them from then on."""
        if self._shared is not None:
            refusal = self._forward_mode() if error is None and forward_ad._current_level >= 0 else None
            if refusal is not None:
                with temporarily_clear_interpreter_stack():  # objects do not travel inside of a function transform
                    self._agree(*self._shared, refusal)
                raise refusal
            self.ranks = self._agree(*self._shared, error)
        elif error is None:
            self.ranks = Ranks((next(iter(self._shards.values())).shape[-2],))

    def _forward_mode(self) -> NotImplementedError | None:
        """The refusal of tangents: a collective would lose them."""
        tensors = {**self._shards, **self._same, **self._options}
        for name, value in tensors.items():
            if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
                return NotImplementedError(
                    f"forward mode (torch.func.jvp, jacfwd, torch.autograd.forward_ad) of {self._loss} needs "
                    f"group=None: {name} has a tangent, which does not travel between ranks"
                )
        return None

    @outside_of_graphs
    def _agree(self, handle: ProcessGroup, options: Group, error: BaseException | None) -> Ranks:
        rows = 0 if error is not None else next(iter(self._shards.values())).shape[-2]
        signature, digest = ("", 0) if error is not None else _signature(self._description(options))
        own = torch.tensor([error is None, rows, digest], device=self._device(handle))
        passed, counts, digests = all_gather(own, handle.size(), handle)[0].T.tolist()
        if not all(passed) or len(set(digests)) > 1:
            self._raise(handle, signature, error)
        else:
            settle(handle)
            if not self._rows_optional and not any(counts):
                raise ValueError(f"x must not be empty: none of the {len(counts)} ranks of the group has a row")
        return Ranks(counts, handle, options)

    def _raise(self, handle: ProcessGroup, signature: str, error: BaseException | None) -> None:
        """Raises what is wrong, where; the error of this rank itself is on its way already."""
        said = None if error is None else f"{type(error).__name__}: {error}"
        everywhere: list[Any] = [None] * handle.size()
        dist.all_gather_object(everywhere, (said, signature), group=handle)
        if error is not None:
            return
        for rank, (refusal, _) in enumerate(everywhere):
            if refusal is not None:
                raise ValueError(f"{self._loss} was refused on rank {rank} of the group: {refusal}")
        signatures = [theirs for _, theirs in everywhere]
        other = next(rank for rank, theirs in enumerate(signatures) if theirs != signatures[0])
        raise ValueError(
            f"the ranks of the group must call the same loss with the same options; rank 0 calls {signatures[0]}, "
            f"rank {other} {signatures[other]}"
        )

    def _description(self, options: Group) -> tuple[Any, ...]:
        """All that must be equal on every rank, in small pieces that are compared as their text is."""
        first = next(iter(self._shards.values()))
        axis = first.dim() - 2  # of the rows, behind the batch if there is one
        found: list[tuple[Any, ...]] = []
        for name, t in self._shards.items():
            shape = *t.shape[:axis], "*", *t.shape[axis + 1 :]
            found.append((f"{name}: ", t.dtype, shape, t.device.type, t.requires_grad))
        for name, t in self._same.items():
            found.append((f"{name}: ", t.dtype, tuple(t.shape), t.device.type, t.requires_grad))
        for name, value in self._options.items():
            if isinstance(value, Tensor):
                found.append((f"{name}=", value.dtype, tuple(value.shape), value.device.type, value.requires_grad))
            else:  # not itself: 1 is equal to 1.0, and 0.0 to -0.0
                found.append((f"{name}={value!r}",))
        kind = first.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        grad_enabled = torch.is_grad_enabled()
        return self._loss, tuple(found), grad_enabled, autocast, options.grad_scale, options.transport

    def _device(self, handle: ProcessGroup) -> torch.device:
        """Where three integers cost least: on the CPU, if the group has a backend for it."""
        has_cpu = _has_cpu.get(handle)
        if has_cpu is None:
            has_cpu = _has_cpu[handle] = "cpu:" in dist.get_backend_config(handle)
        if has_cpu:
            return torch.device("cpu")
        on_device = next((t.device for t in self._shards.values() if t.device.type != "cpu"), None)
        return on_device or torch.device("cuda", torch.cuda.current_device())


# A training step repeats the one before: its text and digest are made once.
@functools.lru_cache(maxsize=256)
def _signature(description: tuple[Any, ...]) -> tuple[str, int]:
    """The description for people to read, and its digest."""
    loss, found, grad_enabled, autocast, grad_scale, transport = description
    parts = [name + _described(of_tensor, grad_enabled) if of_tensor else name for name, *of_tensor in found]
    if autocast is not None:
        parts.append(f"autocast={autocast}".replace("torch.", ""))
    parts.append(f"Group(grad_scale={grad_scale!r}, transport={transport!r})")
    signature = f"{loss}({', '.join(parts)})"
    digest = hashlib.blake2b(signature.encode(), digest_size=8).digest()
    return signature, int.from_bytes(digest, "big", signed=True)


def _described(of_tensor: Sequence[Any], grad_enabled: bool) -> str:
    dtype, shape, kind, requires_grad = of_tensor
    grad = ", requires grad" if requires_grad and grad_enabled else ""
    return f"{dtype} ({', '.join(map(str, shape))}) on {kind}{grad}".replace("torch.", "")
