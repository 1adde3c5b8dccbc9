"""The pairwise primitives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import ops
from ..second_order import (
    energy_grad_tangents,
    energy_second_order,
    energy_tangent,
    lse_grad_tangents,
    lse_second_order,
    lse_tangents,
)
from ..spec import NO_TERMS, POTENTIALS, PairSpec, PairTerms
from .functions import applied, with_variants


def row_lse(
    x: Tensor,
    y: Tensor | None = None,
    *,
    spec: PairSpec,
    terms: PairTerms | None = None,
    need_cols: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``log sum_j exp(l_ij)`` and, on request, ``log sum_i exp(l_ij)``, see `hyperkern.spec` for the logit.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` float32 or float64 rows.
        y: columns with the same B and D; ``None`` means ``y = x`` with the log-weights ``u`` on both sides.
        spec: the problem.
        terms: log-weights and ids, with the leading dimensions of ``x`` and ``y``.
        need_cols: whether the column side is wanted; with ``y = None`` it equals the row side.
        backend: name of a backend to force.

    Returns:
        The row side, ``(N,)`` or ``(B, N)``, and the column side likewise (zero-sized if not wanted). A row
        without any pair is ``-inf`` and has gradient 0.
    """
    operands = _operands(x, y, terms)
    row, col, _, _ = applied(_RowLSE, *operands, spec, need_cols and y is not None, backend)
    if need_cols and y is None:
        col = row
    return (row, col) if x.dim() == 3 else (row.squeeze(0), col.squeeze(0))


def energy(
    x: Tensor,
    y: Tensor | None = None,
    *,
    spec: PairSpec,
    potential: str = "exp",
    terms: PairTerms | None = None,
    backend: str | None = None,
) -> Tensor:
    """``sum_ij phi(l_ij)`` over all ordered pairs, its gradient computed in the same pass.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` float32 or float64 rows.
        y: columns with the same B and D; ``None`` means ``y = x`` with the log-weights ``u`` on both sides.
        spec: the problem; the potential ``"exp"`` needs ``spec.bounded``.
        potential: ``"exp"`` or ``"softplus"``.
        terms: log-weights and ids, with the leading dimensions of ``x`` and ``y``.
        backend: name of a backend to force.

    Returns:
        A scalar, or ``(B,)``.

    Raises:
        ValueError: an unknown ``potential``, or ``"exp"`` outside the bounded regime.
    """
    if potential not in POTENTIALS or (potential == "exp" and not spec.bounded):
        raise ValueError(f"potential must be 'softplus', or 'exp' with spec.bounded, got {potential!r} with {spec}")
    operands = _operands(x, y, terms)
    total: Tensor = applied(_Energy, *operands, spec, potential, *sides_requiring_grad(operands), backend)[0]
    return total if x.dim() == 3 else total.squeeze(0)


# The pairwise functions take the operands (x, y, u, v, row_ids, col_ids) and a PairSpec first. Their derivatives are
# the operand gradients (dx, du, dy, dv), without rows where not needed. Parameters are spelt out: the compiler of
# torch < 2.15 counts them to tell whether a forward takes a context.


@with_variants
class _RowLSE(Function):
    """``operands -> row_lse, col_lse``, and the roundings of both, see `hyperkern.backends.LogSumExp`."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        spec: PairSpec,
        need_cols: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = ops.row_lse(x, y, u, v, row_ids, col_ids, *spec, need_cols, backend)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.spec, ctx.need_cols, ctx.backend = inputs
        ctx.save_for_backward(*operands, *output)
        ctx.mark_non_differentiable(*output[2 if ctx.need_cols else 1 :])

    @staticmethod
    def backward(ctx: Any, grad_row: Tensor, grad_col: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        *operands, row, col, row_rounding, col_rounding = ctx.saved_tensors
        col_side = (col, grad_col * col_rounding) if ctx.need_cols else (None, None)
        weights = row, col_side[0], grad_row * row_rounding, col_side[1]
        grads = applied(_PairGrad, *operands, ctx.spec, *weights, *_needed_sides(ctx.needs_input_grad), ctx.backend)
        return *operand_grads(grads, ctx.needs_input_grad), None, None, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *operands, row, col, row_rounding, col_rounding = saved
        of_row, of_col = lse_tangents(operands, ctx.spec, row, col if ctx.need_cols else None, tangents[:4])
        return of_row * row_rounding, None if of_col is None else of_col * col_rounding, None, None


@with_variants
class _PairGrad(Function):
    """``operands and the weights of the pairs -> operand gradients``."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        spec: PairSpec,
        row_lse: Tensor,
        col_lse: Tensor | None,
        a: Tensor,
        b: Tensor | None,
        need_x: bool,
        need_y: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        grad_x, sum_x, grad_y, sum_y = ops.pair_grad(
            x, y, u, v, row_ids, col_ids, *spec, row_lse, col_lse, a, b, need_x, need_y, backend
        )
        return grad_x.mul_(spec.scale), sum_x, grad_y.mul_(spec.scale), sum_y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.spec, row_lse, col_lse, a, b, ctx.need_x, ctx.need_y, _ = inputs
        ctx.save_for_backward(*operands, row_lse, col_lse, a, b)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        *operands, row_lse, col_lse, a, b = ctx.saved_tensors
        operand_grads, weight_grads = lse_second_order(operands, ctx.spec, row_lse, col_lse, a, b, cotangents)
        return *operand_grads, None, None, None, *weight_grads, None, None, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], *tangents: Any) -> tuple[Tensor, ...]:
        *operands, row_lse, col_lse, a, b = saved
        weights, needs = (row_lse, col_lse, a, b), {"need_x": ctx.need_x, "need_y": ctx.need_y}
        return lse_grad_tangents(operands, ctx.spec, weights, tangents[:4], tangents[7:11], **needs)


@with_variants
class _Energy(Function):
    """``operands -> total`` and the contractions of which `_EnergyGrad` makes the operand gradients."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        spec: PairSpec,
        potential: str,
        need_x: bool,
        need_y: bool,
        backend: str | None,
    ) -> tuple[Tensor, ...]:
        operands = x, y, u, v, row_ids, col_ids
        found: tuple[Tensor, ...] = ops.energy(*operands, *spec, potential, need_x, need_y, backend)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *operands, ctx.spec, ctx.potential, _, _, ctx.backend = inputs
        ctx.save_for_backward(*operands, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 11
        *operands, grad_x, sum_x, grad_y, sum_y = ctx.saved_tensors
        need_x, need_y = _needed_sides(ctx.needs_input_grad)
        if (need_x and not sum_x.shape[1]) or (need_y and not sum_y.shape[1]):
            # Under nested function transforms a tensor can hide that it requires grad from `energy`.
            problem = *operands, ctx.spec, ctx.potential, need_x, need_y, ctx.backend
            _, grad_x, sum_x, grad_y, sum_y = applied(_Energy, *problem)
        contractions = grad_x, sum_x, grad_y, sum_y
        if forward_ad._current_level >= 0:
            # Reverse mode over forward mode can pass PyTorch's zero without memory, which takes no tangent.
            grad_total = grad_total.clone()
        grads = applied(_EnergyGrad, *operands, *contractions, ctx.spec, ctx.potential, grad_total)
        return *operand_grads(grads, ctx.needs_input_grad), None, None, None, None, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], *tangents: Any) -> tuple[Tensor | None, ...]:
        operands = saved[:6]
        return energy_tangent(operands, ctx.spec, ctx.potential, tangents[:4]), None, None, None, None


@with_variants
class _EnergyGrad(Function):
    """``operands, what _Energy gave beside the total, grad_total -> operand gradients``."""

    @staticmethod
    def forward(
        x: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        v: Tensor | None,
        row_ids: Tensor | None,
        col_ids: Tensor | None,
        grad_x: Tensor,
        sum_x: Tensor,
        grad_y: Tensor,
        sum_y: Tensor,
        spec: PairSpec,
        potential: str,
        grad_total: Tensor,
    ) -> tuple[Tensor, ...]:
        per_row = _per_pair(grad_total, y).unsqueeze(1)
        per_element = spec.scale * per_row.unsqueeze(2)
        return grad_x * per_element, sum_x * per_row, grad_y * per_element, sum_y * per_row

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.potential, grad_total = inputs[-3:]
        ctx.save_for_backward(*inputs[:10], grad_total)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        *operands, _, _, _, _, grad_total = ctx.saved_tensors
        grads, along = energy_second_order(operands, ctx.spec, ctx.potential, cotangents)
        per_row = _per_pair(grad_total, operands[1]).unsqueeze(1)
        scaled = (None if g is None else g * (per_row.unsqueeze(2) if g.dim() == 3 else per_row) for g in grads)
        # The contractions are constants here: their derivative was taken through the operands.
        return *scaled, *(None,) * 8, _per_pair(along, operands[1])

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], *tangents: Any) -> tuple[Tensor, ...]:
        *operands_and_grads, grad_total = saved
        operands, contractions = operands_and_grads[:6], operands_and_grads[6:]
        needs = {"need_x": contractions[0].shape[1] > 0, "need_y": contractions[2].shape[1] > 0}
        changes = energy_grad_tangents(operands, ctx.spec, ctx.potential, tangents[:4], **needs)
        # By the function itself, linear in the last argument, which knows the derivative of the contractions.
        given = *operands, *contractions, ctx.spec, ctx.potential, tangents[-1]
        through_total = applied(_EnergyGrad, *given)
        per_row = _per_pair(grad_total, operands[1]).unsqueeze(1)
        return tuple(
            part + change * (per_row.unsqueeze(2) if change.dim() == 3 else per_row)
            for part, change in zip(through_total, changes, strict=True)
        )


def _per_pair(value: Tensor, y: Tensor | None) -> Tensor:
    """With ``y = x`` each row is in the sum twice, as a row and as a column."""
    return 2 * value if y is None else value


def _needed_sides(needs: Sequence[bool]) -> tuple[bool, bool]:
    """From needs of ``(x, y, u, v, ...)``: whether the row side and the column side need a gradient."""
    return needs[0] or needs[2], needs[1] or needs[3]


def sides_requiring_grad(operands: Sequence[Tensor | None]) -> tuple[bool, bool]:
    """Whether a gradient of the row side and of the column side can be asked for later."""
    return _needed_sides([torch.is_grad_enabled() and t is not None and t.requires_grad for t in operands[:4]])


def operand_grads(grads: Sequence[Tensor], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """``(dx, du, dy, dv)`` in the order of the six operands, ``x, y, u, v, row_ids, col_ids``."""
    dx, du, dy, dv = grads
    of_rows = dx if needs[0] else None, dy if needs[1] else None
    return *of_rows, du if needs[2] else None, dv if needs[3] else None, None, None


def _operands(x: Tensor, y: Tensor | None, terms: PairTerms | None) -> list[Tensor | None]:
    """``x, y, u, v, row_ids, col_ids``, with the leading batch dimension."""
    found = [x, y, *(terms or NO_TERMS)]
    for i, t in enumerate(found):
        if x.dim() == 2 and t is not None:
            found[i] = t.unsqueeze(0)
    return found
