"""In which dtype the operands are multiplied, and what float16 can hold."""

import torch
from torch import Tensor

# Weights in float16 are kept below this, and those of "exp" above exp(-2 scale) of it, which must be a normal number.
FLOAT16_RANGE = 8192.0
_FLOAT16_SCALE = 9.0

_FLOAT32_SETTING = {"highest": "float32", "high": "tf32", "medium": "bfloat16"}
_BACKEND_SETTING = {"none": "float32", "ieee": "float32", "tf32": "tf32", "bf16": "bfloat16"}


def product_of(
    precision: str, weights: str | None, scale: float, *, log_weights: bool = False
) -> tuple[torch.dtype, str, str]:
    """The dtype of the operands, how a product multiplies them, and the kind of configuration.

    Args:
        precision: `PairSpec.precision`; for ``"float32"`` the setting of `torch.set_float32_matmul_precision` counts.
        weights: the ``MODE`` of the weights where a second product follows. Those that float16 cannot hold take tf32,
            which has as many digits.
        scale: `PairSpec.scale`.
        log_weights: whether there are any, which may carry an exponential anywhere.

    Returns:
        The dtype; ``tf32`` or ``tf32x3`` for float32 operands; ``bfloat16``, ``float16``, ``tf32`` or ``float32``.
    """
    if precision == "float32":
        precision = float32_setting()
    beyond = weights == "softplus" or (weights == "exp" and (log_weights or scale > _FLOAT16_SCALE))
    if precision == "float16" and beyond:
        precision = "tf32"
    if precision in ("bfloat16", "float16"):
        return getattr(torch, precision), "tf32", precision
    return torch.float32, "tf32" if precision == "tf32" else "tf32x3", precision


def float32_setting() -> str:
    """How PyTorch is told to multiply float32 operands: ``float32``, ``tf32`` or ``bfloat16``."""
    try:
        return _FLOAT32_SETTING[torch.get_float32_matmul_precision()]
    except RuntimeError:  # it was set in the other way that PyTorch has
        return _BACKEND_SETTING[torch.backends.cuda.matmul.fp32_precision]


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a dtype and with unit stride along D."""
    x = x if x.dtype == dtype else x.to(dtype)
    return x if x.stride(2) == 1 else x.contiguous()


def scaled_to_float16(a: Tensor | None, b: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The factors of `pair_grad`, one of them at least, so that float16 weights fill its range; and the scale on them.

    float16 has little range: one scale on all weights, which `Side.divided` takes off the sums again. No exponential of
    these weights is above 1.
    """
    largest = torch.stack([factor.abs().amax() for factor in (a, b) if factor is not None]).sum()
    scale = FLOAT16_RANGE / largest.clamp_min(1e-30)
    return None if a is None else a * scale, None if b is None else b * scale, scale
