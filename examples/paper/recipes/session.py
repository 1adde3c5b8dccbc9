"""The process of a recipe: alone on its device, or one of those that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # DDP imports it; after `init_process_group` its defaults would hold the group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern
from examples.digits.config import OptionError, resolve_device


class Session(NamedTuple):
    """Where a process runs, and who else does.

    Attributes:
        device: of this process.
        rank: of this process, from 0.
        ranks: number of processes.
        group: for hyperkern's losses, which are then of the rows of all processes; ``None`` for one process.
    """

    device: torch.device
    rank: int
    ranks: int
    group: hyperkern.Group | None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_first:
            print(text, flush=True)

    def parallel(self, module: nn.Module) -> nn.Module:
        """The module on the device, with gradients and batch statistics of all processes where there are more.

        On a CPU batch norm's statistics stay a process's own, PyTorch having no synchronised ones: see `settled`.
        """
        module = module.to(self.device)
        if self.ranks == 1:
            return module
        if self.device.type == "cuda":
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            return DistributedDataParallel(module, device_ids=[self.device])
        return DistributedDataParallel(module)

    def share(self, option: str, batch: int) -> int:
        """Rows of a batch that are this process's.

        Raises:
            OptionError: they cannot be shared evenly.
        """
        if batch % self.ranks:
            raise OptionError(option, batch, f"must be a multiple of {self.ranks}, the number of processes")
        return batch // self.ranks

    def mean(self, value: float) -> float:
        """The mean of a number over all processes."""
        if self.ranks == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.item() / self.ranks

    def alone(self) -> Session:
        """This process by itself, for what the first does when the others have left."""
        return self._replace(rank=0, ranks=1, group=None)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.ranks > 1:
            dist.barrier()


def unwrapped(module: nn.Module) -> nn.Module:
    """What `Session.parallel` was given."""
    inner: nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
    return inner


def settled(module: nn.Module) -> nn.Module:
    """What `Session.parallel` was given, in evaluation mode and with the same batch statistics in all processes.

    On CPUs, and where they are not to be shared, those of the training are each process's own; the first one's stay.
    """
    inner = unwrapped(module)
    if inner is not module:
        for statistics in inner.buffers():
            dist.broadcast(statistics, src=0)
    return inner.eval()


@contextmanager
def session(device: str | None) -> Iterator[Session]:
    """Join the processes that torchrun started, if it has, and leave them at the end.

    Args:
        device: cpu, cuda or cuda:<index>; ``None`` takes a GPU if there is one, each process its own.

    Raises:
        OptionError: there is no such device, or one is named for several processes on GPUs.
    """
    if "RANK" not in os.environ:
        yield Session(resolve_device(device), 0, 1, None)
        return
    own = resolve_device(device)
    if own.type == "cuda":
        if own.index is not None:
            raise OptionError("device", device, "must not name one GPU for several processes")
        own = resolve_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(own)
    dist.init_process_group()
    try:
        yield Session(own, dist.get_rank(), dist.get_world_size(), hyperkern.Group())
        dist.barrier()  # the others leave when the first is done
    finally:
        dist.destroy_process_group()
