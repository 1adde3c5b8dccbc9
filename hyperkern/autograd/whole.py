"""A whole loss as one autograd function, where a backend computes it in few steps.

For the batches people train with the arithmetic takes less time than the dozens of small operators of a composition.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import backends
from ..backends import Backend, Problem, WholeLoss
from ..backends.host.precision import float32_setting
from ..spec import LossInputs, LossSpec
from . import compiled

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
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return composed(inputs)
    grad_enabled, need, others, mask = torch.is_grad_enabled(), [], {}, []
    for name, value in zip(LossInputs._fields, inputs, strict=True):
        mask.append(grad_enabled and value is not None and value.requires_grad)
        if value is None:
            continue
        if type(value) not in _PLAIN:  # a subclass may stand for anything, or for no memory at all
            return composed(inputs)
        if mask[-1]:
            need.append(name)
        else:
            others[name] = value
    if torch.compiler.is_dynamo_compiling():
        return compiled.loss(inputs, spec, need, backend) if compiled.serves(inputs, backend) else composed(inputs)
    x = inputs.x
    kind = float32_setting() if x.is_cuda and spec.precision == "float32" else spec.precision
    chosen = backends.select(backend, Problem("loss", x.device, x.dtype, x.shape[-1], None, kind))
    if spec.loss not in chosen.LOSSES:
        return composed(inputs)
    if not need:
        found = _shielded(chosen, inputs, spec, need)
        return composed(inputs) if found is None else found.values
    try:
        outputs: tuple[Tensor, ...] = _WholeLoss.apply(inputs, spec, need, mask, others, chosen, composed, *inputs)
    except _LeftToComposition:
        return composed(inputs)
    return outputs


_PLAIN = (Tensor, torch.nn.Parameter)


class _LeftToComposition(Exception):
    """The backend has looked at the inputs and declined."""


class _WholeLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: LossInputs,  # once as they are, and once for autograd to see
        spec: LossSpec,
        need: list[str],
        mask: list[bool],
        others: dict[str, Tensor],
        backend: Backend,
        composed: Composed,
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        if inputs.x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            found = backend.loss(inputs, spec, need)  # without a step in between: a small batch notices each
        else:
            found = _shielded(backend, inputs, spec, need)
        if found is None:
            raise _LeftToComposition
        values, state, rows = found
        ctx.save_for_backward(*itertools.compress(tensors, mask), *state)
        # What has no gradient is not saved: a queue may go on between the loss and the gradient. Only a second
        # derivative needs it as it was.
        ctx.others = others | rows
        ctx.versions = {name: _version(t) for name, t in ctx.others.items()} if others else {}
        ctx.spec, ctx.need, ctx.backend, ctx.composed = spec, need, backend, composed
        ctx.set_materialize_grads(False)
        return values

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        if cotangents[0] is None and not [c for c in cotangents if c is not None]:
            return (None,) * (_STATIC + len(LossInputs._fields))
        saved = ctx.saved_tensors
        needed = dict(zip(ctx.need, saved, strict=False))
        if torch.is_grad_enabled():  # create_graph: the gradient itself is to be differentiated
            grads = _differentiable(ctx, needed, cotangents)
        else:
            grads = ctx.backend.loss_grad(needed, ctx.spec, saved[len(needed) :], cotangents)
        return *(None,) * _STATIC, *map(grads.get, LossInputs._fields)


_STATIC = 7  # arguments before the tensors


def _version(tensor: Tensor) -> int | None:
    """How often it has been written to; a tensor of inference mode does not count."""
    return None if tensor.is_inference() else tensor._version


def _shielded(backend: Backend, inputs: LossInputs, spec: LossSpec, need: list[str]) -> WholeLoss | None:
    """`Backend.loss`, whose products autocast would send to half precision behind its back."""
    kind = inputs.x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return backend.loss(inputs, spec, need)
    with torch.autocast(kind, enabled=False):
        return backend.loss(inputs, spec, need)


def _differentiable(ctx: Any, needed: dict[str, Tensor], cotangents: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
    for name, value in ctx.others.items():
        if _version(value) != ctx.versions[name]:
            raise RuntimeError(
                f"{name} has been modified by an in-place operation since the loss was computed: its second derivative "
                "needs it as it was"
            )
    # Of views, each a node of its own: y may be x, or depend on it, and that path is not this function's.
    views = {name: value.view_as(value) for name, value in needed.items()}
    results = ctx.composed(LossInputs(**ctx.others, **views))
    pairs = [(result, c) for result, c in zip(results, cotangents, strict=True) if c is not None]
    asked, given = zip(*pairs, strict=True)
    grads = torch.autograd.grad(asked, list(views.values()), given, create_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(views, grads, strict=True) if grad is not None}
