"""The primitives as PyTorch operators: opaque to the compiler, with shapes for tracing, without derivatives.

Derivatives stand in `hyperkern.autograd`, around these operators. (Derivatives registered on an operator itself
break `torch.func.grad`, and its `jvp` would silently return a zero tangent.)

The operator's implementation, not its caller, chooses the backend: so the choice happens at run time, also in a
compiled graph.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from . import backends
from ._ops import add_op_namespace_prefix
from ._ops import ops as operators
from .backends import Problem
from .backends.host.precision import float32_setting
from .spec import NO_TERMS, PairSpec, PairTerms, accumulate_dtype

if TYPE_CHECKING:  # each module has all of the contract
    from .backends import Backend, cuda, reference, triton

    _backends: tuple[Backend, ...] = (cuda, triton, reference)


def schema_of(fields: type, *taken: str) -> str:
    """The fields of a named tuple as a schema has them, which knows no tuples: a call takes ``*fields`` apart.

    Those whose name is ``taken`` get an underscore.
    """
    kinds: dict[Any, str] = {str: "str", float: "float", bool: "bool", Tensor: "Tensor", Tensor | None: "Tensor?"}
    hints = get_type_hints(fields)
    return ", ".join(f"{kinds[kind]} {name}{'_' * (name in taken)}" for name, kind in hints.items())


_OPERANDS = f"Tensor x, Tensor? y, {schema_of(PairTerms)}, {schema_of(PairSpec)}"
_TERMS = 1 + len(PairTerms._fields)  # arguments behind x, with y
_SPECIFIED = _TERMS + len(PairSpec._fields)

# The same fields come back at every call, and the constructor of a named tuple is one more.
_spec = functools.lru_cache(maxsize=1024)(PairSpec)
_problem = functools.lru_cache(maxsize=1024)(Problem)


_Operator = TypeVar("_Operator", bound=Callable[..., Any])


def define(schema: str) -> Callable[[_Operator], _Operator]:
    """Defines the operator and implements it by the decorated function, shielded from autocast."""

    def register(function: _Operator) -> _Operator:
        def implementation(x: Any, *args: Any) -> Any:
            # Autocast would send the products of the backend to half precision behind its back.
            kind = (x if isinstance(x, Tensor) else x[0]).device.type
            if not torch.is_autocast_enabled(kind):
                return function(x, *args)
            with torch.autocast(kind, enabled=False):
                return function(x, *args)

        _register(schema, implementation)
        return function

    return register


def fake(name: str) -> Callable[[_Operator], _Operator]:
    """What an operator returns while a graph is traced is made by the decorated function."""

    def register(function: _Operator) -> _Operator:
        torch.library.register_fake(add_op_namespace_prefix(name), function)
        return function

    return register


def _register(schema: str, implementation: Callable[..., Any]) -> None:
    name, parenthesis, signature = schema.partition("(")
    qualified = add_op_namespace_prefix(name)
    torch.library.define(qualified, parenthesis + signature)
    torch.library.impl(qualified, "default", implementation)  # whatever the device


def _primitive(schema: str, *keywords: str) -> Callable[..., Any]:
    """Defines the operator of a primitive, implemented by the backend that is chosen, and shielded from autocast.

    Args:
        schema: that of the operator; its first argument is the operand ``x``, its last one ``str? backend``.
        keywords: the names of the arguments before that, which a backend takes by name.

    Returns:
        The implementation.
    """
    name, pairwise = schema.split("(")[0], _OPERANDS in schema

    def implementation(x: Tensor, *args: Any) -> Any:
        if torch.is_autocast_enabled(x.device.type):  # see `define`
            with torch.autocast(x.device.type, enabled=False):
                return implementation(x, *args)
        *given, requested = args
        spec, kind = None, ""
        if pairwise:
            y, u, v, row_ids, col_ids = given[:_TERMS]
            terms = NO_TERMS if u is v is row_ids is col_ids is None else PairTerms(u, v, row_ids, col_ids)
            spec = _spec(*given[_TERMS:_SPECIFIED])
            given = [y, terms, spec, *given[_SPECIFIED:]]
            kind = float32_setting() if x.is_cuda and spec.precision == "float32" else spec.precision
        found = backends.forced(None) if requested is None else (requested, "backend")
        problem = _problem(name, x.device, x.dtype, x.shape[-1], spec, kind)
        chosen = backends.chosen(*found, problem) or backends.provisional(problem)
        # A rank may have no rows, of which no kernel has to know.
        backend = chosen if x.shape[1] else backends.load("reference")
        positional = len(given) - len(keywords)
        named = dict(zip(keywords, given[positional:], strict=True))
        return getattr(backend, name)(x, *given[:positional], **named)

    _register(schema, implementation)
    return implementation


_prepare = _primitive("prepare(Tensor x, str? backend) -> (Tensor, Tensor)")


@fake("prepare")
def _(x: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(x.dtype)
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[:2], dtype=dtype)


_normalize_backward = _primitive(
    "normalize_backward(Tensor grad, Tensor unit, Tensor rstd, ScalarType dtype, str? backend) -> Tensor"
)


@fake("normalize_backward")
def _(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
    return unit.new_empty(unit.shape, dtype=dtype)


_row_lse = _primitive(
    f"row_lse({_OPERANDS}, bool need_cols, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    "need_cols",
)


@fake("row_lse")
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    rows, cols = x.shape[1], y.shape[1] if y is not None and args[-2] else 0
    return tuple(_new(x, length) for length in (rows, cols, rows, cols))


_pair_grad = _primitive(
    f"pair_grad({_OPERANDS}, Tensor row_lse, Tensor? col_lse, Tensor a, Tensor? b, "
    "bool need_x, bool need_y, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    *("need_x", "need_y"),
)


@fake("pair_grad")
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return _new_sides(x, y, *args[-3:-1])


_energy = _primitive(
    f"energy({_OPERANDS}, str potential, bool need_x, bool need_y, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    *("need_x", "need_y"),
)


@fake("energy")
def _(x: Tensor, y: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return _new(x), *_new_sides(x, y, *args[-3:-1])


def _new(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty((x.shape[0], *shape), dtype=accumulate_dtype(x.dtype))


def _new_sides(x: Tensor, y: Tensor | None, need_x: bool, need_y: bool) -> tuple[Tensor, ...]:
    """Gradient and weight sum of the row side and of the column side; without rows where not needed."""
    m = x.shape[1] if need_x else 0
    n = (x if y is None else y).shape[1] if need_y else 0
    return _new(x, m, x.shape[2]), _new(x, m), _new(x, n, x.shape[2]), _new(x, n)


prepare = operators.prepare.default
normalize_backward = operators.normalize_backward.default
row_lse = operators.row_lse.default
pair_grad = operators.pair_grad.default
energy = operators.energy.default
