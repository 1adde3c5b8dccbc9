"""Sums over the rows of a class: what losses with labels need of their positives, without pairs."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .functions import batched, bound_once, dual, in_forward_mode, vmap_by_batch


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
    function = _ClassSums if forward_ad._current_level < 0 else in_forward_mode(_DualClassSums)
    sums = function.apply(batched(x), *(i if x.dim() == 3 else i.unsqueeze(0) for i in (index, of)), classes)
    result: Tensor = sums if x.dim() == 3 else sums.squeeze(0)
    return result


@bound_once
class _ClassSums(Function):
    """A linear map: its derivative is the same with the roles of ``index`` and ``of`` exchanged."""

    @staticmethod
    def forward(x: Tensor, index: Tensor, of: Tensor, classes: int) -> Tensor:
        return class_sums_of(x, index, of, classes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, index, of, ctx.classes = inputs
        ctx.save_for_backward(index, of)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, of = ctx.saved_tensors
        function = _ClassSums if forward_ad._current_level < 0 else _DualClassSums
        return function.apply(grad, of, index, ctx.classes), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        return vmap_by_batch(_ClassSums, info, in_dims, args)


@dual
class _DualClassSums(_ClassSums):
    @staticmethod
    def tangents(ctx: Any, saved: list, tangent: Tensor, *_: Any) -> Tensor:
        index, of = saved
        sums: Tensor = _DualClassSums.apply(tangent, index, of, ctx.classes)
        return sums


def class_sums_of(x: Tensor, index: Tensor, of: Tensor, classes: int) -> Tensor:
    """`class_sums` without a derivative, of ``(B, N, D)`` rows."""
    batch, _, dim = x.shape
    # Of all batch elements at once: each has classes of its own.
    offset = classes * torch.arange(batch, device=x.device).unsqueeze(1)
    sums = x.new_zeros(batch * classes, dim)
    index, rows = (index + offset).flatten(), x.reshape(-1, dim)
    # In the order of the rows: index_add does that on a CPU, index_put, which sorts, on a GPU.
    sums.index_put_((index,), rows, accumulate=True) if x.is_cuda else sums.index_add_(0, index, rows)
    return sums.index_select(0, (of + offset).flatten()).view(batch, of.shape[1], dim)


def class_index(*labels: Tensor) -> list[Tensor]:
    """Classes numbered from 0 on, the same for equal labels of any of the tensors.

    Args:
        *labels: ``(N_k,)`` or ``(B, N_k)`` integers.

    Returns:
        Tensors of the same shapes with integers from 0 to less than the sum of the N_k. No value is read on the host.
    """
    together = torch.cat(labels, -1)
    ordered, order = together.sort(dim=-1, stable=True)
    is_new = torch.zeros_like(order)  # of the dtype of an index, whatever that of the labels
    is_new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    index = torch.empty_like(order).scatter(-1, order, is_new.cumsum(-1))
    return list(index.split([part.shape[-1] for part in labels], -1))
