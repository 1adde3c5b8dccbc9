"""Sums over the rows of a class: what losses with labels need of their positives, without pairs."""

from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..classes import class_sums_of
from .functions import applied, with_variants


def class_sums(x: Tensor, index: Tensor, of: Tensor, classes: int) -> Tensor:
    """For each entry of ``of`` the sum of the rows of ``x`` of that class.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` rows.
        index: ``(N,)`` or ``(B, N)`` classes of the rows, integers from 0 to ``classes - 1``.
        of: ``(M,)`` or ``(B, M)`` classes whose sums are wanted.
        classes: their number.

    Returns:
        ``(M, D)`` or ``(B, M, D)``; 0 for a class without rows. The order of addition is always the same.
    """
    if x.dim() == 2:
        return class_sums(x.unsqueeze(0), index.unsqueeze(0), of.unsqueeze(0), classes).squeeze(0)
    sums: Tensor = applied(_ClassSums, x, index, of, classes)
    return sums


@with_variants
class _ClassSums(Function):
    """A linear map: its derivative is the same with the roles of ``index`` and ``of`` exchanged."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, of: Tensor, classes: int) -> Tensor:
        return class_sums_of(x, index, of, classes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, index, of, ctx.classes = inputs
        ctx.save_for_backward(index, of)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, of = ctx.saved_tensors
        return applied(_ClassSums, grad, of, index, ctx.classes), None, None, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], tangent: Tensor, *_: Any) -> Tensor:
        index, of = saved
        sums: Tensor = applied(_ClassSums, tangent, index, of, ctx.classes)
        return sums
