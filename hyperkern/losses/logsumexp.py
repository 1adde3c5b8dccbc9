"""The log-sum-exp over all pairs, for losses that are not in this package."""

from torch import Tensor

from .. import autograd
from ..arguments import check_choice, check_columns, check_positive, check_rows, check_vector, renamed
from ..spec import EXCLUSIONS, PairSpec, PairTerms, is_bounded, product_precision


def pairwise_logsumexp(
    x: Tensor,
    y: Tensor | None = None,
    *,
    logit_scale: float | None = None,
    exclude: str = "none",
    x_log_weights: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    x_ids: Tensor | None = None,
    y_ids: Tensor | None = None,
    normalize: bool = True,
    backend: str | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Log-sum-exp of scaled similarities, over the columns for each row and over the rows for each column.

    .. math::
        \ell_{ij} = s\, \hat x_i \cdot \hat y_j + u_i + v_j, \qquad
        r_i = \log \sum_j e^{\ell_{ij}}, \quad c_j = \log \sum_i e^{\ell_{ij}}

    Args:
        x: ``(M, D)`` or ``(B, M, D)`` rows, float64, float32, bfloat16 or float16, any strides.
        y: ``(N, D)`` or ``(B, N, D)`` columns, of the dtype of ``x``; ``None`` for ``y = x`` with the log-weights
            and ids of ``x`` on both sides.
        logit_scale: ``s`` > 0, needed; ``1 / temperature``, or ``2t`` for the Gaussian potential.
        exclude: which pairs are left out: ``"none"``, ``"self"`` (i = j) or ``"same_id"``.
        x_log_weights: ``u``, ``(M,)`` or ``(B, M)``, differentiable; ``-inf`` leaves the row out.
        y_log_weights: ``v``, ``(N,)`` or ``(B, N)``, likewise.
        x_ids: ``(M,)`` or ``(B, M)`` integers, for ``exclude="same_id"``.
        y_ids: ``(N,)`` or ``(B, N)`` integers, likewise.
        normalize: whether rows are scaled to unit length first.
        backend: name of a backend to force; by default the best usable one.
        scale: deprecated, ``logit_scale``.

    Returns:
        ``(row_lse, col_lse)`` of shapes ``(M,)`` and ``(N,)``, or ``(B, M)`` and ``(B, N)``; float64 for float64
        input, float32 otherwise. A row of which every pair is left out is ``-inf``, with gradient 0.

    Raises:
        TypeError: an input is no tensor or of a wrong dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``logit_scale <= 0``, an unknown ``exclude``, ids missing
            or not used, log-weights or ids of a missing ``y``, an unknown or unusable ``backend``.
    """
    if scale is not None:
        renamed("pairwise_logsumexp", "scale", "logit_scale")
        logit_scale = scale
    check_rows("x", x)
    if logit_scale is None:
        raise TypeError("logit_scale must be a number, got NoneType")
    logit_scale = check_positive("logit_scale", logit_scale)
    check_choice("exclude", exclude, EXCLUSIONS)
    if y is not None:
        check_columns("y", y, x)
    by_id = exclude == "same_id"
    sides = (("x", x, x_log_weights, x_ids), ("y", y, y_log_weights, y_ids))
    for name, rows, log_weights, ids in sides:
        if rows is None:
            if log_weights is not None or ids is not None:
                raise ValueError(f"{name}_log_weights and {name}_ids need {name}, but {name} is None")
            continue
        if by_id != (ids is not None):
            raise ValueError(
                f"{name}_ids must be given with exclude='same_id' and only then, got exclude={exclude!r} "
                f"and {name}_ids={'None' if ids is None else 'a tensor'}"
            )
        if log_weights is not None:
            check_vector(f"{name}_log_weights", log_weights, name, rows)
        if ids is not None:
            check_vector(f"{name}_ids", ids, name, rows, integer=True)

    x_rows = autograd.prepare(x, normalize=normalize, backend=backend)
    y_rows = None if y is None else autograd.prepare(y, normalize=normalize, backend=backend)
    u, v = (None if w is None else w.to(x_rows.dtype) for w in (x_log_weights, y_log_weights))
    count = max(x.shape[-2], x.shape[-2] if y is None else y.shape[-2])
    bounded = normalize and u is None and v is None and is_bounded(logit_scale, count, x.dtype)
    spec = PairSpec(logit_scale, bounded, exclude, precision=product_precision(x))
    terms = PairTerms(u, v, x_ids, y_ids)
    return autograd.row_lse(x_rows, y_rows, spec=spec, terms=terms, need_cols=True, backend=backend)
