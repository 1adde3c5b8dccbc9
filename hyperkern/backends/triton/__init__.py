"""The primitives as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

``tile.py`` holds the one tile of similarities that every pairwise kernel is built of: `sums_kernel` (log-sum-exps,
values), `two_way_sums_kernel` (sums of rows and columns at once), `contract_kernel` (weighted sums of rows in one pass,
D <= 256) and `panel_kernel` (weights for the library's product, any D). ``normalize.py`` holds the row-wise kernels,
``configs/`` the block sizes.
"""

import torch

from .. import Problem
from ..host.limits import beyond_kernels
from . import config
from .normalize import normalize_backward as normalize_backward
from .normalize import prepare as prepare
from .primitives import pairwise
from .tile import INTERPRETED
from .whole import LOSSES as LOSSES
from .whole import loss as loss
from .whole import loss_grad as loss_grad


def unsupported(problem: Problem) -> list[str]:
    """No GPU of compute capability 8.0 or more, another dtype than the three, a longer row."""
    reasons = beyond_kernels(problem)
    if problem.device.type == "cpu" and not INTERPRETED:
        reasons.append("needs a GPU; on a CPU only Triton's interpreter runs it (TRITON_INTERPRET=1), for tests")
    elif problem.device.type == "cuda":
        if torch.version.hip is not None:
            reasons.append("needs an NVIDIA GPU, this PyTorch is built for AMD")
        elif torch.cuda.get_device_capability(problem.device) < (8, 0):
            capability = "{}.{}".format(*torch.cuda.get_device_capability(problem.device))
            reasons.append(f"needs compute capability 8.0 or more, {problem.device} has {capability}")
    return reasons


def unverified(problem: Problem) -> list[str]:
    """Not chosen unless named: the interpreter."""
    return [] if problem.device.type == "cuda" else ["the interpreter is for tests: force it by name"]


def evidence(device: torch.device) -> str:
    """The result file of the GPU check on this architecture, if one is committed."""
    return config.of_device(device.index).checked


row_lse, pair_grad, energy = pairwise.row_lse, pairwise.pair_grad, pairwise.energy
