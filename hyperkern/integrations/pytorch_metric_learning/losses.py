"""The losses: their terms, with labels and with named pairs."""

from typing import Any

import torch
from torch import Tensor

from ... import autograd
from ...losses.logits import nll_from_excess
from .._positives import classes_of, logits_of_blocks, numbered
from .base import Found, Loss, Terms
from .named import Named
from .sides import Sides, masked_lse, segment_lse


class NTXentLoss(Loss):
    """NT-Xent with labels: each positive pair on its own against the anchor's rows of other classes.

    The mean over the positive pairs ``(a, p)`` of ``-log(e^{s_ap} / (e^{s_ap} + sum_n e^{s_an}))``, ``n`` over all rows
    of another class, or over the negatives that are named, each as often as it is.

    Args:
        temperature: > 0; a tensor with one element, a parameter for instance, is learned, and its value is not checked.
        **kwargs: the original's other options: ``distance``, ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``collect_stats``.

    Raises:
        NotImplementedError: a value of an option that is not supported.
        TypeError: an option that the original does not have.
        ValueError: ``temperature <= 0``.

    Source:
        Chen et al., ICML 2020, Eq. 1, for any number of positives.
    """

    _original, _reducer, _kind = "NTXentLoss", "MeanReducer", "pos_pair"

    def __init__(self, temperature: float | Tensor = 0.07, **kwargs: Any) -> None:
        super().__init__(temperature, kwargs)

    def default_sum(self, found: Found) -> tuple[Tensor, Tensor | int]:
        """Of all positive pairs."""
        sums = []
        for values, _, present in found.terms:
            sums.append((values if present is None else torch.where(present, values, 0)).sum())
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0], found.positive

    def _of_labels(self, sides: Sides, labels: Tensor, y_labels: Tensor, itself: bool) -> Found:
        if sides.is_small:
            same = labels.unsqueeze(1) == y_labels
            logits = sides.logits()
            values = nll_from_excess(masked_lse(logits, same).unsqueeze(1) - logits)
            present = same.clone().fill_diagonal_(False) if itself else same
            numbers = [torch.arange(len(side), device=same.device) for side in (labels, y_labels)]
            # Not by the diagonal: a label nan is not equal to itself.
            positive, equal = torch.stack([present.sum(), same.sum()]).tolist()
            terms = [Terms(values, (numbers[0].unsqueeze(1), numbers[1]), present)]
        else:
            classes = classes_of(labels, None if y_labels is labels else y_labels)
            equal = classes.pairs
            positive = equal - itself * len(labels)
            lse = sides.row_lse("same_id", classes.row_ids, classes.column_ids)
            terms = [] if classes.blocks else [Terms(lse[:0], (classes.row_ids[:0],) * 2)]
            logits_of = logits_of_blocks(sides.x, sides.y, classes.blocks, sides.spec.scale)
            for (rows, columns), logits in zip(classes.blocks, logits_of, strict=True):
                values = nll_from_excess(lse[rows].unsqueeze(-1) - logits)
                indices = rows.unsqueeze(-1), columns.unsqueeze(-2)
                terms.append(Terms(values, indices, indices[0] != indices[1] if itself else None))
        return Found(terms, positive, sides.pairs - equal)

    def _of_pairs(self, sides: Sides, named: Named) -> Found:
        anchors, positives, others, negatives = named
        of_positives, of_negatives = sides.logits_of((anchors, positives), (others, negatives))
        lse = segment_lse(of_negatives, others, len(sides.x))
        values = nll_from_excess(lse[anchors] - of_positives)
        return Found([Terms(values, (anchors, positives))], len(anchors), len(others))


class SupConLoss(Loss):
    """Supervised contrastive loss, averaged over the rows whose loss is > 0.

    Args:
        temperature: > 0; a tensor with one element, a parameter for instance, is learned, and its value is not checked.
        **kwargs: the original's other options: ``distance``, ``reducer``, ``embedding_regularizer``,
            ``embedding_reg_weight``, ``collect_stats``.

    Raises:
        NotImplementedError: a value of an option that is not supported.
        TypeError: an option that the original does not have.
        ValueError: ``temperature <= 0``.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2.
    """

    _original, _reducer, _kind = "SupConLoss", "AvgNonZeroReducer", "element"

    def __init__(self, temperature: float | Tensor = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature, kwargs)

    def default_sum(self, found: Found) -> tuple[Tensor, Tensor | int]:
        """Of the rows whose loss is > 0."""
        ((values, _, _),) = found.terms
        return values.relu().sum(), (values > 0).sum()

    def _of_labels(self, sides: Sides, labels: Tensor, y_labels: Tensor, itself: bool) -> Found:
        if sides.is_small:
            same = labels.unsqueeze(1) == y_labels
            present, left_out = same, None
            if itself:
                present = same.clone().fill_diagonal_(False)
                left_out = torch.eye(*same.shape, dtype=torch.bool, device=same.device)
            positive, equal = torch.stack([present.sum(), same.sum()]).tolist()
            values = _dense(sides.logits(), present, left_out)
        else:
            row_ids, column_ids, number = numbered(labels, None if y_labels is labels else y_labels)
            count = torch.bincount(column_ids, minlength=number)[row_ids]
            equal = int(count.sum())
            positive = equal - itself * len(labels)
            lse = sides.row_lse("self" if itself else "none")
            # The mean of the logits of the positives needs no pairs: it is the logit of their mean.
            positives = autograd.class_sums(sides.columns, column_ids, row_ids, number)
            if itself:
                positives, count = positives - sides.columns[: len(labels)], count - 1
            values = _terms(lse, sides.spec.scale * (sides.x * positives).sum(-1), count)
        return Found([_of_rows(values)], positive, sides.pairs - equal)

    def _of_pairs(self, sides: Sides, named: Named) -> Found:
        positives, negatives = named[:2], named[2:]
        # A pair counts once, however often it is named.
        if sides.is_dense(len(positives[0]) + len(negatives[0])):
            logits = sides.logits()
            positive, negative = torch.zeros(2, *logits.shape, dtype=torch.bool, device=logits.device)
            positive[positives], negative[negatives] = True, True
            _check_disjoint(bool((positive & negative).any()))
            values = _dense(logits, positive, ~(positive | negative))
        else:
            width = len(sides.columns)
            once = [(rows * width + columns).unique() for rows, columns in (positives, negatives)]
            both = torch.cat(once)
            _check_disjoint(len(both.unique()) < len(both))
            rows, number = both // width, len(sides.x)
            (logits,) = sides.logits_of((rows, both % width))
            lse = segment_lse(logits, rows, number)
            rows, logits = rows[: len(once[0])], logits[: len(once[0])]
            total = torch.zeros_like(lse).index_add(0, rows, logits)
            values = _terms(lse, total, torch.bincount(rows, minlength=number))
        return Found([_of_rows(values)], len(positives[0]), len(negatives[0]))


def _dense(logits: Tensor, positive: Tensor, left_out: Tensor | None) -> Tensor:
    """The terms of rows from the logits of all pairs."""
    if left_out is not None:  # by a finite number: the gradient of a row of -inf alone is nan
        logits = logits.masked_fill(left_out, torch.finfo(logits.dtype).min / 2)
    sums = (logits.log_softmax(1) * positive).sum(1)
    return sums / -positive.sum(1).clamp_min(1)


def _terms(lse: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Those of rows with the sum of the logits of so many positives; 0 for a row without."""
    return torch.where(count > 0, lse - total / count.clamp_min(1), 0)


def _of_rows(values: Tensor) -> Terms:
    return Terms(values, (torch.arange(len(values), device=values.device),))


def _check_disjoint(both: bool) -> None:
    if both:
        raise ValueError("indices_tuple must name each pair as positive or as negative, got some as both")
