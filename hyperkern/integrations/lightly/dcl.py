"""The decoupled losses."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import autograd, losses
from ...arguments import check_positive, check_scale
from .._distributed import all_processes, check_gathers, own_mean
from .._options import DropIn
from .views import check_views, unit_rows


class DCLLoss(DropIn):
    """Decoupled contrastive loss of two views: NT-Xent without the positive in the denominator.

    Args:
        temperature: > 0; a scalar tensor, a parameter for instance, is learnable, and its value is not checked.
        weight_fn: makes the weights of the positives, ``(N,)``, of the normalised anchors and of their normalised
            partners. It is called once for either view as the anchors, of the rows of this process.
        gather_distributed: whether the rows of all processes are negatives.

    Raises:
        TypeError: a ``temperature`` that is no number, or a ``weight_fn`` that is no function.
        ValueError: ``temperature <= 0``, or something to gather without `torch.distributed`.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, Eq. 6.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        weight_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        check_gathers(gather_distributed)
        self.temperature, self.weight_fn, self.gather_distributed = temperature, weight_fn, gather_distributed

    def _check_option(self, name: str, value: Any) -> None:
        if name == "temperature":
            check_scale(name, value)
        elif name == "weight_fn" and value is not None and not callable(value):
            raise TypeError(f"weight_fn must be a function or None, got {value!r}")

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
            ValueError: wrong shapes, also of the weights, fewer than two rows, or arguments that differ between the
                processes that gather.
        """
        if all_processes(self.gather_distributed) is None:
            check_views(out0, out1)
        weights = None
        if self.weight_fn is not None:
            unit0, unit1 = unit_rows(out0), unit_rows(out1)
            made = self.weight_fn(unit0, unit1), self.weight_fn(unit1, unit0)
            weights = _of_rows(made[0], out0), _of_rows(made[1], out0)
        return self._loss(out0, out1, weights)

    def _loss(self, out0: Tensor, out1: Tensor, weights: tuple[Tensor, Tensor] | None) -> Tensor:
        """With the weights of the positives of this process."""
        group = all_processes(self.gather_distributed)
        of0, of1 = weights or (None, None)
        options: dict[str, Any] = {"temperature": self.temperature, "x_weights": of0, "y_weights": of1}
        if group is None:
            return losses.dcl(out0, out1, **options)
        return own_mean(losses.dcl(out0, out1, **options, reduction="none", group=group))


def _of_rows(weights: Any, x: Tensor) -> Tensor:
    """What a function returns: a weight for each row, or one for all, as a tensor or as a number, and whole numbers."""
    made = torch.as_tensor(weights, device=x.device)
    if made.shape not in ((), (1,), x.shape[:1]):
        raise ValueError(
            f"weight_fn must return a weight for each of {len(x)} rows, or one for all, got shape {tuple(made.shape)}"
        )
    return 1.0 * made.expand(len(x))


class DCLWLoss(DCLLoss):
    """Decoupled contrastive loss whose positives weigh less the more alike they are already.

    Args:
        temperature: > 0; a scalar tensor, a parameter for instance, is learnable, and its value is not checked.
        sigma: width of the weighting, > 0.
        gather_distributed: whether the rows of all processes are negatives; the weights are relative to those of the
            own rows in any case, where `hyperkern.dclw` with a group compares them with those of all.

    Raises:
        TypeError: a ``temperature`` that is no number.
        ValueError: ``temperature <= 0``, ``sigma <= 0``, or something to gather without `torch.distributed`.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022.
    """

    def __init__(self, temperature: float | Tensor = 0.1, sigma: float = 0.5, gather_distributed: bool = False) -> None:
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
            check_views(out0, out1)
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
