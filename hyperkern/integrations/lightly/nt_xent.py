"""SimCLR's loss, and those that are made of it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import autograd, losses
from ...arguments import check_number, check_scale
from .._distributed import all_processes, check_gathers, own_mean
from .._options import DropIn
from .memory_bank import MemoryBankModule
from .views import check_views, unit_rows

# Of temperatures; the originals' bound.
EPS = 1e-8


class NTXentLoss(DropIn):
    """SimCLR's loss of two views; with a memory bank MoCo's, each row of the first view against the bank.

    Args:
        temperature: >= 1e-8; a scalar tensor, a parameter for instance, is learnable, and its value checked here alone.
        memory_bank_size: ``(rows, dimension)`` of a memory bank, or 0 for none.
        gather_distributed: whether the rows of all processes are negatives; with a memory bank, whether they are
            written into it.

    Raises:
        TypeError: a ``temperature`` that is no number.
        ValueError: ``temperature < 1e-8``, a size that is negative, or neither 0 nor a pair, or something to gather
            without `torch.distributed`.

    Source:
        Chen et al., ICML 2020, Eq. 1; with a memory bank He et al., CVPR 2020, Eq. 1.
    """

    _not_here = ("cross_entropy",)

    def __init__(
        self,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_gathers(gather_distributed)
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def _check_option(self, name: str, value: Any) -> None:
        if name == "temperature":
            _check_temperature(value)

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
            check_views(out0, out1)
        if self.memory_bank.size[0] == 0:
            if group is None:
                return losses.nt_xent(out0, out1, temperature=self.temperature)
            return own_mean(losses.nt_xent(out0, out1, temperature=self.temperature, reduction="none", group=group))
        unit0, unit1 = unit_rows(out0), unit_rows(out1)
        # Rows that are not normalised again: what is in the bank counts as it is.
        _, bank = self.memory_bank(unit1, update=unit0.requires_grad)
        return losses.info_nce(
            unit0, unit1, temperature=self.temperature, negatives=bank.T.to(unit0), in_batch=False, normalize=False
        )


class DirectCLRLoss(NTXentLoss):
    """DirectCLR's loss: `NTXentLoss` of the first elements of the features, without a projection head.

    Args:
        loss_dim: how many elements.
        temperature: as `NTXentLoss`.
        memory_bank_size: likewise, of this dimension.
        gather_distributed: likewise.

    Raises:
        TypeError: as `NTXentLoss`.
        ValueError: as `NTXentLoss`.

    Source:
        Jing et al., "Understanding Dimensional Collapse in Contrastive Self-supervised Learning", ICLR 2022, Section 6.
    """

    def __init__(
        self,
        loss_dim: int = 64,
        temperature: float | Tensor = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__(temperature, memory_bank_size, gather_distributed)
        self.loss_dim = loss_dim

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """As `NTXentLoss`, of features ``(N, ...)`` with any further dimensions."""
        first, second = (
            out.flatten(start_dim=1)[:, : self.loss_dim] if isinstance(out, Tensor) else out for out in (out0, out1)
        )
        return super().forward(first, second)


class MACLLoss(DropIn):
    r"""Model-aware contrastive loss: NT-Xent at a temperature that follows the alignment, each anchor weighed.

    .. math::
        \frac{1}{2N} \sum_a \frac{\ell_a(\tau_a)}{1 - e^{-\ell_a(\tau_a)} + 10^{-8}}, \qquad
        \tau_a = \tau\, (1 + \alpha (A - A_0))

    with ``l_a`` of `hyperkern.nt_xent` and ``A`` the mean cosine of the pairs. Neither ``A`` nor the denominator is
    differentiated: this one undoes that the gradient of an anchor vanishes with its loss. One process only, as the
    original.

    Args:
        temperature: ``tau`` >= 1e-8; a scalar tensor is learnable, and its value checked here alone.
        alpha: how much the temperature follows the alignment, in [0, 1].
        A_0: the alignment at which it is ``tau``, in [0, 1]. The loss is nan where its temperature is not > 0, which
            takes an ``A`` below ``A_0 - 1 / alpha``.

    Raises:
        TypeError: an option that is no number.
        ValueError: ``temperature < 1e-8``, an ``alpha`` or ``A_0`` outside of [0, 1].

    Source:
        Huang et al., "Model-Aware Contrastive Learning: Towards Escaping the Dilemmas", ICML 2023.
    """

    def __init__(self, temperature: float | Tensor = 0.1, alpha: float = 0.5, A_0: float = 0.0) -> None:
        super().__init__()
        self.temperature, self.alpha, self.A_0 = temperature, alpha, A_0

    def _check_option(self, name: str, value: Any) -> None:
        if name == "temperature":
            _check_temperature(value)
        elif name in ("alpha", "A_0"):
            if not isinstance(value, Tensor):
                check_number(name, value)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss of two views of the same samples.

        Args:
            z0: ``(N, D)`` features of one view; they are normalised here.
            z1: those of the other.

        Returns:
            A scalar.

        Raises:
            TypeError: an input is no floating tensor, or the dtypes differ.
            ValueError: wrong shapes.
        """
        check_views(z0, z1, ("z0", "z1"))
        unit0, unit1 = (autograd.prepare(side.detach(), normalize=True) for side in (z0, z1))
        aligned = (unit0 * unit1).sum(1).mean()
        temperature = self.temperature * (1 + self.alpha * (aligned - self.A_0))
        nll = losses.nt_xent(z0, z1, temperature=temperature, reduction="none")
        return (nll / (EPS - torch.expm1(-nll.detach()))).mean()


def _check_temperature(temperature: float | Tensor) -> None:
    check_scale("temperature", temperature)
    number = temperature.item() if isinstance(temperature, Tensor) else temperature
    if number < EPS:
        raise ValueError(f"temperature must be at least {EPS}, got {number}")
