"""The primitives as Triton kernels, for NVIDIA GPUs of compute capability 8.0 and newer.

``tile.py`` holds the one tile of similarities that every pairwise kernel is built of: `sums_kernel` (log-sum-exps,
values), `contract_kernel` (weighted sums of rows in one pass, D <= 256) and `panel_kernel` (weights for the
library's product, any D). ``rows.py`` holds the row-wise kernels, ``configs/`` the block sizes.
"""

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms
from .. import Problem
from ..common.partials import Side
from . import config, primitives
from .operands import Operands, as_operands
from .primitives import Factors
from .rows import finish, prepare
from .step import align_uniform, align_uniform_grad
from .tile import INTERPRETED

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
_MAX_DIM = 16384  # a row is normalised by one program, in registers


def unsupported(problem: Problem) -> list[str]:
    """No GPU of compute capability 8.0 or more, another dtype than the three, a longer row."""
    reasons = []
    if problem.dtype not in _DTYPES:
        reasons.append(f"dtype {problem.dtype}: the tensor cores' sums are float32; the reference backend serves it")
    if problem.dim > _MAX_DIM:
        reasons.append(f"D = {problem.dim} is more than {_MAX_DIM}")
    if problem.device.type == "cpu" and not INTERPRETED:
        reasons.append("needs a GPU; on a CPU only Triton's interpreter runs it (TRITON_INTERPRET=1), for tests")
    elif problem.device.type not in ("cpu", "cuda"):
        reasons.append(f"needs a CUDA device, got {problem.device}")
    elif problem.device.type == "cuda":
        if torch.version.hip is not None:
            reasons.append("needs an NVIDIA GPU, this PyTorch is built for AMD")
        elif torch.cuda.get_device_capability(problem.device) < (8, 0):
            capability = "{}.{}".format(*torch.cuda.get_device_capability(problem.device))
            reasons.append(f"needs compute capability 8.0 or more, {problem.device} has {capability}")
    return reasons


def unverified(problem: Problem) -> list[str]:
    """Not chosen unless named: the interpreter, and architectures on which the GPU check has not passed."""
    if problem.device.type != "cuda":
        return ["the interpreter is for tests: force it by name"]
    architecture = config.of_device(problem.device.index)
    if not architecture.checked:
        return [f"not yet verified on {architecture.name}: force it by name"]
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
    factors = Factors(*(None if t is None else t.float().contiguous() for t in (row_lse, a, col_lse, b)))
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
    of_x, of_y = (_nothing(x) if side is None else side.added() for side in sides)
    return *of_x, *of_y


def _nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the sums of a side that nobody needs."""
    return x.new_empty((x.shape[0], 0, x.shape[2]), dtype=torch.float32), x.new_empty(
        x.shape[0], 0, dtype=torch.float32
    )
