"""The losses as modules: options at construction, features at the call."""

import inspect
import math

import torch
from torch import Tensor, nn

from . import losses
from .backends import forced
from .losses._inputs import REDUCTIONS, check_choice, check_max_norm, check_number, check_positive


class _Loss(nn.Module):
    """A module that keeps the options of its constructor as attributes of the same names, and shows them."""

    def __init__(self, backend: str | None) -> None:
        super().__init__()
        forced(backend)  # a wrong name is refused here, not in the first step
        self.backend = backend

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class AlignmentLoss(_Loss):
    """`hyperkern.alignment` as a module.

    Args:
        alpha: exponent of the distance, > 0.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
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
        backend: str | None = None,
    ) -> None:
        super().__init__(backend)
        check_positive("alpha", alpha)
        check_choice("reduction", reduction, REDUCTIONS)
        self.alpha, self.normalize, self.reduction = alpha, normalize, reduction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the positive pairs ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return losses.alignment(
            x, y, alpha=self.alpha, normalize=self.normalize, reduction=self.reduction, backend=self.backend
        )


class UniformityLoss(_Loss):
    """`hyperkern.uniformity` as a module.

    Args:
        t: inverse width of the Gaussian potential, > 0.
        intra: with a queue, whether the distinct pairs of ``x`` count too.
        normalize: whether rows are scaled to unit length first.
        max_norm: with ``normalize=False``, what no row is longer than.
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
        backend: str | None = None,
    ) -> None:
        super().__init__(backend)
        check_positive("t", t)
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
            backend=self.backend,
        )


class AlignUniformLoss(_Loss):
    """`hyperkern.align_uniform` as a module that returns the weighted sum alone.

    Args:
        alpha: exponent of the alignment distance, > 0.
        t: inverse width of the Gaussian potential, > 0.
        align_weight: weight of the alignment.
        uniform_weight: weight of the uniformity.
        normalize: whether rows are scaled to unit length first.
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
        backend: str | None = None,
    ) -> None:
        super().__init__(backend)
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
            backend=self.backend,
        ).loss


class _ScaledLoss(_Loss):
    """A loss with a logit scale that can be learned, as CLIP does: by its logarithm, and bounded."""

    def __init__(self, logit_scale: float, learnable: bool, max_logit_scale: float, backend: str | None) -> None:
        super().__init__(backend)
        check_positive("max_logit_scale", max_logit_scale)
        if learnable and logit_scale > max_logit_scale:
            raise ValueError(f"logit_scale must not exceed max_logit_scale={max_logit_scale}, got {logit_scale}")
        self.learnable, self.max_logit_scale = learnable, max_logit_scale
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale))) if learnable else None

    def _learned_scale(self) -> Tensor | None:
        if self.log_logit_scale is None:
            return None
        # The parameter itself is brought back: behind a clamp it would have no gradient to return by.
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(self.max_logit_scale))
        return self.log_logit_scale.exp()


class InfoNCELoss(_ScaledLoss):
    """`hyperkern.info_nce` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``temperature <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound, an unknown
            ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str | None = None,
    ) -> None:
        check_positive("temperature", temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        super().__init__(1 / temperature, learnable, max_logit_scale, backend)
        self.temperature, self.normalize, self.reduction = temperature, normalize, reduction

    def forward(self, x: Tensor, y: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of the queries ``x`` with the keys ``y``, both ``(N, D)``, and ``(K, D)`` further negatives."""
        scale = self._learned_scale()
        return losses.info_nce(
            x,
            y,
            temperature=self.temperature if scale is None else 1 / scale,
            negatives=negatives,
            normalize=self.normalize,
            reduction=self.reduction,
            backend=self.backend,
        )


class CLIPLoss(_ScaledLoss):
    """`hyperkern.clip_loss` as a module that can learn its scale.

    Args:
        logit_scale: ``1 / temperature`` > 0; the initial value if it is learned.
        learnable: whether the scale is learned, by its logarithm, the parameter ``log_logit_scale``. Give the parameter
            to the optimizer, without weight decay, and under DDP wrap the loss with the model.
        max_logit_scale: upper bound of a learned scale; CLIP's is 100. The parameter is clamped in place at each call.
        normalize: whether rows are scaled to unit length first.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``logit_scale <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound or an unknown
            ``backend``.
    """

    def __init__(
        self,
        *,
        logit_scale: float = 1 / 0.07,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        backend: str | None = None,
    ) -> None:
        check_positive("logit_scale", logit_scale)
        super().__init__(logit_scale, learnable, max_logit_scale, backend)
        self.logit_scale, self.normalize = logit_scale, normalize

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The two-way loss of the partners ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        scale = self._learned_scale()
        return losses.clip_loss(
            x,
            y,
            logit_scale=self.logit_scale if scale is None else scale,
            normalize=self.normalize,
            backend=self.backend,
        )
