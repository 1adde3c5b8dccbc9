"""Alignment, uniformity and their sum as modules."""

from torch import Tensor

from .. import losses
from ..arguments import REDUCTIONS, check_choice, check_max_norm, check_number, check_positive
from ..distributed import GroupLike
from .base import Loss


class AlignmentLoss(Loss):
    """`hyperkern.alignment` as a module.

    Args:
        alpha: exponent of the distance, > 0.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``alpha <= 0``, an unknown ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(backend, group)
        check_positive("alpha", alpha)
        check_choice("reduction", reduction, REDUCTIONS)
        self.alpha, self.normalize, self.reduction = alpha, normalize, reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the positive pairs ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return losses.alignment(
            x,
            y,
            alpha=self.alpha,
            normalize=self.normalize,
            reduction=self.reduction,
            group=self.group,
            backend=self.backend,
        )


class UniformityLoss(Loss):
    """`hyperkern.uniformity` as a module.

    Args:
        t: inverse width of the Gaussian potential, > 0.
        intra: with a queue, whether the distinct pairs of ``x`` count too.
        normalize: whether rows are scaled to unit length first.
        max_norm: with ``normalize=False``, what no row is longer than.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``t <= 0``, ``max_norm <= 0`` or with ``normalize``, or an unknown ``backend``.
    """

    def __init__(
        self,
        *,
        t: float = 2.0,
        intra: bool = False,
        normalize: bool = True,
        max_norm: float | None = None,
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(backend, group)
        check_positive("t", t)
        if max_norm is not None:
            check_max_norm(max_norm, normalize)
        self.t, self.intra, self.normalize, self.max_norm = t, intra, normalize, max_norm

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of the features ``x``, or of ``x`` against the queue ``y``; ``(N, D)`` or ``(B, N, D)``."""
        return losses.uniformity(
            x,
            y,
            t=self.t,
            intra=self.intra,
            normalize=self.normalize,
            max_norm=self.max_norm,
            x_weights=x_weights,
            y_weights=y_weights,
            group=self.group,
            backend=self.backend,
        )


class AlignUniformLoss(Loss):
    """`hyperkern.align_uniform` as a module that returns the weighted sum alone.

    Args:
        alpha: exponent of the alignment distance, > 0.
        t: inverse width of the Gaussian potential, > 0.
        align_weight: weight of the alignment.
        uniform_weight: weight of the uniformity.
        normalize: whether rows are scaled to unit length first.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``alpha <= 0``, ``t <= 0``, a weight that is not finite or an unknown ``backend``.
    """

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        t: float = 2.0,
        align_weight: float = 1.0,
        uniform_weight: float = 1.0,
        normalize: bool = True,
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(backend, group)
        check_positive("alpha", alpha)
        check_positive("t", t)
        check_number("align_weight", align_weight)
        check_number("uniform_weight", uniform_weight)
        self.alpha, self.t, self.normalize = alpha, t, normalize
        self.align_weight, self.uniform_weight = align_weight, uniform_weight

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the positive pairs ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return losses.align_uniform(
            x,
            y,
            alpha=self.alpha,
            t=self.t,
            align_weight=self.align_weight,
            uniform_weight=self.uniform_weight,
            normalize=self.normalize,
            group=self.group,
            backend=self.backend,
        ).loss
