"""Uniformity: the logarithm of the mean Gaussian potential of all pairs."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import autograd
from ..arguments import (
    accurate_dtype,
    check_backend,
    check_columns,
    check_max_norm,
    check_pairs,
    check_positive,
    check_rows,
    check_vector,
)
from ..distributed import Agreement, GroupLike, Ranks, Remote
from ..options import Loss
from ..spec import LossInputs, LossSpec, PairSpec, PairTerms, is_bounded, product_precision
from .logits import logsumexp, merged


def uniformity(
    x: Tensor,
    y: Tensor | None = None,
    *,
    t: float = 2.0,
    intra: bool = False,
    normalize: bool = True,
    max_norm: float | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""Uniformity loss, of one set of features or of features against a queue.

    .. math::
        U(x) &= \log \tfrac{2}{M(M-1)} \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2} \\
        U(x, y) &= \log \tfrac{1}{MN} \sum_{i,j} e^{-t \lVert \hat x_i - \hat y_j \rVert^2}
            && \text{(Eq. 17)} \\
        U(x, y; \text{intra}) &= \log \tfrac{1}{MN + M(M-1)/2} \Bigl( \sum_{i,j}
            e^{-t \lVert \hat x_i - \hat y_j \rVert^2} + \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2}
            \Bigr) && \text{(Eq. 18)}

    With weights each pair counts ``w_i w_j`` times, in the sum and in the number of pairs.

    Args:
        x: ``(M, D)`` or ``(B, M, D)`` features, float64, float32, bfloat16 or float16, any strides.
        y: ``(N, D)`` or ``(B, N, D)`` queue, of the dtype of ``x``; ``None`` for the distinct pairs of ``x``. A
            queue that does not require grad costs nothing in backward.
        t: inverse width of the potential, > 0. The loss is the logarithm of a mean that is at most 1: it is negative,
            in ``[-4t, 0]`` for unit rows, and lower is more uniform; `hyperkern.metrics.uniformity_limit` gives its
            value for the uniform distribution. In float32 it is as accurate as the inner products, ``1e-7 t``.
        intra: with a queue, whether the distinct pairs of ``x`` count too.
        normalize: whether rows are scaled to unit length first; without, the Gaussian potential of the Euclidean
            distances. It is computed in float64, where the device has it, unless ``max_norm`` says that the rows are
            short or, on a CPU, they are seen to be.
        max_norm: with ``normalize=False``, what no row is longer than, 1 for rows that you have normalised. With it
            float32 rows stay in float32, off by about ``1e-6 t max_norm^2``; longer rows cost accuracy only.
        x_weights: ``(M,)`` or ``(B, M)`` weights >= 0 of the rows of ``x``; a common factor changes nothing.
            Differentiable where positive. The result is nan if one is negative or no pair has a weight.
        y_weights: ``(N,)`` or ``(B, N)`` weights of the queue, likewise.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and its weights are those of this one, the
            queue and its weights the same on all of them.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), float64 for float64 input and float32 otherwise.
        Memory beyond the inputs is O((M + N) D).

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, fewer than two rows without a queue, different devices, ``t <= 0``,
            ``max_norm <= 0`` or with ``normalize``, ``intra`` or ``y_weights`` without ``y``, an unknown or unusable
            ``backend``.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2; Eqs. 17 and 18 for the queue.
    """
    options: dict[str, Any] = {"t": t, "intra": intra, "normalize": normalize, "max_norm": max_norm}
    with Agreement(group, "uniformity", **options) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        t = check_positive("t", t)
        if max_norm is not None:
            check_max_norm(max_norm, normalize)
        if x_weights is not None:
            check_vector("x_weights", x_weights, "x", x)
        if y is not None:
            check_columns("y", y, x)
            if y_weights is not None:
                check_vector("y_weights", y_weights, "y", y)
        elif intra:
            raise ValueError("intra=True counts the pairs of x beside those with y, but y is None")
        elif y_weights is not None:
            raise ValueError("y_weights needs y, but y is None; the rows of x are weighted by x_weights")
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, x_weights=x_weights)
        if y is not None:
            agreed.same(y=y, y_weights=y_weights)
    ranks = agreed.ranks
    if y is None and ranks.total < 2:
        check_pairs("x", x, ranks)

    # What is rounded must be so in the lengths too: only rows that come in half precision are multiplied in it.
    precision = product_precision(x) if normalize or (max_norm is not None and x.itemsize == 2) else "float32"
    inputs, weighted = LossInputs(x, y), x_weights is not None or y_weights is not None

    def composed(inputs: LossInputs) -> tuple[Tensor]:
        x_rows = autograd.prepare(inputs.x, normalize=normalize, backend=backend)
        y_rows = None if inputs.y is None else autograd.prepare(inputs.y, normalize=normalize, backend=backend)
        weights = _relative(x_weights, y_weights, x_rows, y_rows, intra, ranks) if weighted else (None, None)
        value = uniformity_of_rows(
            x_rows,
            y_rows,
            t=t,
            intra=intra,
            is_unit=normalize,
            is_short=max_norm is not None,
            precision=precision,
            x_weights=weights[0],
            y_weights=weights[1],
            ranks=ranks,
            backend=backend,
        )
        return (value,)

    if weighted or not normalize or not ranks.alone:
        return composed(inputs)[0]
    whole = LossSpec("uniformity", 2.0 * t, in_batch=intra or y is None, precision=precision)
    return autograd.loss(inputs, whole, composed, backend=backend)[0]


class UniformityLoss(Loss):
    """`hyperkern.uniformity` as a module."""

    t: float = 2.0
    intra: bool = False
    max_norm: float | None = None

    def _complete(self) -> None:
        if self.max_norm is not None:
            check_max_norm(self.max_norm, self.normalize)

    def forward(
        self,
        x: Tensor,
        y: Tensor | None = None,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of the features ``x``, or of ``x`` against the queue ``y``; ``(N, D)`` or ``(B, N, D)``."""
        return uniformity(x, y, x_weights=x_weights, y_weights=y_weights, **self.given())


class _Sum(NamedTuple):
    """One sum over pairs of ``x`` and some columns, and how often it counts."""

    columns: Tensor | None  # None for x itself
    terms: PairTerms
    factor: float
    remote: Remote | None = None  # the rows of x on other ranks

    def spec(self, t: float, precision: str, *, bounded: bool) -> PairSpec:
        exclude = "self" if self.columns is None else "none"
        return PairSpec(2 * t, bounded, exclude, precision=precision)


def uniformity_of_rows(
    x: Tensor,
    y: Tensor | None = None,
    *,
    t: float,
    intra: bool = False,
    is_unit: bool,
    is_short: bool = False,
    precision: str,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    ranks: Ranks,
    backend: str | None = None,
) -> Tensor:
    """`uniformity` of rows that are already prepared.

    ``is_unit`` tells whether they have unit length, ``is_short`` whether they are known not to be long, ``precision``
    is that of the products; weights are given for no side or for every side.
    """
    dtype = x.dtype
    bound: float | None = 2 * t  # of the exponent's absolute value; None where it is not known
    if not is_unit:
        x, y, bound = _euclidean_rows(x, y, t, is_short, ranks)
    m, n = ranks.total, 0 if y is None else y.shape[-2]
    distinct = y is None or (intra and m > 1)
    pairs = m * n + (m * (m - 1) // 2 if distinct else 0)

    u = _log_weights(x, t, is_unit, x_weights)
    remote = autograd.share(ranks, x, v=u) if distinct else None
    sums = []
    if y is not None:
        sums.append(_Sum(y, PairTerms(u, _log_weights(y, t, is_unit, y_weights)), 1.0))
    if distinct:
        sums.append(_Sum(None, PairTerms(u), 0.5, remote))  # every pair is met in both orders

    if x_weights is None and bound is not None and is_bounded(bound, m * max(m, n), x.dtype):
        log_mean = _bounded_log_mean(x, sums, t, pairs, precision, ranks, backend)
    else:
        accurate = accurate_dtype(x)
        if x_weights is None:
            count = torch.full((), pairs, dtype=accurate, device=x.device)
        else:
            of_y = None if y_weights is None else y_weights.to(accurate)
            count = _pair_weight(x_weights.to(accurate), of_y, distinct, ranks)
        log_mean = _log_mean(x, sums, t, count, precision, ranks, backend)
    # On unit rows the logits are the exponents plus 2t.
    return (log_mean - 2 * t if is_unit else log_mean).to(dtype)


def _bounded_log_mean(
    x: Tensor, sums: list[_Sum], t: float, pairs: int, precision: str, ranks: Ranks, backend: str | None
) -> Tensor:
    """The logarithm of the mean, from the plain sum: loss and gradient in one pass."""
    total = x.new_zeros(())
    for part in sums:
        spec = part.spec(t, precision, bounded=True)
        total = total + part.factor * autograd.energy(x, part.columns, spec=spec, terms=part.terms, backend=backend)
        if part.remote is not None:
            there = autograd.remote_energy(x, None, part.remote, spec=spec, terms=part.terms, backend=backend)
            total = total + part.factor * there
    # Divided before the logarithm: the loss is small, the logarithms of total and count are not.
    return (autograd.sum_over_ranks(total, ranks) / pairs).log()


def _log_mean(
    x: Tensor, sums: list[_Sum], t: float, count: Tensor, precision: str, ranks: Ranks, backend: str | None
) -> Tensor:
    """The same from log-sum-exps, for logits of any size; what is left of them is reduced in the dtype of ``count``."""
    logs = []
    for part in sums:
        spec = part.spec(t, precision, bounded=False)
        row_lse, _ = autograd.row_lse(x, part.columns, spec=spec, terms=part.terms, backend=backend)
        if part.remote is not None:
            there = autograd.remote_row_lse(x, None, part.remote, spec=spec, terms=part.terms, backend=backend)
            row_lse = merged(row_lse, there.row_lse)
        logs.append(logsumexp(row_lse.to(count.dtype)) + math.log(part.factor))
    return autograd.logsumexp_over_ranks(logsumexp(torch.stack(logs, -1)), ranks) - count.log()


# On the sphere no row is farther from any point of the ball than 2; and a little for rounding.
MAX_SQUARED_LENGTH = 4.001


def _euclidean_rows(
    x: Tensor, y: Tensor | None, t: float, is_short: bool, ranks: Ranks
) -> tuple[Tensor, Tensor | None, float | None]:
    """The rows, made fit for ``-t |x|^2 - t |y|^2 + 2t <x, y>``, and a bound of that exponent if one is known.

    The three terms cancel for rows that are long beside their distance. So the rows are centred, and taken to float64
    unless they are seen, or promised by the caller, to be as short as normalised ones, where float32 loses nothing.
    """
    centred = _centred(x, y, ranks)
    longest = _longest(*centred, ranks)
    if longest is not None and longest <= MAX_SQUARED_LENGTH:
        return *centred, 4 * t * longest  # |x - y|^2 <= (2 max |x|)^2
    if is_short and longest is None:
        # Not centred: what half precision rounded must stay as it is, or the three terms no longer fit together.
        return x, y, None
    accurate = accurate_dtype(x)
    return *_centred(x.to(accurate), None if y is None else y.to(accurate), ranks), None


def _centred(x: Tensor, y: Tensor | None, ranks: Ranks) -> tuple[Tensor, Tensor | None]:
    """The rows with the mean of ``x`` at the origin: distances do not see it, and the rows are shorter."""
    center = x.detach().mean(-2, keepdim=True) if ranks.alone else ranks.sum(x.sum(-2, keepdim=True)) / ranks.total
    return x - center, None if y is None else y - center


def _longest(x: Tensor, y: Tensor | None, ranks: Ranks) -> float | None:
    """The largest squared length of a row. Where it is small, as from a caller who normalises, float32 loses nothing.

    Looked up where that is free, on a CPU outside of the compiler and of function transforms; elsewhere ``None``.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        squared = [rows.detach().square().sum(-1).flatten() for rows in (x, y) if rows is not None]
        return ranks.max(torch.cat([*squared, x.new_zeros(1)]).amax()).item()
    except RuntimeError:  # torch.func.vmap does not show values
        return None


def _relative(
    x_weights: Tensor | None, y_weights: Tensor | None, x: Tensor, y: Tensor | None, intra: bool, ranks: Ranks
) -> tuple[Tensor, Tensor | None]:
    """The weights of both sides over the largest of each, so that no product of two over- or underflows.

    The loss does not see the factor. With ``intra`` the pairs inside ``x`` count against those with ``y``, so there
    both sides share one factor.
    """
    x_weights = _no_narrower(x_weights, x)
    # A rank without rows has no largest weight; no weight is below 0.
    zero = x_weights.new_zeros(*x.shape[:-2], 1)
    x_top = ranks.max(torch.cat([x_weights.detach(), zero], -1).amax(-1, keepdim=True))
    if y is None:
        return (x_weights / x_top).to(x.dtype), None
    y_weights = _no_narrower(y_weights, y)
    y_top = y_weights.detach().amax(-1, keepdim=True)
    if intra:
        x_top = y_top = torch.maximum(x_top, y_top)
    return (x_weights / x_top).to(x.dtype), (y_weights / y_top).to(y.dtype)


def _no_narrower(weights: Tensor | None, rows: Tensor) -> Tensor:
    """The weights of rows, all the same by default, in the wider of both dtypes."""
    if weights is None:
        return torch.ones_like(rows[..., 0])
    return weights.to(torch.promote_types(weights.dtype, rows.dtype))


def _log_weights(x: Tensor, t: float, is_unit: bool, weights: Tensor | None) -> Tensor:
    """``u`` of ``-t |x - y|^2 = 2t <x, y> + u + v`` (``- 2t`` on unit rows), and the logarithm of the weights."""
    u: Tensor
    if is_unit:
        # Zero on every row but a zero row, which stays at the origin, at distance 1 from the sphere.
        u = t * (torch.linalg.vector_norm(x.detach(), dim=-1) == 0).to(x.dtype)
    else:
        u = -t * x.square().sum(-1)
    return u if weights is None else u + weights.log()


def _pair_weight(x_weights: Tensor, y_weights: Tensor | None, distinct: bool, ranks: Ranks) -> Tensor:
    """The sum of ``w_i w_j`` over the pairs that count."""
    of_x = x_weights.sum(-1)
    total = torch.zeros_like(of_x)
    if distinct:
        # All terms are positive; (sum w)^2 - sum w^2 would cancel when one weight dominates.
        total = (x_weights[..., 1:] * x_weights.cumsum(-1)[..., :-1]).sum(-1)
        if not ranks.alone:
            everywhere = ranks.all(of_x)
            everywhere[ranks.rank] = 0
            across = of_x * everywhere.sum(0)
            # Half of it, since the other rank counts these pairs as well; and with it the whole gradient.
            total = total + across - across.detach() / 2
    if y_weights is not None:
        total = total + of_x * y_weights.sum(-1)
    return autograd.sum_over_ranks(total, ranks)
