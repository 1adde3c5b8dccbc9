"""The log-sum-exp over all pairs, for losses that are not in this package."""

from typing import Any

from torch import Tensor

from .. import autograd
from ..arguments import (
    check_backend,
    check_choice,
    check_columns,
    check_positive,
    check_rows,
    check_vector,
    renamed,
)
from ..distributed import Agreement, GroupLike
from ..spec import EXCLUSIONS, PairSpec, PairTerms, is_bounded, product_precision
from .logits import merged


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
    group: GroupLike = None,
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
        group: the ranks that share rows and columns, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one
            dimension or a `hyperkern.Group`; ``x``, ``y`` and what comes for each of their rows are those of this one,
            any number of either. The gradient is that of the sum of what all ranks make of their results.
        backend: name of a backend to force; by default the best usable one.
        scale: deprecated, ``logit_scale``.

    Returns:
        ``(row_lse, col_lse)`` of shapes ``(M,)`` and ``(N,)``, or ``(B, M)`` and ``(B, N)``; float64 for float64
        input, float32 otherwise. With a group they are those of the own rows over the columns of all ranks, and of the
        own columns over all rows. A row of which every pair is left out is ``-inf``, with gradient 0.

    Raises:
        TypeError: an input is no tensor or of a wrong dtype, the dtypes differ, or ``logit_scale`` is not given.
        ValueError: a wrong or empty shape, different devices, ``logit_scale <= 0``, an unknown ``exclude``, ids missing
            or not used, log-weights or ids of a missing ``y``, an unknown or unusable ``backend``; with a group
            ``exclude="self"`` where a rank has not as many columns as rows.
    """
    if scale is not None:
        renamed("pairwise_logsumexp", "scale", "logit_scale", logit_scale)
        logit_scale = scale
    options: dict[str, Any] = {"logit_scale": logit_scale, "exclude": exclude, "normalize": normalize}
    with Agreement(group, "pairwise_logsumexp", **options) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        if logit_scale is None:
            raise TypeError("logit_scale must be a number, got NoneType")
        logit_scale = check_positive("logit_scale", logit_scale)
        check_choice("exclude", exclude, EXCLUSIONS)
        if y is not None:
            check_columns("y", y, x, may_be_empty=agreed.may_be_empty)
            if agreed.may_be_empty and exclude == "self" and y.shape != x.shape:
                shapes = f"{tuple(x.shape)}, got {tuple(y.shape)}"
                raise ValueError(f"y must have the shape of x on every rank for exclude='self' with a group, {shapes}")
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
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, x_log_weights=x_log_weights, x_ids=x_ids)
        agreed.shard(y=y, y_log_weights=y_log_weights, y_ids=y_ids)
    ranks = columns = agreed.ranks
    if y is not None and not ranks.alone:  # how many of them each rank has
        with Agreement(group, "pairwise_logsumexp, columns", rows_optional=True) as agreed:
            agreed.shard(y=y)
        columns = agreed.ranks
        if not columns.total:
            raise ValueError(f"y must not be empty: none of the {len(columns.counts)} ranks of the group has a row")

    x_rows = autograd.prepare(x, normalize=normalize, backend=backend)
    y_rows = None if y is None else autograd.prepare(y, normalize=normalize, backend=backend)
    u, v = (None if w is None else w.to(x_rows.dtype) for w in (x_log_weights, y_log_weights))
    bounded = normalize and u is None and v is None
    bounded = bounded and is_bounded(logit_scale, max(ranks.total, columns.total), x.dtype)
    spec = PairSpec(logit_scale, bounded, exclude, precision=product_precision(x))
    terms, options = PairTerms(u, v, x_ids, y_ids), {"spec": spec, "backend": backend}
    if y_rows is None:
        remote = autograd.share(ranks, x_rows, v=u, ids=x_ids)
    else:
        remote = autograd.share(columns, y_rows, v=v, ids=y_ids)
    row_lse, col_lse = autograd.row_lse(x_rows, y_rows, terms=terms, need_cols=True, **options)
    if remote is not None:
        options |= {"terms": terms, "need_cols": y is not None, "rows": ranks}
        there = autograd.remote_row_lse(x_rows, y_rows, remote, **options)
        row_lse = merged(row_lse, there.row_lse)
        # With y = x a column has what its row has.
        col_lse = row_lse.clone() if y is None else merged(col_lse, there.col_lse)
    return row_lse, col_lse
