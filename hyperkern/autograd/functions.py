"""What the autograd functions share: their variants, the leading batch dimension, `torch.func.vmap` by it.

Each function is written as transforms and the compiler want it: ``forward``, ``setup_context``, ``backward``, and for
forward mode ``tangents``. `with_variants` adds the rest; `applied` takes one of two subclasses where it can or must:

- ``eager``, all in one ``forward``: with a ``setup_context`` PyTorch binds the arguments of every call to a signature,
  which takes a tenth of a small batch.
- ``dual``, with forward mode, only inside of a level of it (``forward_ad._current_level >= 0``): the compiler refuses a
  function with a ``jvp``, and saving tensors for it takes time. Without a ``jvp`` PyTorch raises; it never takes a
  tangent for zero.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

Kind = TypeVar("Kind", bound=type[Function])


def applied(function: Any, *args: Any) -> Any:
    """``function.apply(*args)``, in the variant that the surroundings need.

    Raises:
        NotImplementedError: forward mode in a compiled call, which would make a function without tangents of it.
    """
    if forward_ad._current_level >= 0:
        if torch.compiler.is_compiling():
            raise NotImplementedError(
                "forward mode (torch.func.jvp, jacfwd, torch.autograd.forward_ad) of a hyperkern loss does not compile"
                ": take it outside of torch.compile(fullgraph=True)"
            )
        return function.dual.apply(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    if not torch.is_grad_enabled():  # in most backward passes
        return function.forward(*args)
    if torch.compiler.is_dynamo_compiling():
        return function.apply(*args)
    return function.eager.apply(*args)


def with_variants(function: Kind) -> Kind:
    """Completes a function with `torch.func.vmap` and its two subclasses, ``eager`` and ``dual``.

    For forward mode it has ``tangents(ctx, saved, *tangents of the inputs)``, where ``saved`` are the tensors that its
    ``setup_context`` saves for ``backward``.
    """
    whole: Any = function

    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        function.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*ctx.to_save)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        # PyTorch turns forward mode off here, and with it that of outer levels: their tangents would be lost.
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [None if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]
            return whole.tangents(ctx, saved, *tangents)

    def variant(**methods: Callable[..., Any]) -> Any:
        pieces = {name: staticmethod(method) for name, method in methods.items()}
        return type(function.__name__, (function,), pieces)

    whole.eager = variant(forward=forward, setup_context=Function.setup_context)
    whole.dual = variant(setup_context=setup_context, jvp=jvp)
    for one in (whole, whole.dual):
        one.vmap = staticmethod(functools.partial(_vmap_by_batch, one))
    return function


def _vmap_by_batch(function: type[Function], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, ...]:
    """Folds the mapped dimension into the leading batch dimension that every tensor here has."""

    def fold(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        arg = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return arg.flatten(0, 1)

    output = function.apply(*map(fold, args, in_dims))
    if isinstance(output, Tensor):
        return output.unflatten(0, (info.batch_size, -1)), 0
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in output), (0,) * len(output)
