"""The primitives as CUDA C++ kernels: wgmma and TMA on sm_90a, ``mma.sync`` on compute capability 8.0 and newer.

The kernels are in ``csrc/``; this package loads them (``library.py``), makes operands and terms (``operands.py``) and
adds partial results (``primitives.py``, ``whole.py``).
"""

import torch

from .. import Problem
from ..host.limits import beyond_kernels
from .library import objection, ops
from .normalize import normalize_backward as normalize_backward
from .normalize import prepare as prepare
from .primitives import pairwise
from .whole import LOSSES as LOSSES
from .whole import loss as loss
from .whole import loss_grad as loss_grad

# The committed result file of ``benchmarks/gpu_check.sh`` for a compute capability; none yet.
CHECKED: dict[tuple[int, int], str] = {}


def unsupported(problem: Problem) -> list[str]:
    """The extension is not built, no GPU of compute capability 8.0 or more, another dtype than the three."""
    reasons = beyond_kernels(problem)
    if problem.device.type == "cpu" and objection("cpu") is not None:
        reasons += ["needs a GPU; on a CPU only its emulator runs it, for tests", *_extension_objections()]
    elif problem.device.type == "cuda" and objection("cuda") is not None:
        reasons += _extension_objections()
    elif problem.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(problem.device)
        if major < 8:
            reasons.append(f"needs compute capability 8.0 or more, {problem.device} has {major}.{minor}")
        elif not ops(problem.device).runs_on(10 * major + minor):
            reasons.append(f"was not built for compute capability {major}.{minor} (TORCH_CUDA_ARCH_LIST)")
    return reasons


def _extension_objections() -> list[str]:
    """Whether the CUDA extension is there, on whatever machine: how to build it is said before a GPU is."""
    reason = objection("cuda")
    return [] if reason is None else [f"the extension {reason}"]


def unverified(problem: Problem) -> list[str]:
    """Not chosen unless named: the emulator."""
    if problem.device.type == "cuda":
        return []
    return ["needs a GPU; the emulator is for tests: force it by name", *_extension_objections()]


def evidence(device: torch.device) -> str:
    """The result file of the GPU check on this compute capability, if one is committed."""
    return CHECKED.get(torch.cuda.get_device_capability(device), "")


row_lse, pair_grad, energy = pairwise.row_lse, pairwise.pair_grad, pairwise.energy
