"""InfoNCE: each row of one view picks its partner in the other one among many candidates."""

from typing import Any

from torch import Tensor

from .. import autograd
from ..arguments import (
    REDUCTIONS,
    check_backend,
    check_choice,
    check_columns,
    check_hard_negatives,
    check_rows,
    check_scale,
    check_vector,
    is_empty_queue,
    reduce_rows,
)
from ..distributed import Agreement, GroupLike
from ..options import ScaledLoss
from ..spec import LossInputs, LossSpec, PairTerms, product_precision
from .logits import (
    inverse,
    logsumexp,
    merged,
    nll_from_excess,
    number_or_tensor,
    positive_logits,
    queue_lse,
    scaled,
)


def info_nce(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.07,
    negatives: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    in_batch: bool = True,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    negative_log_weights: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""InfoNCE, one way: each row of ``x`` picks its partner in ``y`` among all rows of ``y`` and the negatives.

    .. math::
        \ell_i = -\log \frac{e^{\hat x_i \cdot \hat y_i / \tau + v_i}}
            {\sum_j e^{\hat x_i \cdot \hat y_j / \tau + v_j} + \sum_k e^{\hat x_i \cdot \hat n_k / \tau + w_k}
            + \sum_h e^{\hat x_i \cdot \hat h_{ih} / \tau}}

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` queries, float64, float32, bfloat16 or float16, any strides.
        y: keys, like ``x``; row i is the positive of query i and a negative of all others.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked. Learn its logarithm
            and pass ``log_temperature.exp()``: a step of the optimizer can take the number itself through 0.
        negatives: ``n``, ``(K, D)`` or ``(B, K, D)`` further negatives of every query, a queue for instance, of the
            dtype of ``x``. An empty queue, K = 0, counts as none.
        hard_negatives: ``h``, ``(N, H, D)`` or ``(B, N, H, D)``: H negatives of each query alone. Their logits are
            stored, ``N H`` numbers.
        in_batch: whether the other rows of ``y`` are candidates. MoCo's loss has ``False``: the positive against the
            queue.
        ids: ``(N,)`` or ``(B, N)`` integers, what the pairs show: a key with the id of a query, other than its partner,
            is no candidate of it (false negatives).
        negative_ids: ``(K,)`` or ``(B, K)``, those of ``negatives``, compared with ``ids``.
        y_log_weights: ``v``, ``(N,)`` or ``(B, N)``, added to the logits of the keys, as negatives and as the positive.
            ``-log q_j`` for keys that come into a batch with probability ``q_j`` is the logQ correction.
        negative_log_weights: ``w``, ``(K,)`` or ``(B, K)``, likewise for ``negatives``.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the N queries, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x``, ``y``, and what comes for each of their
            rows are those of this one, ``negatives`` are the same on all of them.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(N,)`` (``(B, N)``) for ``reduction="none"``;
        float64 for float64 input, float32 otherwise. A query without any candidate but its positive has nothing to
        tell apart: loss 0 and gradient 0 up to rounding.

    Raises:
        TypeError: an input is no tensor, not of a wanted dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``temperature <= 0``, an unknown ``reduction``, ids or
            log-weights of negatives that are not given, ids that nothing is compared with, no source of negatives at
            all, an unknown or unusable ``backend``.

    Source:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4. With
        ``in_batch=False`` He et al., "Momentum Contrast", CVPR 2020, Eq. 1. Log-weights: Yi et al.,
        "Sampling-Bias-Corrected Neural Modeling", RecSys 2019, Section 3.
    """
    options: dict[str, Any] = {
        "temperature": temperature,
        "in_batch": in_batch,
        "normalize": normalize,
        "reduction": reduction,
    }
    with Agreement(group, "info_nce", **options) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_columns("y", y, x, same_rows=True, may_be_empty=agreed.may_be_empty)
        temperature = check_scale("temperature", temperature, x)
        check_choice("reduction", reduction, REDUCTIONS)
        if ids is not None:
            check_vector("ids", ids, "x", x, integer=True)
        if y_log_weights is not None:
            check_vector("y_log_weights", y_log_weights, "y", y)
        if hard_negatives is not None:
            check_hard_negatives("hard_negatives", hard_negatives, x)
        _check_negatives(x, negatives, ids, negative_ids, negative_log_weights)
        if not in_batch and negatives is None and hard_negatives is None:
            raise ValueError("in_batch=False leaves no candidates: give negatives or hard_negatives")
        if not in_batch and ids is not None and negative_ids is None:
            raise ValueError("in_batch=False leaves negative_ids alone to compare ids with, but negative_ids is None")
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, y=y, hard_negatives=hard_negatives, ids=ids, y_log_weights=y_log_weights)
        agreed.same(negatives=negatives, negative_ids=negative_ids, negative_log_weights=negative_log_weights)
    ranks = agreed.ranks
    if is_empty_queue(negatives):
        negatives = negative_ids = negative_log_weights = None
    weighted = y_log_weights is not None or negative_log_weights is not None
    precision = product_precision(x)
    number, tensor = number_or_tensor(temperature)
    inputs = LossInputs(x, y, negatives, scale=tensor)

    def composed(inputs: LossInputs) -> tuple[Tensor]:
        x, y = autograd.prepare_views(inputs.x, inputs.y, normalize=normalize, backend=backend)
        negatives, temperature = inputs.queue, number if inputs.scale is None else inputs.scale
        # Of each log-sum-exp, which are bounded on their own: they are merged as logarithms.
        candidates = max(ranks.total, 0 if negatives is None else negatives.shape[-2])
        scale = inverse(temperature, x)
        # The positive has the id of its query.
        exclude = "self" if ids is None else "same_id"
        x, spec = scaled(x, scale, candidates, unit=normalize, precision=precision, weighted=weighted, exclude=exclude)
        of_keys = None if y_log_weights is None else y_log_weights.to(x.dtype)
        remote = autograd.share(ranks, y, v=of_keys, ids=ids) if in_batch else None
        positives = positive_logits(x, y, spec)
        if of_keys is not None:
            positives = positives + of_keys
        others = []
        if in_batch:
            terms = PairTerms(v=of_keys, row_ids=ids, col_ids=ids)
            others.append(queue_lse(x, y, spec, terms, backend))
            if remote is not None:
                others.append(autograd.remote_row_lse(x, y, remote, spec=spec, terms=terms, backend=backend).row_lse)
        if negatives is not None:
            n = autograd.prepare(negatives, normalize=normalize, backend=backend)
            weights = None if negative_log_weights is None else negative_log_weights.to(x.dtype)
            terms = PairTerms(v=weights, row_ids=None if negative_ids is None else ids, col_ids=negative_ids)
            without = spec._replace(exclude="none" if negative_ids is None else "same_id")
            others.append(queue_lse(x, n, without, terms, backend))
        if hard_negatives is not None:
            rows = hard_negatives.reshape(*x.shape[:-2], -1, x.shape[-1])
            rows = autograd.prepare(rows, normalize=normalize, backend=backend).view(hard_negatives.shape)
            others.append(logsumexp(positive_logits(x.unsqueeze(-2), rows, spec)))
        if not others:
            # An empty queue and no other candidate: loss 0, connected to the input.
            return (reduce_rows(0 * positives, reduction, ranks),)
        return (reduce_rows(nll_from_excess(merged(*others) - positives), reduction, ranks),)

    plain = ids is None and negative_ids is None and hard_negatives is None and not weighted
    if not plain or reduction == "none" or not ranks.alone or (negatives is None and not in_batch):
        return composed(inputs)[0]
    whole = LossSpec(
        "info_nce",
        1.0 if tensor is not None else 1 / number,
        temperature=tensor is not None,
        normalize=normalize,
        mean=reduction == "mean",
        in_batch=in_batch,
        precision=precision,
    )
    return autograd.loss(inputs, whole, composed, backend=backend)[0]


class InfoNCELoss(ScaledLoss):
    """`hyperkern.info_nce` as a module that can learn its temperature."""

    temperature: float = 0.07
    in_batch: bool = True

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        negatives: Tensor | None = None,
        *,
        hard_negatives: Tensor | None = None,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        y_log_weights: Tensor | None = None,
        negative_log_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of the queries ``x`` with the keys ``y``, both ``(N, D)``, and ``(K, D)`` further negatives."""
        return info_nce(
            x,
            y,
            negatives=negatives,
            hard_negatives=hard_negatives,
            ids=ids,
            negative_ids=negative_ids,
            y_log_weights=y_log_weights,
            negative_log_weights=negative_log_weights,
            **self.given(),
        )


def _check_negatives(
    x: Tensor, negatives: Tensor | None, ids: Tensor | None, negative_ids: Tensor | None, log_weights: Tensor | None
) -> None:
    if negatives is None:
        for name, given in (("negative_ids", negative_ids), ("negative_log_weights", log_weights)):
            if given is not None:
                raise ValueError(f"{name} needs negatives, but negatives is None")
        return
    check_columns("negatives", negatives, x, may_be_empty=True)
    if negative_ids is not None:
        check_vector("negative_ids", negative_ids, "negatives", negatives, integer=True)
        if ids is None:
            raise ValueError("negative_ids are compared with ids, but ids is None")
    if log_weights is not None:
        check_vector("negative_log_weights", log_weights, "negatives", negatives)
