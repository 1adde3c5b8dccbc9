"""Normalisation and the gradient behind it, see ``csrc/rows.cuh``. Each reads and writes every element once."""

import torch
from torch import Tensor

from ...spec import norm_eps
from .library import ops


def prepare(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows ``(B, M, D)`` and ``rstd (B, M)`` in float32."""
    unit = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    rstd = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    ops(x.device).normalize_rows(x, norm_eps(x.dtype), unit, rstd)
    return unit, rstd


def normalize_backward(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """``rstd * (grad - <grad, unit> unit)`` in ``dtype``, within `hyperkern.spec.gradient_limit`."""
    dx = torch.empty(unit.shape, dtype=dtype, device=unit.device)
    ops(unit.device).normalize_rows_backward(grad, unit, rstd.contiguous(), norm_eps(dtype), dx)
    return dx
