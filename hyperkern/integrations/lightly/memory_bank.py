"""The queue of negatives."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...arguments import check_rows
from ...distributed import Agreement, gather_rows
from .._distributed import all_processes
from .._options import DropIn


class MemoryBankModule(DropIn):
    """A ring of unit rows, the negatives of `NTXentLoss`.

    It starts with random directions. A batch that does not fit into the rest of the ring fills that rest; what is left
    of the batch is dropped, and the next one starts at the beginning.

    Args:
        size: ``(rows, dimension)``, or 0 for none.
        gather_distributed: whether the rows of all processes are written, those of the first one first.
        feature_dim_first: whether the bank is handed out as ``(dimension, rows)``.

    Raises:
        ValueError: a size that is negative, or neither 0 nor a pair.
    """

    _not_here = ("_init_memory_bank", "_dequeue_and_enqueue")

    bank: Tensor
    bank_ptr: Tensor

    def __init__(
        self, size: int | Sequence[int], gather_distributed: bool = False, feature_dim_first: bool = True
    ) -> None:
        super().__init__()
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0):
            raise ValueError(f"the size of a memory bank must be (rows, dimension), or 0 for none, got {size}")
        self.gather_distributed, self.feature_dim_first = gather_distributed, feature_dim_first
        # As in the original drawn by the default generator, so the same seed makes the same bank, and float32.
        bank = torch.randn(self.size).float() if len(self.size) == 2 else torch.empty(0, dtype=torch.float32)
        bank = nn.functional.normalize(bank, dim=-1)
        self.register_buffer("bank", bank, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.long), persistent=False)

    def forward(
        self, output: Tensor, labels: Tensor | None = None, update: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The bank as it is, before the rows of this batch are written.

        Args:
            output: ``(N, D)`` unit rows.
            labels: not used.
            update: whether the rows are written into the bank.

        Returns:
            ``output``, and a copy of the bank or ``None`` where there is none.

        Raises:
            TypeError: rows to be written that are no floating tensor.
            ValueError: rows to be written of a wrong shape.
        """
        if self.size[0] == 0:
            return output, None
        bank = self.bank.detach().clone()
        if update:
            self._write(output)
        return output, bank.T if self.feature_dim_first else bank

    @torch.no_grad()
    def _write(self, batch: Tensor) -> None:
        group = all_processes(self.gather_distributed)
        with Agreement(group, "MemoryBankModule", size=self.size) as agreed:
            check_rows("output", batch, may_be_empty=True, batched=False)
            agreed.shard(output=batch)
        if batch.shape[1] != self.size[1]:
            raise ValueError(f"output must have shape (rows, {self.size[1]}), got {tuple(batch.shape)}")
        ranks = agreed.ranks
        if not ranks.alone:
            batch = torch.cat(gather_rows(batch.unsqueeze(0), ranks.counts, ranks.handle)(), 1).squeeze(0)
        start = int(self.bank_ptr.item())
        stop = start + batch.shape[0]
        self.bank[start:stop] = batch[: self.size[0] - start]
        self.bank_ptr.fill_(stop if stop < self.size[0] else 0)
