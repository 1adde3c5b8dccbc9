"""The primitives as PyTorch operators: opaque to the compiler, with shapes for tracing, without derivatives.

Derivatives stand in `hyperkern.autograd`, around these operators. (Derivatives registered on an operator itself
break `torch.func.grad`, and its `jvp` would silently return a zero tangent.)

The operator's implementation, not its caller, chooses the backend: so the choice happens at run time, also in a
compiled graph.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake

from . import backends
from .backends import Problem
from .spec import PairSpec, PairTerms, accumulate_dtype

NAMESPACE = "hyperkern"

library = Library(NAMESPACE, "DEF")

# The fields of PairTerms and of PairSpec, in their order.
_TERMS = "Tensor? u, Tensor? v, Tensor? row_ids, Tensor? col_ids"
_SPEC = "float scale, bool bounded, str exclude, SymInt row_offset, SymInt col_offset, str precision"


def define(schema: str) -> Callable[[Callable], Callable]:
    """Defines the operator and implements it by the decorated function, shielded from autocast."""

    def register(function: Callable) -> Callable:
        name = schema.split("(")[0]

        def implementation(x: Any, *args: Any) -> Any:
            # Autocast would send the products of the backend to half precision behind its back.
            kind = (x if isinstance(x, Tensor) else x[0]).device.type
            if not torch.is_autocast_enabled(kind):
                return function(x, *args)
            with torch.autocast(kind, enabled=False):
                return function(x, *args)

        library.define(schema)
        library.impl(name, implementation, "CompositeExplicitAutograd")
        return function

    return register


@define("prepare(Tensor x, str? backend) -> (Tensor, Tensor)")
def _prepare(x: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    return _select(backend, "prepare", x).prepare(x)


@register_fake(f"{NAMESPACE}::prepare", lib=library)
def _(x: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(x.dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:2], dtype=dtype)


@define("finish(Tensor grad, Tensor unit, Tensor rstd, ScalarType dtype, str? backend) -> Tensor")
def _finish(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    return _select(backend, "finish", unit).finish(grad, unit, rstd, dtype)


@register_fake(f"{NAMESPACE}::finish", lib=library)
def _(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    return unit.new_empty(unit.shape, dtype=dtype)


@define(
    f"row_lse(Tensor x, Tensor? y, {_TERMS}, {_SPEC}, bool need_cols, str? backend) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _row_lse(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    terms, spec, (need_cols, backend) = _unpack(args)
    return _select(backend, "row_lse", x, spec).row_lse(x, y, terms, spec, need_cols=need_cols)


@register_fake(f"{NAMESPACE}::row_lse", lib=library)
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    rows, cols = x.shape[1], y.shape[1] if y is not None and args[-2] else 0
    return tuple(_new(x, length) for length in (rows, cols, rows, cols))


@define(
    f"pair_grad(Tensor x, Tensor? y, {_TERMS}, {_SPEC}, Tensor row_lse, Tensor? col_lse, Tensor a, Tensor? b, "
    "bool need_x, bool need_y, str? backend) -> (Tensor, Tensor, Tensor, Tensor)"
)
def _pair_grad(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    terms, spec, (row_lse, col_lse, a, b, need_x, need_y, backend) = _unpack(args)
    return _select(backend, "pair_grad", x, spec).pair_grad(
        x, y, terms, spec, row_lse, col_lse, a, b, need_x=need_x, need_y=need_y
    )


@register_fake(f"{NAMESPACE}::pair_grad", lib=library)
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return _new_sides(x, y, *args[-3:-1])


@define(
    f"energy(Tensor x, Tensor? y, {_TERMS}, {_SPEC}, str potential, bool need_x, bool need_y, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def _energy(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    terms, spec, (potential, need_x, need_y, backend) = _unpack(args)
    return _select(backend, "energy", x, spec).energy(x, y, terms, spec, potential, need_x=need_x, need_y=need_y)


@register_fake(f"{NAMESPACE}::energy", lib=library)
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return _new(x), *_new_sides(x, y, *args[-3:-1])


def _unpack(args: tuple) -> tuple[PairTerms, PairSpec, tuple]:
    specified = len(PairTerms._fields) + len(PairSpec._fields)
    terms, spec = args[: len(PairTerms._fields)], args[len(PairTerms._fields) : specified]
    return PairTerms(*terms), PairSpec(*spec), args[specified:]


def _select(requested: str | None, primitive: str, x: Tensor, spec: PairSpec | None = None) -> backends.Backend:
    chosen = backends.select(requested, Problem(primitive, x.device, x.dtype, x.shape[-1], spec))
    # A rank may have no rows, of which no kernel has to know.
    return chosen if x.shape[1] else backends.load("reference")


def _new(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty((x.shape[0], *shape), dtype=accumulate_dtype(x.dtype))


def _new_sides(x: Tensor, y: Tensor | None, need_x: bool, need_y: bool) -> tuple[Tensor, ...]:
    """Gradient and weight sum of the row side and of the column side; without rows where not needed."""
    m = x.shape[1] if need_x else 0
    n = (x if y is None else y).shape[1] if need_y else 0
    return _new(x, m, x.shape[2]), _new(x, m), _new(x, n, x.shape[2]), _new(x, n)


_operators = getattr(torch.ops, NAMESPACE)
prepare = _operators.prepare.default
finish = _operators.finish.default
row_lse = _operators.row_lse.default
pair_grad = _operators.pair_grad.default
energy = _operators.energy.default
