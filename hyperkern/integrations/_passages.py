"""What retrievers share: each query picks its passage among those of all queries, by the inner product."""

import torch
from torch import Tensor

from .. import autograd, losses
from ..arguments import (
    REDUCTIONS,
    check_choice,
    check_columns,
    check_positive,
    check_rows,
    check_vector,
    reduce_rows,
)
from ..distributed import Agreement, GroupLike
from ..losses.logits import merged, nll_from_excess, positive_logits
from ..spec import PairSpec, PairTerms, product_precision

# Of a query that has no target, as in `torch.nn.functional.cross_entropy`.
IGNORED = -100


def passage_loss(
    name: str,
    x: Tensor,
    y: Tensor,
    target: Tensor | None = None,
    *,
    each: int | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    group: GroupLike = None,
) -> Tensor:
    r"""Cross entropy of the logits ``x @ y.T / temperature``, which are not made.

    Args:
        name: of the loss, in what processes agree on.
        x: ``(N, D)`` queries, float64, float32, bfloat16 or float16, as they come.
        y: ``(M, D)`` passages, like ``x``.
        target: ``(N,)`` integers, the passage of each query, -100 for a query that does not count; without it passages
            come in the order of their queries, ``M / N`` of each, its own first.
        each: how many that must be; ``None`` for any number.
        temperature: > 0.
        reduction: ``"mean"`` or ``"sum"`` over the queries, or ``"none"``.
        group: the processes whose queries and passages are together the batch; not with a ``target``, which would be
            one for the queries of all of them, nor for the losses of these, ``reduction="none"``.

    Returns:
        A scalar, or ``(N,)``; float64 for float64 input, float32 otherwise.

    Raises:
        NotImplementedError: what a group does not go with.
        TypeError: an input is no tensor of a wanted dtype, or the dtypes differ.
        ValueError: wrong or empty shapes, different devices, ``temperature <= 0``, an unknown ``reduction``, passages
            that cannot be shared out to the queries.
    """
    with Agreement(group, name, temperature=temperature, reduction=reduction) as agreed:
        check_rows("x", x, batched=False)
        check_rows("y", y, batched=False)
        check_columns("y", y, x)
        check_positive("temperature", temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        if group is not None and target is not None:
            raise NotImplementedError(f"target={target!r} is not supported here: passages come in order, target=None")
        if group is not None and reduction == "none":
            raise NotImplementedError("reduction='none' is not supported here: give 'mean' or 'sum'")
        there = len(y) // len(x)
        if target is not None:
            check_vector("target", target, "x", x, integer=True)
        elif len(y) != (each or max(1, there)) * len(x):
            wanted = "as many rows" if each is None else f"{each} rows"
            raise ValueError(f"y must have {wanted} for each of the {len(x)} rows of x, got {len(y)}")
        agreed.also(passages_of_a_query=there)
        agreed.shard(x=x, y=y)
    ranks = agreed.ranks
    if target is None and ranks.alone:
        others = y.view(len(x), there, -1)[:, 1:].reshape(-1, y.shape[1]) if there > 1 else None
        return losses.info_nce(
            x, y[::there], negatives=others, temperature=temperature, normalize=False, reduction=reduction
        )
    queries, passages = (autograd.prepare(rows, normalize=False) for rows in (x, y))
    columns = ranks.of_views(there)
    remote = None if ranks.alone else autograd.share(columns, passages)
    own = torch.arange(0, len(y), there, device=x.device) if target is None else target.long()
    counts = own != IGNORED
    own = own * counts
    spec = PairSpec(1 / temperature, exclude="same_id", precision=product_precision(x))
    terms = PairTerms(row_ids=own, col_ids=torch.arange(len(y), device=x.device))
    others, _ = autograd.row_lse(queries, passages, spec=spec, terms=terms)
    if remote is not None:
        elsewhere = spec._replace(exclude="none")
        others = merged(others, autograd.remote_row_lse(queries, passages, remote, spec=elsewhere, rows=ranks).row_lse)
    # Not by indexing, for which an index below 0 is one from the end.
    values = nll_from_excess(others - positive_logits(queries, passages.index_select(0, own), spec))
    if target is None:
        return reduce_rows(values, reduction, ranks)
    values = values * counts
    return values.sum() / counts.sum() if reduction == "mean" else reduce_rows(values, reduction, ranks)
