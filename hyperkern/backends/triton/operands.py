"""What the pairwise kernels are launched with: operands in the dtype of the product."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ...spec import PairSpec, PairTerms
from ..host import pairwise
from ..host.precision import FLOAT16_RANGE, product_of, rows
from . import config
from .config import Architecture, Config
from .tile import INTERPRETED

# Of these it is known that they specialise the kernels of ``specialised.py`` and give each group of warps its own rows.
SPECIALISING = bool(INTERPRETED.value) or triton.__version__.startswith(("3.6.", "3.7.", "3.8.", "3.9."))


def _interpreter(size: int) -> Architecture:
    """Tiles of one size; rows longer than 64 go by chunks and by panels."""
    chunk_d = 32 if size == 16 else 128
    sums = ((kernel, dim, chunk) for kernel in ("sums", "two_way") for dim, chunk in ((64, None), (None, chunk_d)))
    uses = (("contract", 64, None), *sums, ("panel", None, chunk_d))
    entries = (
        config.Entry(kernel, operand, dim, None, Config(size, size, chunk, 4, 1))
        for operand in ("bfloat16", "tf32", "float32")
        for kernel, dim, chunk in uses
    )
    return Architecture("interpreter", 1 << 30, 4, "", tuple(entries))


# The interpreter walks over tiles in Python: small ones with ragged ends where the problem is small, few otherwise.
# By the least number of pairs that they are for.
_INTERPRETER = {0: _interpreter(16), 32**2: _interpreter(32), 200**2: _interpreter(256)}


@dataclass(frozen=True)
class Operands(pairwise.Operands):
    """A pairwise problem as the kernels take it, with contiguous terms.

    Attributes:
        precision: how float32 operands are multiplied, ``tf32`` or ``tf32x3``.
        architecture: whose configurations serve it.
    """

    precision: str
    architecture: Architecture

    def find(self, kernel: str, mode: str) -> Config | None:
        """The configuration of a kernel."""
        found = config.find(self.architecture, kernel, self.kind, self.x.shape[2], mode, SPECIALISING)
        if found is None or not found.specialised or self._specialises:
            return found
        return config.find(self.architecture, kernel, self.kind, self.x.shape[2], mode)

    @property
    def _specialises(self) -> bool:
        """Whether tensor descriptors can load the rows, and nothing else is to be loaded."""
        vectors = self.spec.exclude == "same_id" or any(term is not None for term in self.terms)
        return not vectors and 32 < self.x.shape[2] <= 128 and all(map(_has_descriptor, (self.x, self.y)))

    def constants(self, choice: Config, mode: str) -> dict[str, Any]:
        """The compile-time arguments that every pairwise kernel has. Others read the same dictionary."""
        return _constants(choice, self.x.shape[2], self.spec.exclude, mode, self.in_log2(mode), self.precision)

    def in_log2(self, mode: str) -> bool:
        """Whether logits are made in units of log 2, see ``tile.py``."""
        return mode in ("exp", "bounded", "softplus") and self.kind != "float32"

    def unit(self, mode: str) -> float:
        """What turns a logit into its units."""
        return math.log2(math.e) if self.in_log2(mode) else 1.0

    def shift(self, mode: str) -> float:
        """What is subtracted from a logit so that its exponential fits the dtype of the weights."""
        return self.spec.scale - math.log(FLOAT16_RANGE) if mode == "exp" and self.x.dtype == torch.float16 else 0.0


@functools.cache
def _constants(choice: Config, dim: int, exclude: str, mode: str, log2: bool, precision: str) -> dict[str, Any]:
    return {
        "DIM": dim,
        "BLOCK_M": choice.block_m,
        "BLOCK_N": choice.block_n,
        "BLOCK_D": choice.block_d or config.padded(dim),
        "EXCLUDE": exclude,
        "MODE": mode,
        "LOG2": log2,
        "PRECISION": precision,
    }


def width(dim: int) -> int:
    """Elements of a row of an operand, the last of which are zeros: loads are asynchronous from multiples of 16 on."""
    return dim + -dim % 16


def as_operands(
    x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, weights: str | None = None
) -> Operands:
    """The operands of a problem; ``weights`` is the ``MODE`` of the weights where a second product follows."""
    dtype, precision, kind = product_of(
        spec.precision, weights, spec.scale, log_weights=terms.u is not None or terms.v is not None
    )
    if y is None:
        terms = terms.as_columns()
    x_rows = _rows(x, dtype)
    y_rows = x_rows if y is None else _rows(y, dtype)
    contiguous = PairTerms(*(None if term is None else term.contiguous() for term in terms))
    architecture = architecture_of(x, x_rows.shape[1] * y_rows.shape[1])
    return Operands(x_rows, y_rows, contiguous, spec, y is None, kind, precision, architecture)


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    x, zeros = rows(x, dtype), width(x.shape[2]) - x.shape[2]
    return F.pad(x, (0, zeros)) if zeros else x


def _has_descriptor(x: Tensor) -> bool:
    """Whether rows start at multiples of 16 bytes, and there are any."""
    size = x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(size * s % 16 == 0 for s in (x.shape[2], *strides(x)[:2]))
    return x.numel() > 0 and x.stride(1) > 0 and aligned


def strides(x: Tensor) -> tuple[int, ...]:
    """The strides of ``(B, M, D)``; 0 for a batch of one, which no kernel needs to be compiled anew for."""
    return (0, *x.stride()[1:]) if x.shape[0] == 1 else x.stride()


def architecture_of(x: Tensor, pairs: int) -> Architecture:
    """Whose configurations serve the device of a tensor."""
    if x.is_cuda:
        return config.of_device(x.device.index)
    return _INTERPRETER[max(least for least in _INTERPRETER if least <= pairs)]
