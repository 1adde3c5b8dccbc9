"""Drop-in for solo-learn: ``from solo.losses import X`` becomes ``from hyperkern.integrations.solo_learn import X``.

X is `simclr_loss_func`, `nnclr_loss_func`, `mocov2plus_loss_func`, `mocov3_loss_func` or `ressl_loss_func`: the same
calls and the same values, without a matrix of all pairs. A temperature may be a scalar tensor, with its gradient. What
differs:

- a loss is float32 (float64 for float64);
- `simclr_loss_func` is computed from logarithms, where the original's exponentials overflow at temperatures below 0.012
  in float32;
- a sample that occurs once has no positive, for which `simclr_loss_func` of the original returns inf: it raises a
  `ValueError`.

In several processes, all those of `torch.distributed`, `simclr_loss_func`, `nnclr_loss_func` and `mocov3_loss_func`
are, as the originals, the mean over the rows of a process, with those of all processes as candidates. The gradient is
that of the sum of the losses of all processes; but the keys of `mocov3_loss_func` are constants. Processes may have
different numbers of rows.
"""

import torch
from torch import Tensor, distributed

from .. import autograd, losses
from ..arguments import check_columns, check_rows, check_scale, check_vector
from ..distributed import Agreement
from ..losses.logits import inverse, logsumexp, nll_from_excess, scaled
from ..spec import PairTerms, product_precision
from ._distributed import all_processes, all_rows, gathered, own_mean
from ._positives import block_logits, classes_of
from ._soft_targets import Way, cross_entropy


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    r"""SimCLR's loss with all positives of a row in one logarithm.

    .. math::
        -\frac1M \sum_i \log \frac{\sum_{p \in P(i)} e^{\hat z_i \cdot \hat z_p / \tau}}
            {\sum_{a \ne i} e^{\hat z_i \cdot \hat z_a / \tau}}

    with ``P(i)`` the other rows of the sample of row i, in all processes. A few numbers are kept for each pair of rows
    of a sample: for V views of N samples ``V^2 N``, for classes as the indexes as many as there are pairs in them.

    Args:
        z: ``(M, D)`` features, those of all views; they are normalised here.
        indexes: ``(M,)`` integers, the sample (or the class) of each row.
        temperature: > 0; a scalar tensor is learnable, and its value is not checked.

    Returns:
        A scalar.

    Raises:
        TypeError: an input is no tensor or of a wrong dtype.
        ValueError: wrong shapes, ``temperature <= 0``, a sample that occurs only once, or arguments that differ between
            processes.

    Source:
        Chen et al., ICML 2020, Eq. 1, for two views; Khosla et al., NeurIPS 2020, Eq. 3 less ``log |P(i)|``, for more.
    """
    with Agreement(all_processes(True), "simclr_loss_func", temperature=temperature) as agreed:
        check_rows("z", z)
        if z.dim() != 2:
            raise ValueError(f"z must have shape (M, D), got {tuple(z.shape)}")
        check_vector("indexes", indexes, "z", z, integer=True)
        temperature = check_scale("temperature", temperature, z)
        agreed.shard(z=z, indexes=indexes)
    ranks = agreed.ranks
    everything, samples = None, indexes
    if not ranks.alone:
        everything = torch.cat(all_rows(z, ranks, travels=True))
        samples = torch.cat(gathered(indexes.to(torch.int64), ranks))
    if torch.unique(samples, return_counts=True)[1].amin() < 2:
        raise ValueError("indexes must name each sample at least twice: a row without another view has no positive")
    classes = classes_of(indexes, None if ranks.alone else samples)
    others = _of_other_samples(z, everything, temperature, classes.row_ids, classes.column_ids)
    terms = []
    for block, logits in zip(classes.blocks, block_logits(z, everything, classes.blocks, temperature), strict=True):
        itself = (ranks.offset + block.rows).unsqueeze(2) == block.columns.unsqueeze(1)
        positives = logsumexp(logits.masked_fill(itself, -torch.inf))
        terms.append(nll_from_excess(others[block.rows] - positives).flatten())
    return torch.cat(terms).mean()


def _of_other_samples(
    z: Tensor, everything: Tensor | None, temperature: float | Tensor, row_ids: Tensor, column_ids: Tensor
) -> Tensor:
    """The log-sum-exp of each row over the rows of other samples, ``(M,)``: among ``everything``, or ``z`` itself."""
    columns = None if everything is None else autograd.prepare(everything, normalize=True)
    unit, precision = autograd.prepare(z, normalize=True), product_precision(z)
    scale = inverse(temperature, unit)
    x, spec = scaled(unit, scale, len(column_ids), unit=True, precision=precision, exclude="same_id")
    if columns is None and x is not unit:
        columns = unit
    terms = PairTerms(row_ids=row_ids, col_ids=None if columns is None else column_ids)
    return autograd.row_lse(x, columns, spec=spec, terms=terms)[0]


def nnclr_loss_func(nn: Tensor, p: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """NNCLR's loss: each nearest neighbour picks the prediction of its sample among those of all.

    Args:
        nn: ``(N, D)`` nearest neighbours of one view; they are normalised here.
        p: predictions of the other, like ``nn``.
        temperature: > 0; a scalar tensor is learnable, and its value is not checked.

    Returns:
        A scalar.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong shapes, ``temperature <= 0``, or arguments that differ between processes.

    Source:
        Dwibedi et al., "With a Little Help from My Friends", ICCV 2021, Eq. 3.
    """
    group = all_processes(True)
    if group is not None:
        return own_mean(losses.info_nce(nn, p, temperature=temperature, reduction="none", group=group))
    check_rows("nn", nn, batched=False)
    check_columns("p", p, nn, same_rows=True, of="nn")
    return losses.info_nce(nn, p, temperature=temperature)


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """MoCo's loss: each query picks its key among the features of a queue. Nothing is normalised here.

    Args:
        query: ``(N, D)`` features of one view, normalised by the caller.
        key: those of the other, like ``query``.
        queue: ``(D, K)`` negatives of every query.
        temperature: > 0; a scalar tensor is learnable, and its value is not checked.

    Returns:
        A scalar, of the queries of this process.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong shapes or ``temperature <= 0``.

    Source:
        He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, Eq. 1.
    """
    check_rows("query", query, batched=False)
    check_columns("key", key, query, same_rows=True, of="query")
    check_rows("queue", queue, batched=False)
    if len(queue) != query.shape[1]:
        raise ValueError(f"queue must have shape ({query.shape[1]}, K), got {tuple(queue.shape)}")
    check_columns("queue", queue.T, query, of="query")
    return losses.info_nce(query, key, temperature=temperature, negatives=queue.T, in_batch=False, normalize=False)


def mocov3_loss_func(query: Tensor, key: Tensor, temperature: float | Tensor = 0.2) -> Tensor:
    """MoCo v3's loss: each query picks its key among those of all, times twice the temperature.

    Args:
        query: ``(N, D)`` features of one view; they are normalised here.
        key: those of the other, like ``query``: constants where `torch.distributed` is initialised.
        temperature: > 0; a scalar tensor is learnable, and its value is not checked.

    Returns:
        A scalar.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong shapes, ``temperature <= 0``, or arguments that differ between processes.

    Source:
        Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021, Algorithm 1.
    """
    group = all_processes(True)
    if group is not None:
        loss = own_mean(losses.info_nce(query, key.detach(), temperature=temperature, reduction="none", group=group))
    else:
        check_rows("query", query, batched=False)
        check_columns("key", key, query, same_rows=True, of="query")
        alone = not (distributed.is_available() and distributed.is_initialized())
        loss = losses.info_nce(query, key if alone else key.detach(), temperature=temperature)
    factor = temperature.to(loss.dtype).reshape(()) if isinstance(temperature, Tensor) else temperature
    return loss * (2 * factor)


def ressl_loss_func(
    q: Tensor,
    k: Tensor,
    queue: Tensor,
    temperature_q: float | Tensor = 0.1,
    temperature_k: float | Tensor = 0.04,
) -> Tensor:
    """ReSSL's loss: a query is to be as similar to the features of a queue as the key is. Nothing is normalised here.

    The cross entropy of the softmaxes over the queue, in blocks of queries that are computed anew for the gradient.

    Args:
        q: ``(N, D)`` features of one view, normalised by the caller.
        k: those of the other, like ``q``; their logits are constants.
        queue: ``(K, D)`` features that both are compared with.
        temperature_q: > 0, of the queries; a scalar tensor is learnable, and its value is not checked.
        temperature_k: > 0, of the keys, likewise.

    Returns:
        A scalar, of the queries of this process.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong shapes, or a temperature that is not > 0.

    Source:
        Zheng et al., "ReSSL: Relational Self-Supervised Learning with Weak Augmentation", NeurIPS 2021, Eqs. 3 to 6.
    """
    check_rows("q", q, batched=False)
    check_columns("k", k, q, same_rows=True, of="q")
    check_columns("queue", queue, q, of="q")
    of_q, of_k = check_scale("temperature_q", temperature_q, q), check_scale("temperature_k", temperature_k, q)
    queries, keys, candidates = (autograd.prepare(side, normalize=False) for side in (q, k, queue))
    # Of the similarities of the keys only their temperature may be learned.
    teacher = Way(keys.detach() * inverse(of_k, keys), candidates.detach())
    return cross_entropy(teacher, Way(queries * inverse(of_q, queries), candidates)).mean()
