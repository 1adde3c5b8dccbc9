"""Uniformity: the logarithm of the mean Gaussian potential of all pairs."""

import math

import torch
from torch import Tensor

from .. import autograd
from ..spec import PairSpec, PairTerms, is_bounded
from ._inputs import check_columns, check_positive, check_rows, check_vector, to_rows


def uniformity(
    x: Tensor,
    y: Tensor | None = None,
    *,
    t: float = 2.0,
    intra: bool = False,
    normalize: bool = True,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Uniformity loss, of one set of features or of features against a queue.

    .. math::
        U(x) &= \log \tfrac{2}{N(N-1)} \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2} \\
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
        t: inverse width of the potential, > 0. A negative logarithm of a mean, the loss lies in ``[-4t, 0]`` for
            unit rows; `hyperkern.metrics.uniformity_limit` gives its value for the uniform distribution.
        intra: with a queue, whether the distinct pairs of ``x`` count too.
        normalize: whether rows are scaled to unit length first; without, the exact Gaussian potential of the
            Euclidean distances. In float32 it is then as accurate as ``1e-7 t |x - mean(x)|^2``.
        x_weights: ``(M,)`` or ``(B, M)`` weights >= 0 of the rows of ``x`` (a negative one gives nan).
            Differentiable where positive.
        y_weights: ``(N,)`` or ``(B, N)`` weights of the queue, likewise.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), float64 for float64 input and float32 otherwise.
        Memory beyond the inputs is O((M + N) D).

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, fewer than two rows without a queue, different devices, ``t <= 0``,
            ``intra`` or ``y_weights`` without ``y``, an unknown or unusable ``backend``.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2; Eqs. 17 and 18 for the queue.
    """
    check_rows("x", x)
    check_positive("t", t)
    if x_weights is not None:
        check_vector("x_weights", x_weights, "x", x)
    if y is None:
        if x.shape[-2] < 2:
            raise ValueError(f"x must have at least 2 rows to form a pair, got shape {tuple(x.shape)}")
        if intra:
            raise ValueError("intra=True counts the pairs of x beside those with y, but y is None")
        if y_weights is not None:
            raise ValueError("y_weights needs y, but y is None; the rows of x are weighted by x_weights")
    else:
        check_columns("y", y, x)
        if y_weights is not None:
            check_vector("y_weights", y_weights, "y", y)

    x_rows = to_rows(x, normalize, backend)
    y_rows = None if y is None else to_rows(y, normalize, backend)
    return uniformity_of_rows(x_rows, y_rows, t, intra, normalize, x_weights, y_weights, backend)


def uniformity_of_rows(
    x: Tensor,
    y: Tensor | None,
    t: float,
    intra: bool,
    unit: bool,
    x_weights: Tensor | None,
    y_weights: Tensor | None,
    backend: str | None,
) -> Tensor:
    """`uniformity` of rows that are already prepared; ``unit`` tells whether they have unit length."""
    if not unit:
        # Distances do not see a translation; short rows lose less to -t |x|^2 - t |y|^2 + 2t <x, y>.
        center = x.detach().mean(-2, keepdim=True)
        x, y = x - center, None if y is None else y - center
    u = _log_weights(x, t, unit, x_weights)
    v = None if y is None else _log_weights(y, t, unit, y_weights)
    weighted = x_weights is not None or y_weights is not None

    def log_sum(columns: Tensor | None, terms: PairTerms) -> Tensor:
        n = x.shape[-2] if columns is None else columns.shape[-2]
        bounded = unit and not weighted and is_bounded(2 * t, x.shape[-2] * n, x.dtype)
        spec = PairSpec(2 * t, bounded, "self" if columns is None else "none")
        if bounded:
            return autograd.energy(x, columns, spec=spec, terms=terms, backend=backend).log()
        return autograd.row_lse(x, columns, spec=spec, terms=terms, backend=backend)[0].logsumexp(-1)

    total = log_sum(y, PairTerms(u, v))
    if y is None:
        total = total - math.log(2)  # every pair was met in both orders
    elif intra and x.shape[-2] > 1:
        total = torch.logaddexp(total, log_sum(None, PairTerms(u)) - math.log(2))
    # On unit rows the exponent is -t |x - y|^2 + 2t.
    return total - _log_pairs(x, y, intra, x_weights, y_weights) - (2 * t if unit else 0)


def _log_weights(x: Tensor, t: float, unit: bool, weights: Tensor | None) -> Tensor:
    """``u`` of ``-t |x - y|^2 = 2t <x, y> + u + v`` (``- 2t`` on unit rows), and the logarithm of the weights."""
    if unit:
        # Zero on every row but a zero row, which stays at the origin, at distance 1 from the sphere.
        u = t * (torch.linalg.vector_norm(x.detach(), dim=-1) == 0).to(x.dtype)
    else:
        u = -t * x.square().sum(-1)
    return u if weights is None else u + weights.to(x.dtype).log()


def _log_pairs(
    x: Tensor, y: Tensor | None, intra: bool, x_weights: Tensor | None, y_weights: Tensor | None
) -> Tensor | float:
    """The logarithm of the number of pairs, or of their total weight."""
    distinct = y is None or intra
    if x_weights is None and y_weights is None:
        m, n = x.shape[-2], 0 if y is None else y.shape[-2]
        return math.log(m * n + (m * (m - 1) // 2 if distinct else 0))
    w = x.new_ones(x.shape[:-1]) if x_weights is None else x_weights.to(x.dtype)
    total = x.new_zeros(x.shape[:-2])
    if distinct:
        # All terms are positive; (sum w)^2 - sum w^2 would cancel when one weight dominates.
        total = total + (w[..., 1:] * w.cumsum(-1)[..., :-1]).sum(-1)
    if y is not None:
        total = total + w.sum(-1) * (y.shape[-2] if y_weights is None else y_weights.to(x.dtype).sum(-1))
    return total.log()
