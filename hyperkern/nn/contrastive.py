"""The contrastive losses as modules, with temperatures and scales that can be learned."""

import torch
from torch import Tensor, nn

from .. import losses
from ..arguments import REDUCTIONS, check_choice, check_number, check_positive
from ..distributed import GroupLike
from .base import ScaledLoss, TemperatureLoss


class InfoNCELoss(TemperatureLoss):
    """`hyperkern.info_nce` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        in_batch: whether the other rows of ``y`` are candidates; ``False`` for MoCo's loss against a queue.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
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
        in_batch: bool = True,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            max_logit_scale=max_logit_scale,
            normalize=normalize,
            reduction=reduction,
            group=group,
            backend=backend,
        )
        self.in_batch = in_batch

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        negatives: Tensor | None = None,
        *,
        hard_negatives: Tensor | None = None,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        y_log_weights: Tensor | None = None,
        negative_log_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of the queries ``x`` with the keys ``y``, both ``(N, D)``, and ``(K, D)`` further negatives."""
        return losses.info_nce(
            x,
            y,
            negatives=negatives,
            hard_negatives=hard_negatives,
            in_batch=self.in_batch,
            ids=ids,
            negative_ids=negative_ids,
            y_log_weights=y_log_weights,
            negative_log_weights=negative_log_weights,
            **self.options(),
        )


class NTXentLoss(TemperatureLoss):
    """`hyperkern.nt_xent` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``temperature <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound, an unknown
            ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            max_logit_scale=max_logit_scale,
            normalize=normalize,
            reduction=reduction,
            group=group,
            backend=backend,
        )

    def forward(self, x: Tensor, y: Tensor, *views: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of two or more views of the same samples, each ``(N, D)``, and ``(K, D)`` further negatives."""
        return losses.nt_xent(x, y, *views, negatives=negatives, **self.options())


class DCLLoss(TemperatureLoss):
    """`hyperkern.dcl` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``temperature <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound, an unknown
            ``reduction`` or ``backend``.
    """

    def forward(self, x: Tensor, y: Tensor, *, weights: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The loss of the partners ``(x_i, y_i)``, both ``(N, D)``, and the weights ``(N,)`` of either's positives."""
        return losses.dcl(x, y, weights=weights, **self.options())


class DCLWLoss(TemperatureLoss):
    """`hyperkern.dclw` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        sigma: width of the weighting, > 0.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``temperature <= 0``, ``sigma <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound,
            an unknown ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        sigma: float = 0.5,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            learnable=learnable,
            max_logit_scale=max_logit_scale,
            normalize=normalize,
            reduction=reduction,
            group=group,
            backend=backend,
        )
        check_positive("sigma", sigma)
        self.sigma = sigma

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the partners ``(x_i, y_i)``, both ``(N, D)``."""
        return losses.dclw(x, y, sigma=self.sigma, **self.options())


class SupConLoss(TemperatureLoss):
    """`hyperkern.sup_con` as a module that can learn its temperature.

    Args:
        temperature: > 0; the initial value if it is learned.
        learnable: whether the temperature is learned, by the parameter ``log_logit_scale``, the logarithm of its
            reciprocal. Give the parameter to the optimizer, without weight decay, and under DDP wrap the loss with the
            model.
        max_logit_scale: upper bound of a learned ``1 / temperature``; CLIP's is 100. The parameter is clamped in place
            at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``temperature <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound, an unknown
            ``reduction`` or ``backend``.
    """

    def forward(self, x: Tensor, labels: Tensor, y: Tensor | None = None, y_labels: Tensor | None = None) -> Tensor:
        """The loss of the features ``x`` ``(N, D)`` with classes ``labels`` ``(N,)``; see `hyperkern.sup_con`."""
        return losses.sup_con(x, labels, y, y_labels, **self.options())


class CLIPLoss(ScaledLoss):
    """`hyperkern.clip_loss` as a module that can learn its scale.

    Args:
        logit_scale: ``1 / temperature`` > 0; the initial value if it is learned.
        learnable: whether the scale is learned, by its logarithm, the parameter ``log_logit_scale``. Give the parameter
            to the optimizer, without weight decay, and under DDP wrap the loss with the model.
        max_logit_scale: upper bound of a learned scale; CLIP's is 100. The parameter is clamped in place at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``logit_scale <= 0``, ``max_logit_scale <= 0``, a learnable scale above its bound, an unknown
            ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        logit_scale: float = 1 / 0.07,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        check_positive("logit_scale", logit_scale)
        check_choice("reduction", reduction, REDUCTIONS)
        super().__init__(logit_scale, learnable, max_logit_scale, backend, group)
        self.logit_scale, self.normalize, self.reduction = logit_scale, normalize, reduction

    def forward(self, x: Tensor, y: Tensor, *, ids: Tensor | None = None) -> Tensor:
        """The two-way loss of the partners ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        scale = self.learned_scale()
        return losses.clip_loss(
            x,
            y,
            logit_scale=self.logit_scale if scale is None else scale,
            ids=ids,
            normalize=self.normalize,
            reduction=self.reduction,
            group=self.group,
            backend=self.backend,
        )


class SigLIPLoss(ScaledLoss):
    """`hyperkern.siglip` as a module that can learn its scale and bias.

    Args:
        logit_scale: > 0; the initial value if it is learned.
        logit_bias: the initial value if it is learned.
        learnable: whether both are learned, by the parameters ``log_logit_scale``, a logarithm, and ``learned_bias``.
            Give them to the optimizer, without weight decay, and under DDP wrap the loss with the model.
        max_logit_scale: upper bound of a learned scale. The parameter is clamped in place at each call.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"``.
        group: the ranks that share the batch, see `hyperkern.Group`; by default the batch is this process's own.
        backend: name of a backend to force; by default the best usable one.

    Raises:
        ValueError: ``logit_scale <= 0``, a bias that is not finite, ``max_logit_scale <= 0``, a learnable scale above
            its bound, an unknown ``reduction`` or ``backend``.
    """

    def __init__(
        self,
        *,
        logit_scale: float = 10.0,
        logit_bias: float = -10.0,
        learnable: bool = False,
        max_logit_scale: float = 100.0,
        normalize: bool = True,
        reduction: str = "mean",
        group: GroupLike = None,
        backend: str | None = None,
    ) -> None:
        check_positive("logit_scale", logit_scale)
        check_number("logit_bias", logit_bias)
        check_choice("reduction", reduction, ("mean", "sum"))
        super().__init__(logit_scale, learnable, max_logit_scale, backend, group)
        self.logit_scale, self.logit_bias = logit_scale, logit_bias
        self.normalize, self.reduction = normalize, reduction
        self.learned_bias = nn.Parameter(torch.tensor(float(logit_bias))) if learnable else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of all pairs of ``x`` and ``y``, both ``(N, D)`` or ``(B, N, D)``; row i goes with row i."""
        scale = self.learned_scale()
        return losses.siglip(
            x,
            y,
            logit_scale=self.logit_scale if scale is None else scale,
            logit_bias=self.logit_bias if self.learned_bias is None else self.learned_bias,
            normalize=self.normalize,
            reduction=self.reduction,
            group=self.group,
            backend=self.backend,
        )
