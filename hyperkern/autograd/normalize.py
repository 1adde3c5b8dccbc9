"""Normalisation."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .. import backends, ops
from ..backends import PRIORITY, Problem, candidates, forced
from ..backends.host.precision import float32_setting
from ..spec import accumulate_dtype, gradient_limit, longer_than_eps, product_precision
from .functions import applied, with_variants

_problem = functools.lru_cache(maxsize=256)(Problem)

# Elements of a view that is copied for one call less, and its gradient likewise: some megabytes for a moment.
_SMALL = 1 << 18


def prepare(x: Tensor, *, normalize: bool, backend: str | None = None) -> Tensor:
    """The rows that the primitives see.

    Args:
        x: ``(N, D)`` or ``(B, N, D)``, any floating dtype and strides.
        normalize: whether to scale each row to unit length; a zero row stays zero.
        backend: name of a backend to force.

    Returns:
        Unit rows, or ``x`` itself, in float64 for float64 and in float32 otherwise. A row with an infinite element
        becomes nan. The gradient comes back in the dtype of ``x``.

    Raises:
        ValueError: an unknown or unusable ``backend``.
    """
    if backend not in PRIORITY:
        forced(backend)  # also where there is nothing to compute: a wrong name must not go unseen
    if not normalize:
        rows = x.to(accumulate_dtype(x.dtype))
        # Turns inf into nan: an infinite logit of the sign that counts for nothing would hide it in a finite loss.
        return rows + 0 * rows
    unit: Tensor = applied(_Normalize, x if x.dim() == 3 else x.unsqueeze(0), backend)[0]
    return unit.view(x.shape)


def prepare_views(*views: Tensor | None, normalize: bool, backend: str | None = None) -> list[Tensor]:
    """The same of views of one shape, those that there are: small ones in one call, if all want a gradient or none."""
    given = [view for view in views if view is not None]
    first = given[0]
    together = normalize and first.numel() <= _SMALL
    for view in given:
        if not together or view.requires_grad != first.requires_grad:
            return [prepare(view, normalize=normalize, backend=backend) for view in given]
    unit = prepare(torch.cat(given), normalize=normalize, backend=backend)
    return list(unit.split_with_sizes([first.shape[0]] * len(given)))


def settle_backend(requested: str | None, x: Tensor) -> None:
    """Has the kernels that a loss needs checked, where that is due: before other ranks would wait for this one.

    Raises:
        RuntimeError: they may not be used, and ``HYPERKERN_CHECK=require`` makes an error of that.
    """
    kind = product_precision(x)
    if x.is_cuda and kind == "float32":
        kind = float32_setting()
    # What `select` does, but that it is not made before it is needed while it cannot be settled.
    backends.chosen(
        *forced(requested), _problem("row_lse", x.device, accumulate_dtype(x.dtype), x.shape[-1], None, kind)
    )


def check_backend(requested: str | None, x: Tensor) -> tuple[str | None, str | None]:
    """Asks for the backend of every primitive, before there is anything to compute.

    Returns:
        The name that is forced, by argument or by the environment, and the one to ask for from here on.

    Raises:
        ValueError: an unknown or unusable backend.
    """
    name, _ = forced(requested)
    return name, _check_primitives(requested, name, x.device, x.dtype, x.shape[-1])


@functools.lru_cache(maxsize=256)
def _check_primitives(
    requested: str | None, _forced: str | None, device: torch.device, dtype: torch.dtype, dim: int
) -> str | None:
    """The same of one kind of features; a refusal is not kept."""
    first = []
    for primitive in ("prepare", "normalize_backward", "row_lse", "pair_grad", "energy"):
        of = dtype if primitive == "prepare" else accumulate_dtype(dtype)
        first.append(candidates(*forced(requested), Problem(primitive, device, of, dim))[0])
    # What is left to the last of them is left to it whatever the problem: by name, which nobody has to look up again.
    return "reference" if all([name == "reference" for name in first]) else requested


@with_variants
class _Normalize(Function):
    """``x -> (unit, rstd)``. Both are differentiable: the second order needs the derivative of ``rstd``."""

    @staticmethod
    def forward(x: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
        unit, rstd = ops.prepare(x, backend)
        return unit, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.backend = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_unit: Tensor | None, grad_rstd: Tensor | None) -> tuple[Tensor | None, None]:
        unit, rstd = ctx.saved_tensors
        dx = None
        if grad_unit is not None:
            dx = applied(_Finish, grad_unit, unit, rstd, ctx.dtype, ctx.backend)
        if grad_rstd is not None:
            # A row shorter than eps has the constant rstd = 1 / eps.
            slope = torch.where(longer_than_eps(rstd, ctx.dtype), -grad_rstd * rstd.square(), 0)
            through_norm = (slope.unsqueeze(-1) * unit).to(ctx.dtype)
            dx = through_norm if dx is None else dx + through_norm
        return dx, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], tangent: Tensor | None, _: None) -> tuple[Tensor | None, Tensor | None]:
        if tangent is None:
            return None, None
        unit, rstd = saved
        tangent = tangent.to(unit.dtype)
        radial = (tangent * unit).sum(-1)
        t_unit = rstd.unsqueeze(-1) * (tangent - radial.unsqueeze(-1) * unit)
        return t_unit, torch.where(longer_than_eps(rstd, ctx.dtype), -radial * rstd.square(), 0)


@with_variants
class _Finish(Function):
    """``rstd (g - <g, unit> unit)`` within `gradient_limit`, the derivative of the unit rows."""

    @staticmethod
    def forward(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype, backend: str | None) -> Tensor:
        dx: Tensor = ops.normalize_backward(grad, unit, rstd, dtype, backend)
        return dx

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.dtype = inputs[3]

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        grad, unit, rstd = ctx.saved_tensors
        h, scale = h.to(unit.dtype), rstd.unsqueeze(-1)
        grad_radial = (grad * unit).sum(-1, keepdim=True)
        # What is saturated is constant.
        saturated = (scale * (grad - grad_radial * unit)).abs() > gradient_limit(rstd, ctx.dtype)
        h = h.masked_fill(saturated, 0)
        h_radial = (h * unit).sum(-1, keepdim=True)
        d_grad = scale * (h - h_radial * unit)
        d_unit = -scale * (h_radial * grad + grad_radial * h)
        d_rstd = (grad * h).sum(-1) - (grad_radial * h_radial).squeeze(-1)
        return d_grad, d_unit, d_rstd, None, None

    @staticmethod
    def tangents(ctx: Any, saved: list[Any], t_grad: Tensor, t_unit: Tensor, t_rstd: Tensor, *_: None) -> Tensor:
        grad, unit, rstd = saved
        radial = (grad * unit).sum(-1, keepdim=True)
        t_radial = (t_grad * unit + grad * t_unit).sum(-1, keepdim=True)
        through_rows = rstd.unsqueeze(-1) * (t_grad - t_radial * unit - radial * t_unit)
        tangent: Tensor = through_rows + t_rstd.unsqueeze(-1) * (grad - radial * unit)
        return tangent.to(ctx.dtype)
