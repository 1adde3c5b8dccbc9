"""Drop-in for lightly: ``from lightly.loss import X`` becomes ``from hyperkern.integrations.lightly import X``.

X is `NTXentLoss`, `DCLLoss`, `DCLWLoss` or, of ``lightly.loss.hypersphere_loss``, `HypersphereLoss`: the same
constructors, memory bank and values, without a matrix of all pairs. What differs:

- losses are float32 (float64 for float64), also of half-precision features;
- ``temperature``, ``t``, ``alpha`` and ``sigma`` must be > 0, and all but `NTXentLoss` need two rows: the original
  returns numbers without a meaning;
- options may be set after construction, but ``cross_entropy`` of `NTXentLoss` cannot be replaced.

With ``gather_distributed=True`` and several processes a loss is the mean over the anchors of its own process, with the
rows of all processes as candidates. As the original's, its gradient is that of the sum of the losses of all processes,
for the rows of this one: after `DistributedDataParallel` has averaged, that of the mean. No gradient travels for it.
Processes may have different numbers of rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd, losses
from ..arguments import check_columns, check_number, check_positive, check_rows
from ..distributed import Agreement, gather_rows
from ._distributed import all_processes, check_gathers, own_mean
from ._options import DropIn


class HypersphereLoss(nn.Module):
    """Alignment + uniformity: ``align(z_a, z_b) + lam (uniform(z_a) + uniform(z_b)) / 2``.

    Args:
        t: inverse width of the Gaussian potential, > 0.
        lam: weight of the uniformity.
        alpha: exponent of the distance of positive pairs, > 0.

    Raises:
        ValueError: ``t <= 0``, ``alpha <= 0`` or ``lam`` not finite.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2.
    """

    def __init__(self, t: float = 1.0, lam: float = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        check_positive("t", t)
        check_number("lam", lam)
        check_positive("alpha", alpha)
        self.t, self.lam, self.alpha = t, lam, alpha

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss of the positive pairs ``(z_a[i], z_b[i])``.

        Args:
            z_a: ``(N, D)`` features of one view, N >= 2; they are normalised here.
            z_b: those of the other.

        Returns:
            A scalar.

        Raises:
            TypeError: an input is no floating tensor, or the dtypes differ.
            ValueError: wrong shapes or fewer than two rows.
        """
        check_rows("z_a", z_a, batched=False)
        return losses.align_uniform(z_a, z_b, alpha=self.alpha, t=self.t, uniform_weight=self.lam).loss


class MemoryBankModule(nn.Module):
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


class NTXentLoss(DropIn):
    """SimCLR's loss of two views; with a memory bank MoCo's, each row of the first view against the bank.

    Args:
        temperature: >= 1e-8.
        memory_bank_size: ``(rows, dimension)`` of a memory bank, or 0 for none.
        gather_distributed: whether the rows of all processes are negatives; with a memory bank, whether they are
            written into it.

    Raises:
        ValueError: ``temperature < 1e-8``, a size that is negative, or neither 0 nor a pair, or something to gather
            without `torch.distributed`.

    Source:
        Chen et al., ICML 2020, Eq. 1; with a memory bank He et al., CVPR 2020, Eq. 1.
    """

    _not_here = ("cross_entropy",)

    def __init__(
        self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        if temperature < 1e-8:  # the original's bound, of this loss alone
            raise ValueError(f"temperature must be at least 1e-8, got {temperature}")
        check_gathers(gather_distributed)
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views of the same samples.

        Args:
            out0: ``(N, D)`` features of one view; they are normalised here.
            out1: those of the other. They are written into the memory bank if ``out0`` requires grad.

        Returns:
            A scalar.

        Raises:
            TypeError: an input is no floating tensor, or the dtypes differ.
            ValueError: wrong shapes, or arguments that differ between the processes that gather.
        """
        group = all_processes(self.gather_distributed)
        if group is None:
            _check_views(out0, out1)
        if self.memory_bank.size[0] == 0:
            if group is None:
                return losses.nt_xent(out0, out1, temperature=self.temperature)
            return own_mean(losses.nt_xent(out0, out1, temperature=self.temperature, reduction="none", group=group))
        unit0, unit1 = _unit_rows(out0), _unit_rows(out1)
        # Rows that are not normalised again: what is in the bank counts as it is.
        _, bank = self.memory_bank(unit1, update=unit0.requires_grad)
        return losses.info_nce(
            unit0, unit1, temperature=self.temperature, negatives=bank.T.to(unit0), in_batch=False, normalize=False
        )


class DCLLoss(DropIn):
    """Decoupled contrastive loss of two views: NT-Xent without the positive in the denominator.

    Args:
        temperature: > 0.
        weight_fn: makes the weights of the positives, ``(N,)``, of the normalised anchors and of their normalised
            partners. It is called once for either view as the anchors, of the rows of this process.
        gather_distributed: whether the rows of all processes are negatives.

    Raises:
        ValueError: ``temperature <= 0``, or something to gather without `torch.distributed`.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, Eq. 6.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        check_gathers(gather_distributed)
        self.temperature, self.weight_fn, self.gather_distributed = temperature, weight_fn, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views of the same samples.

        Args:
            out0: ``(N, D)`` features of one view, N >= 2, in all processes that gather together; they are normalised
                here.
            out1: those of the other.

        Returns:
            A scalar, the mean over both views as anchors. It can be negative.

        Raises:
            TypeError: an input is no floating tensor, or the dtypes differ.
            ValueError: wrong shapes, fewer than two rows, or arguments that differ between the processes that gather.
        """
        if all_processes(self.gather_distributed) is None:
            _check_views(out0, out1)
        weights = None
        if self.weight_fn is not None:
            unit0, unit1 = _unit_rows(out0), _unit_rows(out1)
            made = self.weight_fn(unit0, unit1), self.weight_fn(unit1, unit0)
            # A function may return one weight for all rows, as a tensor or as a number, and whole numbers.
            of0, of1 = (1.0 * torch.as_tensor(w, device=out0.device).expand(out0.shape[0]) for w in made)
            weights = of0, of1
        return self._loss(out0, out1, weights)

    def _loss(self, out0: Tensor, out1: Tensor, weights: tuple[Tensor, Tensor] | None) -> Tensor:
        """With the weights of the positives of this process."""
        group = all_processes(self.gather_distributed)
        of0, of1 = weights or (None, None)
        options: dict[str, Any] = {"temperature": self.temperature, "x_weights": of0, "y_weights": of1}
        if group is None:
            return losses.dcl(out0, out1, **options)
        return own_mean(losses.dcl(out0, out1, **options, reduction="none", group=group))


class DCLWLoss(DCLLoss):
    """Decoupled contrastive loss whose positives weigh less the more alike they are already.

    Args:
        temperature: > 0.
        sigma: width of the weighting, > 0.
        gather_distributed: whether the rows of all processes are negatives; the weights are relative to those of the
            own rows in any case, where `hyperkern.dclw` with a group compares them with those of all.

    Raises:
        ValueError: ``temperature <= 0``, ``sigma <= 0``, or something to gather without `torch.distributed`.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
        check_positive("sigma", sigma)
        super().__init__(temperature, _MisesFisher(sigma), gather_distributed)

    @property
    def sigma(self) -> float | None:
        """The width of the weighting, which belongs to ``weight_fn``; ``None`` where that was replaced by another."""
        return self.weight_fn.sigma if isinstance(self.weight_fn, _MisesFisher) else None

    @sigma.setter
    def sigma(self, value: float) -> None:
        check_positive("sigma", value)
        self.weight_fn = _MisesFisher(value)

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """As `DCLLoss`."""
        if not isinstance(self.weight_fn, _MisesFisher):
            return super().forward(out0, out1)
        if all_processes(self.gather_distributed) is None:
            _check_views(out0, out1)
            return losses.dclw(out0, out1, temperature=self.temperature, sigma=self.weight_fn.sigma)
        weights = self.weight_fn(*(autograd.prepare(side.detach(), normalize=True) for side in (out0, out1)))
        return self._loss(out0, out1, (weights, weights))


class _MisesFisher:
    """The weights of `DCLWLoss`, ``2 - N softmax(x_i . y_i / sigma)`` of unit rows, which are not differentiated."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    @torch.no_grad()
    def __call__(self, unit0: Tensor, unit1: Tensor) -> Tensor:
        return 2 - len(unit0) * ((unit0 * unit1).sum(1) / self.sigma).softmax(0)


def _check_views(out0: Tensor, out1: Tensor) -> None:
    """Of one process. Several have to agree on what is wrong, which the losses see to."""
    check_rows("out0", out0, batched=False)
    check_columns("out1", out1, out0, same_rows=True)


def _unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1 in the dtype of ``x``, those of the original where that has the precision."""
    # Half precision holds neither the squares nor 1e-12: in it a zero row becomes nan, and stays in a memory bank.
    return nn.functional.normalize(x, dim=1) if x.itemsize > 2 else autograd.prepare(x, normalize=True).to(x.dtype)
