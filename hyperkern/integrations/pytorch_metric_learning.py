"""Drop-in for PyTorch Metric Learning: import `NTXentLoss` or `SupConLoss` from here instead of from its ``losses``.

They have the calls and the values of the original with its default distance, the cosine similarity, and its default
reducers, without a matrix of all pairs. `NTXentLoss` keeps a few numbers for each positive pair, since each has a term
of its own (for C classes of equal size ``N^2 / C`` of them, for two views of each sample ``4 N``), `SupConLoss` none.
What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the features;
- ``indices_tuple``, so miners too, and another distance, reducer or regularizer are refused, in the constructor and
  when they are set after it;
- the original bounds a term of `NTXentLoss` by ``-log(tiny)``, 87.3 in float32, and has no gradient beyond;
- `SupConLoss` averages over the rows whose loss is > 0, as the original does: where losses are as small as their
  rounding errors, which rows count is a matter of rounding.
"""

from typing import Any

import torch
from torch import Tensor

from .. import autograd, losses
from ..arguments import check_columns, check_positive, check_rows
from ..losses.logits import nll_from_excess
from ..spec import accumulate_dtype
from ._options import DropIn
from ._positives import block_logits, classes_of, numbered

# What the original's losses take beside the temperature, and has to be left alone.
_OPTIONS = ("distance", "reducer", "embedding_regularizer", "collect_stats")


class _Loss(DropIn):
    _not_here = (
        "loss_method",
        "set_reducer",
        "get_default_distance",
        "get_default_reducer",
        "compute_loss",
        "_compute_loss",
        "mat_based_loss",
        "pair_based_loss",
        "add_embedding_regularization_to_loss_dict",
        "embedding_regularization_loss",
    )

    def __init__(self, temperature: float, options: dict[str, Any]) -> None:
        super().__init__()
        check_positive("temperature", temperature)
        for name, value in options.items():
            if name not in (*_OPTIONS, "embedding_reg_weight"):  # a weight of what is not there
                raise TypeError(f"{type(self).__name__} has no option {name!r}")
            self._check_option(name, value)
        self.temperature = temperature

    def _check_option(self, name: str, value: Any) -> None:
        off = value is None or (name == "collect_stats" and not value)
        if name in _OPTIONS and not off:
            raise NotImplementedError(f"{name}={value!r} is not supported here: only the original's default is")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of labelled features.

        Args:
            embeddings: ``(N, D)`` anchors; they are normalised here.
            labels: ``(N,)`` their classes, of any dtype.
            indices_tuple: not supported.
            ref_emb: ``(M, D)`` other features as the candidates instead of those of ``embeddings``.
            ref_labels: ``(M,)`` their classes. By default, and as in the original if this is the very tensor that is
                passed as ``labels``, they are ``labels``, and row i of ``ref_emb`` is then no positive of row i; pass
                ``labels.clone()`` if it is one.

        Returns:
            A scalar; 0, with gradient 0, where there is no positive or no negative pair.

        Raises:
            NotImplementedError: ``indices_tuple`` is given.
            TypeError: an input is no tensor or of a wrong dtype, or the dtypes differ.
            ValueError: no ``labels``, or wrong shapes.
        """
        if indices_tuple is not None:
            raise NotImplementedError("indices_tuple is not supported here: all pairs of the labels count")
        check_rows("embeddings", embeddings, batched=False)
        if labels is None:
            raise ValueError("labels must be given: indices_tuple, the other way to name the pairs, is not supported")
        labels = _checked_labels("labels", labels, "embeddings", embeddings)
        if ref_emb is None:
            return self._loss(embeddings, labels, None, labels)
        check_columns("ref_emb", ref_emb, embeddings)
        name, ref_labels = ("labels", labels) if ref_labels is None else ("ref_labels", ref_labels)
        return self._loss(embeddings, labels, ref_emb, _checked_labels(name, ref_labels, "ref_emb", ref_emb))

    def _loss(self, x: Tensor, labels: Tensor, y: Tensor | None, y_labels: Tensor) -> Tensor:
        """The loss against ``y``, or against ``x``; a row is no positive of itself if ``y_labels`` is ``labels``."""
        raise NotImplementedError


class NTXentLoss(_Loss):
    """NT-Xent with labels: each positive pair on its own against the anchor's rows of other classes.

    The mean over the positive pairs ``(a, p)`` of ``-log(e^{s_ap} / (e^{s_ap} + sum_n e^{s_an}))``, ``n`` over all rows
    of another class.

    Args:
        temperature: > 0.
        **kwargs: the original's other options, with their defaults only.

    Raises:
        NotImplementedError: an option of the original that is not supported.
        TypeError: an option that the original does not have.
        ValueError: ``temperature <= 0``.

    Source:
        Chen et al., ICML 2020, Eq. 1, for any number of positives.
    """

    def __init__(self, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, kwargs)

    def _loss(self, x: Tensor, labels: Tensor, y: Tensor | None, y_labels: Tensor) -> Tensor:
        without_diagonal = y_labels is labels
        classes = classes_of(labels, None if without_diagonal else y_labels)
        positive = classes.pairs - without_diagonal * len(labels)
        negative = len(labels) * len(y_labels) - classes.pairs
        if not _has_pairs(positive, negative):
            return _zero(x)
        lse, _ = losses.pairwise_logsumexp(
            x,
            y,
            logit_scale=1 / self.temperature,
            exclude="same_id",
            x_ids=classes.row_ids,
            y_ids=None if y is None else classes.column_ids,
        )
        total = torch.zeros_like(lse[0])
        for block, logits in zip(classes.blocks, block_logits(x, y, classes.blocks, self.temperature), strict=True):
            terms = nll_from_excess(lse[block.rows].unsqueeze(-1) - logits)
            if without_diagonal:
                terms = terms.masked_fill(torch.eye(terms.shape[-1], dtype=torch.bool, device=x.device), 0)
            total = total + terms.sum()
        return total / positive


class SupConLoss(_Loss):
    """Supervised contrastive loss, averaged over the rows whose loss is > 0.

    Args:
        temperature: > 0.
        **kwargs: the original's other options, with their defaults only.

    Raises:
        NotImplementedError: an option of the original that is not supported.
        TypeError: an option that the original does not have.
        ValueError: ``temperature <= 0``.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2.
    """

    def __init__(self, temperature: float = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature, kwargs)

    def _loss(self, x: Tensor, labels: Tensor, y: Tensor | None, y_labels: Tensor) -> Tensor:
        without_diagonal = y_labels is labels
        row_ids, column_ids, number = numbered(labels, None if without_diagonal else y_labels)
        count = torch.bincount(column_ids, minlength=number)[row_ids]
        same = int(count.sum())
        if not _has_pairs(same - without_diagonal * len(labels), len(labels) * len(y_labels) - same):
            return _zero(x)
        exclude = "self" if without_diagonal else "none"
        lse, _ = losses.pairwise_logsumexp(x, y, logit_scale=1 / self.temperature, exclude=exclude)
        # The mean of the logits of the positives needs no pairs: it is the logit of their mean.
        rows = autograd.prepare(x, normalize=True)
        columns = rows if y is None else autograd.prepare(y, normalize=True)
        positives = autograd.class_sums(columns, column_ids, row_ids, number)
        if without_diagonal:
            positives, count = positives - columns, count - 1
        logits = (rows * positives).sum(-1) / count.clamp_min(1) / self.temperature
        terms = lse - logits
        counts = (count > 0) & (terms > 0)
        return torch.where(counts, terms, 0).sum() / counts.sum().clamp_min(1)


def _checked_labels(name: str, labels: Tensor, rows_name: str, rows: Tensor) -> Tensor:
    """The labels on the device of their rows."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.shape != rows.shape[:1]:
        expected = f"({rows.shape[0]},), one label for each row of {rows_name}"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(labels.shape)}")
    return labels.to(rows.device)


def _has_pairs(positive: int, negative: int) -> bool:
    """Whether the original computes a loss: it does not either where there is one pair of each kind at most."""
    return min(positive, negative) > 0 and max(positive, negative) > 1


def _zero(x: Tensor) -> Tensor:
    return (0 * x).sum(dtype=accumulate_dtype(x.dtype))
