"""What the pairwise kernels are launched with: operands in the dtype of the product, terms of rows and columns."""

import functools
import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...spec import EXCLUSIONS, PairSpec, PairTerms
from ..host import pairwise, precision
from .library import ops

# A block of threads is counted as one of so many that run at once: constants of the compute capability, so that the
# order of sums, and with it the last bit, does not depend on the model of the GPU.
_MULTIPROCESSORS = {(8, 0): 108, (9, 0): 132}
_OTHER_MULTIPROCESSORS = 84
_EMULATED_MULTIPROCESSORS = 4

ALIGNMENT = 16  # bytes: of rows, for asynchronous copies
MOST_TILE_COLS = 128

# The most elements of a row that the one-pass kernel takes.
CONTRACT_DIM = 256


class Weight(IntEnum):
    """What the weight of a pair is made of, see ``csrc/pair_tile.cuh``."""

    EXP = 0
    FACTOR = 1
    TWO = 2
    SOFTPLUS = 3
    CLASSES = 4


class Task(IntEnum):
    """What the sums kernel does, see ``csrc/sums_epilogue.cuh``; ``STORE_EXP + weight`` stores those of no classes."""

    SUM_EXP = 0
    SUM_SOFTPLUS = 1
    SUM_RUNNING = 2
    STORE_EXP = 3
    SUM_CLASSES = 7
    STORE_CLASSES = 8


@dataclass(frozen=True)
class Operands(pairwise.Operands):
    """A pairwise problem as kernels take it: rows padded with zeros to a multiple of 16 bytes, ids contiguous int64."""

    @property
    def unit(self) -> float:
        """What turns a logit into the kernels' units."""
        return unit_of(self.kind)

    @property
    def split(self) -> bool:
        """Whether float32 operands are multiplied in three products."""
        return self.kind == "float32"

    @property
    def exclude(self) -> int:
        """The code of the exclusion rule."""
        return EXCLUSIONS.index(self.spec.exclude)


class Tile(NamedTuple):
    """Rows and columns of a kernel's tile, how many groups of warps keep column sums of their own, and how many blocks
    of threads are a cluster, which shares rows.
    """

    rows: int
    cols: int
    groups: int
    cluster: int


def as_operands(
    x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, weights: str | None = None
) -> Operands:
    """The operands of a problem; ``weights`` is the mode of the weights where a second product follows."""
    dtype, _, kind = precision.product_of(
        spec.precision, weights, spec.scale, log_weights=terms.u is not None or terms.v is not None
    )
    if y is None:
        terms = terms.as_columns()
    x_rows = rows(x, dtype)
    y_rows = x_rows if y is None else rows(y, dtype)
    ids = (None if t is None else t.to(torch.int64).contiguous() for t in (terms.row_ids, terms.col_ids))
    logs = (None if t is None else t.float() for t in (terms.u, terms.v))
    return Operands(x_rows, y_rows, PairTerms(*logs, *ids), spec, y is None, kind)


def unit_of(kind: str) -> float:
    """What turns a logit into the kernels' units for products of a kind: of log 2, but for full float32 accuracy."""
    return 1.0 if kind == "float32" else math.log2(math.e)


def rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a dtype, with rows of their own (not expanded) that start and end at multiples of 16 bytes."""
    x = x.to(dtype)
    per_piece = ALIGNMENT // x.element_size()
    if x.shape[2] % per_piece:
        return F.pad(x, (0, -x.shape[2] % per_piece))
    aligned = x.stride(2) == 1 and all(stride > 0 and stride % per_piece == 0 for stride in x.stride()[:2])
    return x if aligned and x.data_ptr() % ALIGNMENT == 0 else x.clone(memory_format=torch.contiguous_format)


def row_terms(*terms: Tensor) -> Tensor:
    """Vectors ``(B, M)`` as the rows of ``(B, terms, M)``."""
    return torch.stack(terms, 1)


def col_terms(*terms: Tensor) -> Tensor:
    """Vectors ``(B, N)`` as the rows of ``(B, terms, N')``: N' is even and as long as the last tile may reach."""
    n = terms[0].shape[1]
    return F.pad(torch.stack(terms, 1), (0, MOST_TILE_COLS + n % 2))


def tile(rows: Tensor, kernel: str, weight: Weight) -> Tile:
    """The tile of a kernel (``sums``, ``contract``, ``stores``) for operands like these rows."""
    return tile_of(rows.device, rows.dtype, rows.shape[2], kernel, weight)


def tile_of(device: torch.device, dtype: torch.dtype, dim: int, kernel: str, weight: Weight) -> Tile:
    """The tile of a kernel for rows of so many elements."""
    return _tile(device, dtype, kernel, dim, weight, emulated_capability())


@functools.cache
def _tile(device: torch.device, dtype: torch.dtype, kernel: str, dim: int, weight: Weight, _emulated: int) -> Tile:
    probe = torch.empty(0, dtype=dtype, device=device)
    return Tile(*ops(device).tile(probe, ("sums", "contract", "stores").index(kernel), dim, weight))


_emulated = 90


def emulate(capability: int, *, products_first: bool = False, launches: bool = True) -> None:
    """What the emulator is to be, for tests.

    Args:
        capability: 80, the kernels for compute capability 8.0 and newer, or 90, those for sm_90a.
        products_first: whether asynchronous products take effect at once and copies as late as possible, or the
            other way round, with copies and warps in any order.
        launches: whether anything is launched. If not, outputs are what their memory holds.
    """
    global _emulated
    ops(torch.device("cpu")).emulate(capability, products_first, launches)
    _emulated = capability


def emulated_capability() -> int:
    """What the emulator is."""
    return _emulated


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many blocks of threads run at once on a typical GPU of this compute capability."""
    if device.type == "cpu":
        return _EMULATED_MULTIPROCESSORS
    return _MULTIPROCESSORS.get(torch.cuda.get_device_capability(device), _OTHER_MULTIPROCESSORS)
