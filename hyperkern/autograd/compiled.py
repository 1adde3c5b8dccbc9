"""A whole loss in a compiled graph: one operator that the compiler does not look into, and its gradient another.

Only on a CPU, where the reference computes. Whether the inputs are ordinary shows when it runs: where they are not, the
operator computes the loss as if it were not compiled.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import backends
from .._ops import ops as operators
from ..backends import Problem
from ..backends.reference import losses
from ..ops import define, fake, schema_of
from ..spec import LossInputs, LossSpec, accumulate_dtype, gradient_limit, norm_eps

# ``(inputs, spec, backend) -> outputs``, by the name of the loss: the function that a user calls.
Eager = Callable[[LossInputs, LossSpec, str | None], tuple[Tensor, ...]]
EAGER: dict[str, Eager] = {}

_REFERENCE = backends.load("reference")


def eager(loss: str) -> Callable[[Eager], Eager]:
    """Registers how a loss is called with what `hyperkern.autograd.loss` is told."""

    def register(function: Eager) -> Eager:
        EAGER[loss] = function
        return function

    return register


def serves(inputs: LossInputs, backend: str | None) -> bool:
    """Whether the operator is to be traced; asked when the graph is, of what does not change then."""
    return inputs.x.device.type == "cpu" and inputs.x.dim() == 2 and backend in (None, "reference")


def loss(inputs: LossInputs, spec: LossSpec, need: list[str], backend: str | None) -> tuple[Tensor, ...]:
    """The outputs; in a graph that is being traced."""
    if not need:
        return tuple(operators.loss.default(*inputs, *spec, "", backend))
    tensors: list[Tensor | None] = []
    for value in inputs:  # each a tensor of its own: the compiler takes none twice
        repeated = value is not None and any(value is other for other in tensors)
        tensors.append(value.view_as(value) if repeated and value is not None else value)
    outputs: tuple[Tensor, ...] = _OneOperator.apply(*tensors, spec, ",".join(need), backend)
    return outputs


# PyTorch's caches on disk know an operator by its name: when its outputs change it needs another.
_static = schema_of(LossSpec, *LossInputs._fields)


@define(f"loss({schema_of(LossInputs)}, {_static}, str need, str? backend) -> Tensor[]")
def _implementation(x: Tensor, *args: Any) -> list[Tensor]:
    """The outputs, and with ``need`` the state that `hyperkern.backends.reference.losses.loss_grad` takes."""
    inputs, spec, need, backend = _unpack(x, *args)
    chosen = backends.select(backend, Problem("loss", x.device, x.dtype, x.shape[-1], None, spec.precision))
    found = losses.loss(inputs, spec, need) if chosen is _REFERENCE else None
    if found is not None:
        return [*found.values, *found.state]
    with ThreadPoolExecutor(1) as thread:  # where autograd is on, which it is not inside of an operator
        return thread.submit(_by_autograd, inputs, spec, need, backend).result()


@fake("loss")
def _(x: Tensor, *args: Any) -> list[Tensor]:
    inputs, spec, need, _ = _unpack(x, *args)
    dtype = accumulate_dtype(x.dtype)
    return [x.new_empty(shape, dtype=dtype) for shape in losses.shapes(inputs, spec, need)]


@define(f"loss_grad(Tensor[] needed, Tensor[] state, Tensor?[] cotangents, {_static}, str need) -> Tensor[]")
def _gradient(needed: list[Tensor], state: list[Tensor], cotangents: list[Tensor | None], *args: Any) -> list[Tensor]:
    """Those of the needed inputs, in the order of ``need``."""
    *static, need = args
    names, spec, found = need.split(","), LossSpec(*static), []
    grads = losses.loss_grad(dict(zip(names, needed, strict=True)), spec, tuple(state), tuple(cotangents))
    for name, given in zip(names, needed, strict=True):
        grad = grads[name]
        # A row shorter than the eps of float16 saturates, as `hyperkern.backends.Backend.normalize_backward` has it.
        if given.dtype == torch.float16 and grad.dim() == 2 and spec.normalize and not grad.isfinite().all():
            limit = gradient_limit(1 / _lengths(given, torch.float16).squeeze(1), torch.float16).to(torch.float16)
            grad = torch.clamp(grad, -limit, limit)
        found.append(grad)
    return found


@fake("loss_grad")
def _(needed: list[Tensor], *_: Any) -> list[Tensor]:
    return [given.new_empty(given.shape) for given in needed]


def _by_autograd(inputs: LossInputs, spec: LossSpec, need: list[str], backend: str | None) -> list[Tensor]:
    """The same for inputs that are not ordinary: the gradients themselves, with factors of 1."""
    dtype = accumulate_dtype(inputs.x.dtype)
    leaves = {
        name: value.detach().to(dtype).requires_grad_(name in need)
        for name, value in inputs._asdict().items()
        if value is not None and value.is_floating_point()
    }
    outputs = EAGER[spec.loss](inputs._replace(**leaves), spec, backend)
    found = [value.detach() for value in outputs]
    if not need:
        return found
    wanted = [leaves[name] for name in losses.ORDER if name in need]
    for output in outputs[-2:]:  # of alignment + uniformity both terms
        grads = torch.autograd.grad(output, wanted, retain_graph=True)
        for grad, leaf in zip(grads, wanted, strict=True):
            if leaf.dim() < 2:
                found.append(grad.reshape(()).clone())
            elif spec.normalize:  # of rows that are shorter than the eps of their own dtype
                found.append(grad * (_lengths(leaf, dtype) / _lengths(leaf, inputs.x.dtype)))
            else:  # those of two features may be parts of one tensor, which the outputs of an operator must not be
                found.append(grad.clone())
    return found


def _lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``(N, 1)``, those of rows of a dtype, not less than its `norm_eps`."""
    lengths: Tensor = torch.linalg.vector_norm(x.to(accumulate_dtype(x.dtype)), dim=1, keepdim=True)
    return lengths.clamp_min(norm_eps(dtype))


def _unpack(*args: Any) -> tuple[LossInputs, LossSpec, list[str], str | None]:
    tensors, static = len(LossInputs._fields), len(LossSpec._fields)
    inputs, spec = LossInputs(*args[:tensors]), LossSpec(*args[tensors : tensors + static])
    need, backend = args[tensors + static :]
    return inputs, spec, need.split(",") if need else [], backend


class _OneOperator(Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        *tensors, spec, need, backend = args
        found = operators.loss.default(*tensors, *spec, need, backend)
        outputs = 3 if spec.loss == "align_uniform" else 1
        given = dict(zip(LossInputs._fields, tensors, strict=True))
        ctx.save_for_backward(*[given[name] for name in need.split(",")], *found[outputs:])
        ctx.spec, ctx.need = spec, need
        return tuple(found[:outputs])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        names, saved = ctx.need.split(","), ctx.saved_tensors
        needed, state = saved[: len(names)], saved[len(names) :]
        found = operators.loss_grad.default(needed, state, cotangents, *ctx.spec, ctx.need)
        grads = dict(zip(names, found, strict=True))
        return *[grads.get(name) for name in LossInputs._fields], None, None, None
