"""What a pairwise problem is: the logit, the pairs that count, the numerical regime.

Notation, used throughout the package. ``x`` has shape ``(B, M, D)``, ``y`` has shape ``(B, N, D)``::

    l_ij = scale * <x_i, y_j> + u_i + v_j        the logit of row i and column j

On unit rows ``<x_i, y_j> = 1 - |x_i - y_j|^2 / 2``, so ``scale = 1 / temperature`` gives the contrastive
losses and ``scale = 2 t`` the Gaussian potential ``exp(-t |x_i - y_j|^2) = exp(l_ij - 2 t)``. ``u`` and ``v``
are optional log-weights of rows and columns. A pair left out by the exclusion rule has ``l_ij = -inf``.

Every backend computes three primitives from this one logit (`hyperkern.backends.Backend`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Of features.
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXCLUSIONS = ("none", "self", "same_id")
POTENTIALS = ("exp", "softplus")

# Powers of two that a plain, unshifted sum of exponentials may reach. The dtype itself ends at 2^127 (2^1023); the
# rest, 2^27 (2^33), is headroom for an incoming gradient, and the scale, which multiply or divide such a sum.
LOG2_LIMIT = {dtype: 990.0 if dtype == torch.float64 else 100.0 for dtype in DTYPES}


class PairSpec(NamedTuple):
    """The static part of a pairwise problem: plain numbers, known on the host.

    Attributes:
        scale: factor of the inner product in the logit.
        bounded: promise that ``sum_j exp(l_ij)`` neither overflows nor underflows, see `is_bounded`. Without
            it a backend keeps a running maximum.
        exclude: ``"none"``; ``"self"``, leave out pairs whose row and column index agree; ``"same_id"``, leave out
            pairs whose ids agree.
        precision: the dtype in which operands may be multiplied, see `product_precision`. Sums are not rounded to it.
    """

    scale: float
    bounded: bool = False
    exclude: str = "none"
    precision: str = "float32"


class PairTerms(NamedTuple):
    """The optional tensors of a pairwise problem.

    Attributes:
        u: ``(B, M)`` log-weights of the rows.
        v: ``(B, N)`` log-weights of the columns.
        row_ids: ``(B, M)`` integers, for ``exclude="same_id"``.
        col_ids: ``(B, N)`` integers, likewise.
    """

    u: Tensor | None = None
    v: Tensor | None = None
    row_ids: Tensor | None = None
    col_ids: Tensor | None = None

    def as_columns(self) -> "PairTerms":
        """With ``y = x`` the rows are the columns too."""
        return PairTerms(self.u, self.u, self.row_ids, self.row_ids)


NO_TERMS = PairTerms()


class LossSpec(NamedTuple):
    """A whole loss: the static part, plain numbers known on the host.

    Attributes:
        loss: the name of its function in `hyperkern.losses`.
        scale: factor of the inner products, ``1 / temperature`` or ``2 t``; 1 where a tensor stands for it.
        temperature: whether that tensor is a temperature, the reciprocal of the factor.
        bias: added to the logits of SigLIP; 0 where a tensor stands for it.
        normalize: whether rows are scaled to unit length.
        mean: whether losses of anchors are averaged rather than summed.
        in_batch: whether the other rows of the batch are candidates beside those of a queue.
        sigma: width of the weights of DCLW.
        alpha: exponent of the distances of alignment + uniformity.
        align_weight: weight of the alignment.
        uniform_weight: weight of the uniformity.
        precision: the dtype in which operands may be multiplied, see `product_precision`.
    """

    loss: str
    scale: float = 1.0
    temperature: bool = False
    bias: float = 0.0
    normalize: bool = True
    mean: bool = True
    in_batch: bool = True
    sigma: float = 1.0
    alpha: float = 2.0
    align_weight: float = 1.0
    uniform_weight: float = 1.0
    precision: str = "float32"


class LossInputs(NamedTuple):
    """The tensors of a whole loss; a gradient is that of the features and of the scalars.

    Attributes:
        x: ``(N, D)`` or ``(B, N, D)`` features.
        y: those of the partners, or other candidates.
        queue: ``(K, D)`` or ``(B, K, D)`` further candidates.
        scale: one number, `LossSpec.scale` or its reciprocal.
        bias: one number, `LossSpec.bias`.
        labels: ``(N,)`` or ``(B, N)`` integers, the classes of ``x``.
        y_labels: those of ``y``.
    """

    x: Tensor
    y: Tensor | None = None
    queue: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    labels: Tensor | None = None
    y_labels: Tensor | None = None


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, losses and unit rows: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_eps(dtype: torch.dtype) -> float:
    """The bound ``rstd <= 1 / eps`` on the reciprocal norm of a row, and with it on the gradient.

    That of `torch.nn.functional.normalize`, 1e-12, and for float16 its smallest normal number. A row shorter
    than this still becomes a unit vector; a zero row stays zero. For both ``rstd`` is the constant ``1 / eps``, whose
    size says nothing about the row. Where it takes the gradient out of the range of the dtype, in float16 from 4 for an
    element of the unit row on, `gradient_limit` keeps it finite.
    """
    return 2.0**-14 if dtype == torch.float16 else 1e-12


def longer_than_eps(rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """Which rows are longer than `norm_eps`, so that their ``rstd`` is a function of them."""
    return rstd * norm_eps(dtype) < 1  # for both eps the rounded product with the rounded 1 / eps is 1


def gradient_limit(rstd: Tensor, dtype: torch.dtype) -> Tensor:
    """What the elements of a row's gradient saturate at, in either direction, before they are rounded to a dtype.

    The largest finite number for a row no longer than `norm_eps`; none for any other: it overflows to inf, by which
    `torch.amp.GradScaler` finds its scale too large. A nan stays nan in both.

    Args:
        rstd: ``(..., M)``.
        dtype: of the gradient, which is that of the features.

    Returns:
        ``(..., M, 1)`` in the dtype of ``rstd``.
    """
    unlimited = torch.full_like(rstd, math.inf)
    return torch.where(longer_than_eps(rstd, dtype), unlimited, torch.finfo(dtype).max).unsqueeze(-1)


def is_bounded(scale: float, terms: int, dtype: torch.dtype) -> bool:
    """Whether a sum of ``terms`` exponentials ``exp(l)``, ``|l| <= scale``, is safe without a running maximum.

    On unit rows every logit lies in ``[-scale, scale]``. In float32 this holds for a log-sum-exp over 10^6 candidates
    down to a temperature of 0.018, and for the uniformity of 10^6 rows, 10^12 pairs, up to ``t = 20``.
    """
    # Without a logarithm, which would tie a compiled graph to one number of terms.
    most: float = 2.0 ** (LOG2_LIMIT[dtype] - scale * math.log2(math.e))
    return terms <= most


_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}


def product_precision(x: Tensor) -> str:
    """What `PairSpec.precision` is for features as the user gave them: ``x.dtype``, or what autocast makes of it.

    ``"float32"`` leaves it to `torch.set_float32_matmul_precision`, read by the backend when it computes. Unit rows
    are float32 in any case: this is about the operands of the product inside a backend.
    """
    dtype, device = x.dtype, x.device.type
    if dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return _NAMES[dtype]


def pair_logits(x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, rows: slice) -> Tensor:
    """The definition of the logits, for the block ``[rows, all columns]``; every step is differentiable.

    Args:
        x: ``(B, M, D)`` rows.
        y: ``(B, N, D)`` columns.
        terms: log-weights and ids of all rows and columns.
        spec: the problem.
        rows: which rows, with explicit ``start`` and ``stop``.

    Returns:
        ``(B, rows, N)`` logits, ``-inf`` where a pair is left out.
    """
    logits = spec.scale * (x[:, rows] @ y.mT)
    if terms.u is not None:
        logits = logits + terms.u[:, rows, None]
    if terms.v is not None:
        logits = logits + terms.v[:, None, :]
    if spec.exclude == "none":
        return logits
    if spec.exclude == "same_id":
        assert terms.row_ids is not None
        assert terms.col_ids is not None
        left_out = terms.row_ids[:, rows, None] == terms.col_ids[:, None]
    else:
        row_index = torch.arange(rows.start, rows.stop, device=x.device)
        left_out = row_index[:, None] == torch.arange(y.shape[1], device=x.device)
    return logits.masked_fill(left_out, -math.inf)
