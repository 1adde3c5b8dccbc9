"""A whole loss as one autograd function, where a backend computes it in few launches.

For an ordinary batch the arithmetic takes less time than launching the dozens of small kernels of a composition.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import backends
from ..backends import Problem
from ..spec import AlignUniformOptions, PairSpec

Composed = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def align_uniform(
    x: Tensor, y: Tensor, options: AlignUniformOptions, precision: str, *, backend: str | None, composed: Composed
) -> tuple[Tensor, ...] | None:
    """Loss, alignment and uniformity of features that are to be normalised.

    Args:
        x: ``(N, D)`` or ``(B, N, D)``.
        y: likewise.
        options: the numbers of the loss; ``2 t`` must be in the bounded regime.
        precision: `PairSpec.precision`.
        backend: name of a backend to force.
        composed: the same from the primitives; differentiated where a second derivative is wanted.

    Returns:
        Three tensors ``()`` or ``(B,)``; ``None`` where the composition is to be taken: the backend has no such
        kernels, only one side needs a gradient, or the call is compiled, transformed or in forward mode.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    if type(x) not in _PLAIN or type(y) not in _PLAIN:  # a subclass may stand for anything, or for no memory at all
        return None
    need_grad = torch.is_grad_enabled() and x.requires_grad
    if need_grad != (torch.is_grad_enabled() and y.requires_grad):
        return None
    spec = PairSpec(2 * options.t, bounded=True, exclude="self", precision=precision)
    chosen = backends.select(backend, Problem("energy", x.device, x.dtype, x.shape[-1], spec))
    if not hasattr(chosen, "align_uniform"):
        return None
    results: tuple[Tensor, ...] = _AlignUniform.apply(x, y, options, precision, need_grad, chosen, composed)
    return results


_PLAIN = (Tensor, torch.nn.Parameter)


class _AlignUniform(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        options: AlignUniformOptions,
        precision: str,
        need_grad: bool,
        backend: Any,
        composed: Composed,
    ) -> tuple[Tensor, ...]:
        # Autocast would send the products of the backend to half precision behind its back.
        shield = torch.autocast(x.device.type, enabled=False) if torch.is_autocast_enabled(x.device.type) else None
        with shield or nullcontext():
            values, state = backend.align_uniform(x, y, options, precision, need_grad=need_grad)
        if need_grad:
            ctx.save_for_backward(x, y, *state)
            ctx.options, ctx.backend, ctx.composed = options, backend, composed
            ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, *state = ctx.saved_tensors
        given = [c for c in cotangents if c is not None]
        if not given:
            return (None,) * 7
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            # Of views, each a node of its own: y may be x, or depend on it, and that path is not this function's.
            sides = x.view_as(x), y.view_as(y)
            results = ctx.composed(*sides)
            asked = [result for result, c in zip(results, cotangents, strict=True) if c is not None]
            grads = torch.autograd.grad(asked, sides, given, create_graph=True, allow_unused=True)
        else:
            grads = ctx.backend.align_uniform_grad(x, y, tuple(state), ctx.options, cotangents)
        return *grads, None, None, None, None, None
