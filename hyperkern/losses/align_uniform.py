"""Alignment plus uniformity, the loss that replaces a contrastive one."""

from typing import Any, NamedTuple

from torch import Tensor

from .. import autograd
from ..arguments import check_backend, check_columns, check_number, check_pairs, check_positive, check_rows, reduce_rows
from ..distributed import Agreement, GroupLike
from ..options import Loss
from ..spec import LossInputs, LossSpec, product_precision
from .alignment import alignment_of_rows
from .uniformity import uniformity_of_rows


class AlignUniform(NamedTuple):
    """The result of `align_uniform`; all three are differentiable, each a scalar or ``(B,)``.

    Attributes:
        loss: ``align_weight * alignment + uniform_weight * uniformity``.
        alignment: mean distance of the positive pairs to the power ``alpha``.
        uniformity: mean of the uniformities of the two sides.
    """

    loss: Tensor
    alignment: Tensor
    uniformity: Tensor


def align_uniform(
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    t: float = 2.0,
    align_weight: float = 1.0,
    uniform_weight: float = 1.0,
    normalize: bool = True,
    group: GroupLike = None,
    backend: str | None = None,
) -> AlignUniform:
    r"""Alignment and uniformity of positive pairs ``(x_i, y_i)``, and their weighted sum.

    .. math::
        L = \lambda_a \tfrac1N \sum_i \lVert \hat x_i - \hat y_i \rVert^\alpha
          + \lambda_u \tfrac12 \bigl( U(x) + U(y) \bigr)

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features, N >= 2, float64, float32, bfloat16 or float16, any strides.
        y: features of the partners, like ``x``.
        alpha: exponent of the alignment distance, > 0.
        t: inverse width of the Gaussian potential, > 0.
        align_weight: weight of the alignment.
        uniform_weight: weight of the uniformity.
        normalize: whether rows are scaled to unit length first.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        `AlignUniform`, a named tuple ``(loss, alignment, uniformity)``: call ``backward`` on its ``loss``.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong shape, fewer than two rows, different devices, ``alpha <= 0``, ``t <= 0``, a weight that
            is not finite, an unknown or unusable ``backend``.

    Source:
        Wang & Isola, ICML 2020, Section 4.1 and Figure 6.
    """
    numbers: dict[str, Any] = {"alpha": alpha, "t": t, "align_weight": align_weight, "uniform_weight": uniform_weight}
    with Agreement(group, "align_uniform", normalize=normalize, **numbers) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_columns("y", y, x, same_rows=True, may_be_empty=agreed.may_be_empty)
        alpha = check_positive("alpha", alpha)
        t = check_positive("t", t)
        align_weight = check_number("align_weight", align_weight)
        uniform_weight = check_number("uniform_weight", uniform_weight)
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, y=y)
    ranks = agreed.ranks
    check_pairs("x", x, ranks)
    precision = product_precision(x) if normalize else "float32"

    def composed(inputs: LossInputs) -> AlignUniform:
        x, y = autograd.prepare_views(inputs.x, inputs.y, normalize=normalize, backend=backend)
        align = reduce_rows(alignment_of_rows(x, y, alpha), "mean", ranks)
        of_x, of_y = (
            uniformity_of_rows(side, t=t, is_unit=normalize, precision=precision, ranks=ranks, backend=backend)
            for side in (x, y)
        )
        uniform = (of_x + of_y) / 2
        return AlignUniform(align_weight * align + uniform_weight * uniform, align, uniform)

    inputs = LossInputs(x, y)
    if not (ranks.alone and normalize):
        return composed(inputs)
    whole = LossSpec(
        "align_uniform",
        2.0 * t,
        alpha=float(alpha),
        align_weight=float(align_weight),
        uniform_weight=float(uniform_weight),
        precision=precision,
    )
    return AlignUniform(*autograd.loss(inputs, whole, composed, backend=backend))


class AlignUniformLoss(Loss):
    """`hyperkern.align_uniform` as a module: called it returns the weighted sum alone, by `terms` all of the result."""

    alpha: float = 2.0
    t: float = 2.0
    align_weight: float = 1.0
    uniform_weight: float = 1.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the positive pairs ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return align_uniform(x, y, **self.given()).loss

    def terms(self, x: Tensor, y: Tensor) -> AlignUniform:
        """The loss with the alignment and the uniformity that it is the sum of."""
        return align_uniform(x, y, **self.given())
