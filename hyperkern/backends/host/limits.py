"""What the kernels of no backend serve."""

import torch

from .. import Problem

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_DIM = 16384  # a row is normalised at once, in registers


def beyond_kernels(problem: Problem) -> list[str]:
    """The reasons against kernels of whatever language: dtype, D, another device than a CPU (for tests) or a GPU."""
    reasons = []
    if problem.dtype not in _DTYPES:
        reasons.append(f"dtype {problem.dtype}: the tensor cores' sums are float32; the reference backend serves it")
    if problem.dim > _MAX_DIM:
        reasons.append(f"D = {problem.dim} is more than {_MAX_DIM}")
    if problem.device.type not in ("cpu", "cuda"):
        reasons.append(f"needs a CUDA device, got {problem.device}")
    return reasons
