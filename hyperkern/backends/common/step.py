"""What the kernels of whole losses are told, and which losses they leave to the composition."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from torch import Tensor

from ...spec import LossInputs, LossSpec, is_bounded
from .. import WholeLoss


class AlignUniformOptions(NamedTuple):
    """The numbers of ``align_weight * alignment(alpha) + uniform_weight * uniformity(t)``."""

    alpha: float
    t: float
    align_weight: float
    uniform_weight: float


class AlignUniformStep(NamedTuple):
    """`hyperkern.backends.Backend.loss` and its gradient by kernels that make both sides of alignment + uniformity.

    Attributes:
        values: ``(x, y, options, precision, *, need_grad)``, the three numbers and what the gradient needs besides.
        grads: ``(x, y, state, options, cotangents)``, the gradients of ``x`` and ``y``.
    """

    values: Callable[..., tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]
    grads: Callable[..., tuple[Tensor, Tensor]]

    def loss(self, inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
        """Both sides with their gradients, or neither; a common bound of the exponents."""
        x = inputs.x
        if ("x" in need) != ("y" in need) or not is_bounded(spec.scale, x.shape[-2] ** 2, x.dtype):
            return None
        values, state = self.values(x, inputs.y, _options(spec), spec.precision, need_grad=bool(need))
        return WholeLoss(values, state, {})

    def loss_grad(
        self,
        needed: dict[str, Tensor],
        spec: LossSpec,
        state: tuple[Tensor, ...],
        cotangents: tuple[Tensor | None, ...],
    ) -> dict[str, Tensor]:
        """The gradients of both sides."""
        grads = self.grads(needed["x"], needed["y"], state, _options(spec), cotangents)
        return dict(zip(("x", "y"), grads, strict=True))


def _options(spec: LossSpec) -> AlignUniformOptions:
    return AlignUniformOptions(spec.alpha, spec.scale / 2, spec.align_weight, spec.uniform_weight)
