"""The row-wise kernels: normalisation and the gradient behind it. Each reads and writes every element once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...spec import norm_eps
from .config import padded
from .launch import Launch, launch
from .operands import strides
from .tile import INF, narrow

# Parts that a kernel adds at a time: one number for batches of any size, each would be compiled anew.
COMBINED = 2048


@triton.jit
def unit_rows(b_x, eps):
    """Rows of length 1 and ``1 / max(norm, eps)``; a zero row stays zero, one with inf or nan becomes nan.

    Divided by its largest element first, no row over- or underflows in its square.
    """
    b_largest = tl.max(tl.abs(b_x), 1)
    b_unit = tl.math.div_rn(b_x, tl.where(b_largest == 0, 1.0, b_largest)[:, None] + tl.zeros_like(b_x))
    b_norm = tl.math.sqrt_rn(tl.sum(b_unit * b_unit, 1))
    b_unit = tl.math.div_rn(b_unit, tl.where(b_norm == 0, 1.0, b_norm)[:, None] + tl.zeros_like(b_x))
    b_length = b_norm * b_largest
    b_length = tl.where(b_length < eps, eps, b_length)
    return b_unit, tl.math.div_rn(tl.full(b_length.shape, 1.0, tl.float32), b_length)


@triton.jit
def row_offsets(o_rows, m, stride_b, stride_m):
    """The 64-bit offsets of rows that are counted through the batch."""
    return (o_rows // m).to(tl.int64) * stride_b + (o_rows % m).to(tl.int64) * stride_m


@triton.jit
def load_unit(p_x, o_rows, o_d, mask, m, stride_b, stride_m, stride_d, eps):
    """Rows that are counted through the batch, normalised as by `unit_rows`."""
    p_block = p_x + row_offsets(o_rows, m, stride_b, stride_m)[:, None] + o_d[None, :].to(tl.int64) * stride_d
    return unit_rows(tl.load(p_block, mask=mask, other=0.0).to(tl.float32), eps)


@triton.jit
def sum_range(p_values, count, BLOCK: tl.constexpr):
    """The sum of an array in a fixed order; as the memory has it, where another program has just written it."""
    b_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        b_sum += tl.load(p_values + o, mask=o < count, other=0.0, cache_modifier=".cg")
    return tl.sum(b_sum, 0)


@triton.jit
def is_last(p_count, programs):
    """Whether this is the last of so many programs to come here, after which what all of them have stored can be read.

    The counter is at 0 before the first and behind the last.
    """
    tl.debug_barrier()  # the whole program has stored what it counts for
    last = tl.atomic_add(p_count, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(p_count, 0)
    return last


@triton.jit(do_not_specialize=["rows", "m"])
def prepare_kernel(
    p_x, p_unit, p_rstd,
    rows, m, stride_b, stride_m, stride_d, stride_unit, eps,
    DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """``x -> unit rows, rstd``, any strides."""
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_d = tl.arange(0, BLOCK_D)
    mask = (o_rows < rows)[:, None] & (o_d < DIM)[None, :]
    p_block = p_x + row_offsets(o_rows, m, stride_b, stride_m)[:, None] + o_d[None, :].to(tl.int64) * stride_d
    b_x = tl.load(p_block, mask=mask, other=0.0).to(tl.float32)
    b_unit, b_rstd = unit_rows(b_x, eps)
    tl.store(p_unit + o_rows[:, None] * stride_unit + o_d[None, :], b_unit, mask=mask)
    tl.store(p_rstd + o_rows, b_rstd, mask=o_rows < rows)


@triton.jit
def project(b_grad, b_unit, b_rstd, eps, DTYPE: tl.constexpr):
    """``rstd (g - <g, unit> unit)`` in the dtype of the input, within `hyperkern.spec.gradient_limit`."""
    WIDE: tl.constexpr = 3.3895313892515355e38 if tl.bfloat16 == DTYPE else 3.4028234663852886e38
    LARGEST: tl.constexpr = 65504.0 if tl.float16 == DTYPE else WIDE
    b_radial = tl.sum(b_grad * b_unit, 1)
    b_dx = (b_grad - b_radial[:, None] * b_unit) * b_rstd[:, None]
    b_limit = tl.where(b_rstd * eps < 1.0, INF, LARGEST)[:, None]
    return narrow(tl.clamp(b_dx, -b_limit, b_limit, propagate_nan=tl.PropagateNan.ALL), DTYPE)


@triton.jit(do_not_specialize=["rows"])
def normalize_backward_kernel(
    p_grad, p_unit, p_rstd, p_dx,
    rows, stride_grad, stride_unit, stride_dx, eps,
    DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The tangent projection, the rescale and the cast to the dtype of the input."""
    o_rows = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_d = tl.arange(0, BLOCK_D)
    mask = (o_rows < rows)[:, None] & (o_d < DIM)[None, :]
    b_grad = tl.load(p_grad + o_rows[:, None] * stride_grad + o_d[None, :], mask=mask, other=0.0)
    b_unit = tl.load(p_unit + o_rows[:, None] * stride_unit + o_d[None, :], mask=mask, other=0.0)
    b_rstd = tl.load(p_rstd + o_rows, mask=o_rows < rows, other=0.0)
    b_dx = project(b_grad, b_unit, b_rstd, eps, p_dx.dtype.element_ty)
    tl.store(p_dx + o_rows[:, None] * stride_dx + o_d[None, :], b_dx, mask=mask)


def row_block(dim: int) -> tuple[int, int]:
    """How many rows a program takes, and the power of two its rows are padded to."""
    block_d = padded(dim)
    return max(1, min(16, 4096 // block_d)), block_d


def prepare(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows ``(B, M, D)`` and ``rstd (B, M)`` in float32."""
    batch, m, dim = x.shape
    block_rows, block_d = row_block(dim)
    unit = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    rstd = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    programs, numbers = -(-batch * m // block_rows), (batch * m, m, *strides(x), dim, norm_eps(x.dtype))
    shape = {"DIM": dim, "BLOCK_ROWS": block_rows, "BLOCK_D": block_d}
    launch(Launch(prepare_kernel, programs, numbers, None, **shape), x.device, x, unit, rstd)
    return unit, rstd


def normalize_backward(grad: Tensor, unit: Tensor, rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """``rstd * (grad - <grad, unit> unit)`` in ``dtype``, within `hyperkern.spec.gradient_limit`."""
    dx = torch.empty(unit.shape, dtype=dtype, device=unit.device)
    launch_normalize_backward(grad.contiguous(), unit.contiguous(), rstd.contiguous(), dx)
    return dx


def launch_normalize_backward(grad: Tensor, unit: Tensor, rstd: Tensor, dx: Tensor) -> None:
    """Fills ``dx``. All have unit stride along D and one stride through batch and rows."""
    batch, m, dim = unit.shape
    block_rows, block_d = row_block(dim)
    programs, shape = -(-batch * m // block_rows), {"DIM": dim, "BLOCK_ROWS": block_rows, "BLOCK_D": block_d}
    numbers = (batch * m, grad.stride(1), unit.stride(1), dx.stride(1), norm_eps(dx.dtype))
    launch(Launch(normalize_backward_kernel, programs, numbers, None, **shape), unit.device, grad, unit, rstd, dx)
