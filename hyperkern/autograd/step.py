"""A whole loss as one autograd function, where a backend computes it in few steps.

For the batches people train with the arithmetic takes less time than the dozens of small operators of a composition.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import backends
from ..backends import Problem
from ..spec import LossInputs, LossSpec

Composed = Callable[[LossInputs], tuple[Tensor, ...]]


def loss(inputs: LossInputs, spec: LossSpec, composed: Composed, *, backend: str | None) -> tuple[Tensor, ...]:
    """The outputs of a loss, from one function where possible.

    Args:
        inputs: the tensors.
        spec: the rest.
        composed: the same from the primitives. It is taken where the backend does not have this loss or declines its
            inputs, where the call is compiled, transformed or in forward mode, and for second derivatives.
        backend: name of a backend to force.

    Returns:
        Tensors ``()`` or ``(B,)``.
    """
    outputs = _whole(inputs, spec, composed, backend)
    return composed(inputs) if outputs is None else outputs


def _whole(inputs: LossInputs, spec: LossSpec, composed: Composed, backend: str | None) -> tuple[Tensor, ...] | None:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    grad_enabled, need = torch.is_grad_enabled(), []
    for name, value in zip(LossInputs._fields, inputs, strict=True):
        if value is None:
            continue
        if type(value) not in _PLAIN:  # a subclass may stand for anything, or for no memory at all
            return None
        if grad_enabled and value.requires_grad:
            need.append(name)
    x = inputs.x
    chosen = backends.select(backend, Problem("loss", x.device, x.dtype, x.shape[-1]))
    if spec.loss not in chosen.LOSSES:
        return None
    if not need:
        found = _shielded(chosen, inputs, spec, need)
        return None if found is None else found[0]
    try:
        outputs: tuple[Tensor, ...] = _WholeLoss.apply(spec, need, chosen, composed, *inputs)
    except _LeftToComposition:
        return None
    return outputs


_PLAIN = (Tensor, torch.nn.Parameter)


class _LeftToComposition(Exception):
    """The backend has looked at the inputs and declined."""


class _WholeLoss(Function):
    @staticmethod
    def forward(
        ctx: Any, spec: LossSpec, need: list[str], backend: Any, composed: Composed, *tensors: Any
    ) -> tuple[Tensor, ...]:
        found = _shielded(backend, LossInputs(*tensors), spec, need)
        if found is None:
            raise _LeftToComposition
        values, state = found
        ctx.save_for_backward(*tensors, *state)
        ctx.spec, ctx.need, ctx.backend, ctx.composed = spec, need, backend, composed
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(c is None for c in cotangents):
            return (None,) * _ARGUMENTS
        inputs, state = LossInputs(*ctx.saved_tensors[:_TENSORS]), ctx.saved_tensors[_TENSORS:]
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            grads = _differentiable(ctx, inputs, cotangents)
        else:
            grads = ctx.backend.loss_grad(inputs, ctx.spec, ctx.need, state, cotangents)
        return None, None, None, None, *map(grads.get, LossInputs._fields)


_TENSORS = len(LossInputs._fields)
_ARGUMENTS = 4 + _TENSORS


def _shielded(backend: Any, inputs: LossInputs, spec: LossSpec, need: list[str]) -> Any:
    """`Backend.loss`, whose products autocast would send to half precision behind its back."""
    kind = inputs.x.device.type
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext():
        return backend.loss(inputs, spec, need)


def _differentiable(ctx: Any, inputs: LossInputs, cotangents: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    # Of views, each a node of its own: y may be x, or depend on it, and that path is not this function's.
    views = {name: getattr(inputs, name).view_as(getattr(inputs, name)) for name in ctx.need}
    results = ctx.composed(inputs._replace(**views))
    pairs = [(result, c) for result, c in zip(results, cotangents, strict=True) if c is not None]
    asked, given = zip(*pairs, strict=True)
    grads = torch.autograd.grad(asked, list(views.values()), given, create_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(views, grads, strict=True) if grad is not None}
