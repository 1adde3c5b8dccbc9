"""The primitives as CUDA C++ kernels: wgmma and TMA on sm_90a, ``mma.sync`` on compute capability 8.0 and newer.

The kernels are in ``csrc/``; this package loads them (``library.py``), makes operands and terms (``operands.py``) and
adds partial results (``primitives.py``, ``rows.py``, ``step.py``).
"""

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms
from .. import Problem
from ..common.partials import Side
from . import primitives
from .library import objection
from .operands import Operands, as_operands
from .primitives import Factors
from .rows import finish, prepare
from .step import align_uniform, align_uniform_grad

__all__ = [
    "align_uniform",
    "align_uniform_grad",
    "energy",
    "finish",
    "pair_grad",
    "prepare",
    "row_lse",
    "unsupported",
    "unverified",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_DIM = 16384

# The committed result file of ``benchmarks/gpu_check.sh`` for a compute capability; none yet.
CHECKED: dict[tuple[int, int], str] = {}


def unsupported(problem: Problem) -> list[str]:
    """The extension is not built, no GPU of compute capability 8.0 or more, another dtype than the three."""
    reasons = []
    if problem.dtype not in _DTYPES:
        reasons.append(f"dtype {problem.dtype}: the tensor cores' sums are float32; the reference backend serves it")
    if problem.dim > _MAX_DIM:
        reasons.append(f"D = {problem.dim} is more than {_MAX_DIM}")
    if problem.device.type not in ("cpu", "cuda"):
        reasons.append(f"needs a CUDA device, got {problem.device}")
    elif problem.device.type == "cpu" and objection("cpu") is not None:
        reasons += ["needs a GPU; on a CPU only its emulator runs it, for tests", *_extension_objections()]
    elif problem.device.type == "cuda" and objection("cuda") is not None:
        reasons += _extension_objections()
    elif problem.device.type == "cuda" and torch.cuda.get_device_capability(problem.device) < (8, 0):
        capability = "{}.{}".format(*torch.cuda.get_device_capability(problem.device))
        reasons.append(f"needs compute capability 8.0 or more, {problem.device} has {capability}")
    return reasons


def _extension_objections() -> list[str]:
    """Whether the CUDA extension is there, on whatever machine: how to build it is said before a GPU is."""
    reason = objection("cuda")
    return [] if reason is None else [f"the extension {reason}"]


def unverified(problem: Problem) -> list[str]:
    """Not chosen unless named: the emulator, and architectures on which the GPU check has not passed."""
    if problem.device.type != "cuda":
        return ["needs a GPU; the emulator is for tests: force it by name", *_extension_objections()]
    capability = torch.cuda.get_device_capability(problem.device)
    if capability not in CHECKED:
        return ["not yet verified on compute capability {}.{}: force it by name".format(*capability)]
    return []


def row_lse(x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, need_cols: bool) -> tuple[Tensor, Tensor]:
    """Row and column log-sum-exp; plain sums in the bounded regime."""
    o = as_operands(x, y, terms, spec)
    mode = "exp" if _plain(o) else "running"
    row, col = primitives.pair_sums(o, mode, need_cols=need_cols, total=False)
    return (row.log_(), col.log_()) if mode == "exp" else (row, col)


def pair_grad(
    x: Tensor,
    y: Tensor | None,
    terms: PairTerms,
    spec: PairSpec,
    row_lse: Tensor,
    col_lse: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted sums of rows and columns; each side is a pass of its own over the pairs while D <= 256."""
    if y is None:
        col_lse, b = row_lse, a
    if not (need_x or need_y):
        return *_nothing(x), *_nothing(x)
    o = as_operands(x, y, terms, spec, weights="bounded")
    mode = "bounded" if _plain(o) else "running"
    factors = Factors(*(None if t is None else t.float() for t in (row_lse, a, col_lse, b)))
    sides = primitives.contract(o, mode, factors, need_x=need_x, need_y=need_y)
    return _results(x, sides)


def energy(
    x: Tensor,
    y: Tensor | None,
    terms: PairTerms,
    spec: PairSpec,
    potential: str,
    *,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Total and weighted sums; the total alone costs the upper triangle and no second product."""
    if not (need_x or need_y):
        row, _ = primitives.pair_sums(as_operands(x, y, terms, spec), potential, need_cols=False, total=True)
        return row.sum(1), *_nothing(x), *_nothing(x)
    o = as_operands(x, y, terms, spec, weights=potential)
    sides = primitives.contract(o, potential, Factors(), need_x=need_x, need_y=need_y)
    side = sides[0] or sides[1]
    assert side is not None
    return side.total(), *_results(x, sides)


def _plain(o: Operands) -> bool:
    """Whether exponentials are taken of the logits as they are.

    Relative to a maximum or a log-sum-exp an exponent is small where it counts, and its rounding too. Operands of half
    precision do not see the difference, float32 does.
    """
    return o.spec.bounded and o.kind != "float32"


def _results(x: Tensor, sides: tuple[Side | None, Side | None]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_x, of_y = (_nothing(x) if side is None else _unpadded(*side.added(), x.shape[2]) for side in sides)
    return *of_x, *of_y


def _unpadded(grad: Tensor, total: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    return grad if grad.shape[2] == dim else grad[..., :dim].contiguous(), total


def _nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the sums of a side that nobody needs."""
    return x.new_empty((x.shape[0], 0, x.shape[2]), dtype=torch.float32), x.new_empty(
        x.shape[0], 0, dtype=torch.float32
    )
