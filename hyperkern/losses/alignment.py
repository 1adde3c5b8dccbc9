"""Alignment: how close the two features of a positive pair are."""

import torch
from torch import Tensor

from .. import autograd
from ..arguments import REDUCTIONS, check_backend, check_choice, check_columns, check_positive, check_rows, reduce_rows
from ..distributed import Agreement, GroupLike
from ..options import Loss


def alignment(
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""Alignment loss of positive pairs ``(x_i, y_i)``.

    .. math:: \ell_i = \lVert \hat x_i - \hat y_i \rVert_2^\alpha

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features, float64, float32, bfloat16 or float16, any strides.
        y: features of the partners, like ``x``.
        alpha: exponent of the distance, > 0. The gradient of a pair at distance 0 is 0 for every ``alpha``.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the N pairs, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(N,)`` (``(B, N)``) for ``reduction="none"``.
        float64 for float64 input, float32 otherwise; in ``[0, 2^alpha]`` for unit rows. Gradients come back in
        the dtype of the inputs.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``alpha <= 0``, an unknown ``reduction``, an
            unknown or unusable ``backend``.

    Source:
        Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
        Hypersphere", ICML 2020, Section 4.1.1.
    """
    with Agreement(group, "alignment", alpha=alpha, normalize=normalize, reduction=reduction) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_columns("y", y, x, same_rows=True, may_be_empty=agreed.may_be_empty)
        alpha = check_positive("alpha", alpha)
        check_choice("reduction", reduction, REDUCTIONS)
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, y=y)
    x, y = autograd.prepare_views(x, y, normalize=normalize, backend=backend)
    return reduce_rows(alignment_of_rows(x, y, alpha), reduction, agreed.ranks)


class AlignmentLoss(Loss):
    """`hyperkern.alignment` as a module."""

    alpha: float = 2.0
    reduction: str = "mean"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the positive pairs ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return alignment(x, y, **self.given())


def alignment_of_rows(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """``|x_i - y_i|^alpha`` for each row."""
    difference = x - y
    if alpha == 2:
        return difference.square().sum(-1)
    # In units of the largest component no square over- or underflows; the unit cancels and needs no derivative. At
    # distance 0, where the derivative of the power is infinite for alpha < 1, value and gradient are 0.
    unit = torch.linalg.vector_norm(difference.detach(), torch.inf, dim=-1)
    same = unit == 0
    unit = unit.masked_fill(same, 1)
    squared = (difference / unit.unsqueeze(-1)).square().sum(-1).masked_fill(same, 1)
    powers: Tensor = unit**alpha * squared ** (alpha / 2)
    return powers.masked_fill(same, 0)
