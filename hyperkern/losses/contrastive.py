"""Contrastive losses: the negative log-probability of the positive among all candidates.

With the logit ``p_i`` of the positive and the log-sum-exp ``o_i`` of the *other* candidates it is
``-log(e^p / (e^p + e^o)) = log(1 + e^(o - p))``: see `_nll_from_excess` for why it is computed in this form.
"""

import torch
from torch import Tensor

from .. import autograd
from ..spec import PairSpec, is_bounded, product_precision
from ._inputs import REDUCTIONS, check_choice, check_columns, check_rows, check_scale, reduce_rows


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE, one way: each row of ``x`` picks its partner in ``y`` among all rows of ``y`` and the negatives.

    .. math::
        \ell_i = -\log \frac{e^{\hat x_i \cdot \hat y_i / \tau}}
            {\sum_j e^{\hat x_i \cdot \hat y_j / \tau} + \sum_k e^{\hat x_i \cdot \hat n_k / \tau}}

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` queries, float64, float32, bfloat16 or float16, any strides.
        y: keys, like ``x``; row i is the positive of query i and a negative of all others.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked. Learn its logarithm
            and pass ``log_temperature.exp()``: a step of the optimizer can take the number itself through 0.
        negatives: ``(K, D)`` or ``(B, K, D)`` further negatives of every query, a queue for instance, of the dtype of
            ``x``.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the N queries, or ``"none"``.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(N,)`` (``(B, N)``) for ``reduction="none"``;
        float64 for float64 input, float32 otherwise. A single row without negatives has nothing to tell apart:
        loss 0 and gradient 0 up to rounding.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``temperature <= 0``, an unknown ``reduction``, an
            unknown or unusable ``backend``.

    Source:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4. With a queue as
        ``negatives`` it is like He et al., "Momentum Contrast", CVPR 2020, Eq. 1, but the other rows of ``y`` are
        negatives as well.
    """
    check_rows("x", x)
    check_columns("y", y, x, same_rows=True)
    check_scale("temperature", temperature, x)
    check_choice("reduction", reduction, REDUCTIONS)
    if negatives is not None:
        check_columns("negatives", negatives, x)
    precision = product_precision(x)
    x, y = (autograd.prepare(side, normalize=normalize, backend=backend) for side in (x, y))
    scale = 1 / (temperature.to(x.dtype) if isinstance(temperature, Tensor) else temperature)
    # Of each log-sum-exp, which are bounded on their own: they are merged as logarithms.
    candidates = max(y.shape[-2], 0 if negatives is None else negatives.shape[-2])
    x, spec = _fold_scale(x, scale, candidates, normalize, precision)
    others, _ = autograd.row_lse(x, y, spec=spec._replace(exclude="self"), backend=backend)
    if negatives is not None:
        n = autograd.prepare(negatives, normalize=normalize, backend=backend)
        others = torch.logaddexp(others, autograd.row_lse(x, n, spec=spec, backend=backend)[0])
    return reduce_rows(_nll_from_excess(others - _positives(x, y, spec)), reduction)


def clip_loss(
    x: Tensor, y: Tensor, *, logit_scale: float | Tensor, normalize: bool = True, backend: str | None = None
) -> Tensor:
    r"""The two-way contrastive loss, of CLIP and of Wang & Isola's paper.

    .. math::
        L = \frac{1}{2N} \sum_i \Bigl( \log \sum_j e^{s\, \hat x_i \cdot \hat y_j}
            + \log \sum_j e^{s\, \hat x_j \cdot \hat y_i} - 2 s\, \hat x_i \cdot \hat y_i \Bigr)

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of one view or modality, float64, float32, bfloat16 or float16,
            any strides.
        y: features of the other, like ``x``; row i is the partner of row i.
        logit_scale: ``s = 1 / temperature`` > 0; for a model that learns its logarithm, as CLIP does, pass
            ``model.logit_scale.exp()``. A scalar tensor is learnable, and its value is neither read nor checked.
        normalize: whether rows are scaled to unit length first.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar, or ``(B,)`` with a leading batch dimension; float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``logit_scale <= 0``, an unknown or unusable
            ``backend``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, Figure 3;
        Wang & Isola, ICML 2020, Eq. 1, with the negatives of the other view.
    """
    check_rows("x", x)
    check_columns("y", y, x, same_rows=True)
    check_scale("logit_scale", logit_scale, x)
    precision = product_precision(x)
    x, y = (autograd.prepare(side, normalize=normalize, backend=backend) for side in (x, y))
    x, spec = _fold_scale(x, logit_scale, y.shape[-2], normalize, precision)
    other_cols, other_rows = autograd.row_lse(x, y, spec=spec._replace(exclude="self"), need_cols=True, backend=backend)
    positives = _positives(x, y, spec)
    by_row, by_col = _nll_from_excess(other_cols - positives), _nll_from_excess(other_rows - positives)
    return ((by_row + by_col) / 2).mean(-1)


def _fold_scale(x: Tensor, scale: float | Tensor, terms: int, unit: bool, precision: str) -> tuple[Tensor, PairSpec]:
    """The rows and the problem with the scale in it.

    A tensor's value must not be read, and its gradient is the inner product of the rows with their own
    gradient: multiplied into the rows, it needs neither.
    """
    if isinstance(scale, Tensor):
        return x * scale.to(x.dtype).reshape(()), PairSpec(1.0, precision=precision)
    return x, PairSpec(scale, bounded=unit and is_bounded(scale, terms, x.dtype), precision=precision)


def _positives(x: Tensor, y: Tensor, spec: PairSpec) -> Tensor:
    return spec.scale * (x * y).sum(-1)


def _nll_from_excess(excess: Tensor) -> Tensor:
    """``-log p`` of the positive, ``log(1 + e^excess)``, from the excess of all other candidates over it.

    Never negative, exact 0 without other candidates, and to full relative accuracy for a confident model, where the
    difference of two nearly equal logarithms would be rounding alone.
    """
    return torch.logaddexp(excess, torch.zeros_like(excess))
