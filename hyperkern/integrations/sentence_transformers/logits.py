"""The scaled similarities of a ranking loss, and their log-sum-exps over the columns of all processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ... import autograd
from ...distributed import Ranks
from ...losses.logits import merged, scaled
from ...spec import PairTerms


class Logits:
    """Scaled similarities of prepared rows.

    Args:
        scale: of the similarities, a number or a tensor with one.
        unit: whether the rows have unit length.
        precision: `PairSpec.precision`.
        ranks: the processes whose rows are columns.
    """

    def __init__(self, scale: float | Tensor, unit: bool, precision: str, ranks: Ranks) -> None:
        self.scale, self.unit, self.precision, self.ranks = scale, unit, precision, ranks

    def of_pairs(self, x: Tensor, y: Tensor, *, boost: float = 0.0) -> Tensor:
        """The logit of each row of ``x`` and the same row of ``y``; ``boost`` as below."""
        similarities = (x * y).sum(-1)
        scale = self.scale.to(x.dtype).reshape(()) if isinstance(self.scale, Tensor) else self.scale
        logits = scale * similarities
        return logits if not boost else logits + boost * similarities.detach()

    def lse(
        self, x: Tensor, *columns: Tensor, with_own: bool = True, boost: float = 0.0, both: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The log-sum-exp of each row of ``x`` over those of the columns on all ranks.

        Args:
            x: ``(N, D)``.
            *columns: ``(K, D)`` each, whose first N rows are of the samples of ``x``; none for ``x`` itself. On several
                ranks, and of several columns unless ``with_own``, K is N.
            with_own: whether rows of the same sample count.
            boost: added to the scale, without a gradient: the logits are larger, their slope is that of the scale.
            both: whether that of each row of the columns over ``x`` is wanted too, the second of the results.
        """
        scale, share = self._boosted(boost)
        candidates = -(-max(sum(map(len, columns)), len(x)) // len(x)) * self.ranks.total
        exclude = "none" if with_own else "self" if len(columns) < 2 else "same_id"
        remotes = [autograd.share(self.ranks, column) for column in columns or (x,)]
        y = None if not columns else columns[0] if len(columns) == 1 else torch.cat(columns)
        if y is None and isinstance(scale, Tensor):
            columns, y = (x,), x  # which is not scaled, as the rows are
        rows, spec = scaled(x, scale, candidates, unit=self.unit, precision=self.precision, exclude=exclude)
        row_lse, col_lse = autograd.row_lse(rows, y, spec=spec, terms=_samples(exclude, x, columns), need_cols=both)
        spec = spec._replace(exclude="none")  # on other ranks there are other samples
        there = [
            autograd.remote_row_lse(rows, column, remote, spec=spec, need_cols=both)
            for column, remote in zip(columns or (None,), remotes, strict=True)
            if remote is not None
        ]
        row_lse = merged(row_lse, *(part.row_lse for part in there))
        if there and both:
            col_lse = merged(col_lse, torch.cat([part.col_lse for part in there]))
        if not boost:
            return row_lse, col_lse
        return share * row_lse + (1 - share) * row_lse.detach(), share * col_lse + (1 - share) * col_lse.detach()

    def _boosted(self, boost: float) -> tuple[float | Tensor, float | Tensor]:
        """The scale with what is added, and the share of the log-sum-exps that has a gradient.

        The derivative by a logit is its softmax weight, whatever made the logit: only its slope must be put right.
        """
        if not boost or not isinstance(self.scale, Tensor):
            return self.scale + boost, self.scale / (self.scale + boost)
        known = self.scale.detach()
        share = known / (known + boost)
        # The share is of the slope by a row, not by the scale.
        return known + boost + (self.scale - known) / share, share


def _samples(exclude: str, x: Tensor, columns: Sequence[Tensor]) -> PairTerms | None:
    """The sample of each row, where several columns have rows of it."""
    if exclude != "same_id":
        return None
    samples = torch.arange(len(x), device=x.device)
    return PairTerms(row_ids=samples, col_ids=samples.repeat(len(columns)))
