"""What whole losses with a softmax have in common: the shift of the logits, and what an anchor adds to the loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...spec import LOG2_LIMIT, is_bounded
from .pairs import Pairs
from .rows import Rows, Unbounded

# Of an exponential beside the smallest sum that it is part of, in powers of two: what may be lost.
_LOG2_SMALLEST = {torch.float32: -101, torch.float64: -950}
# The largest logit up to which the quotient of two sums of exponentials is far from over- and underflow.
_MODERATE = 30.0
# Beyond 40 log(1 + e^x) is x, to the last bit of float64.
SOFTPLUS_IS_LINEAR = 40.0


def _shift(bound: float, terms: int, dtype: torch.dtype) -> float:
    """What to subtract from logits up to ``bound`` so that a sum of so many exponentials does not overflow."""
    if is_bounded(bound, terms, dtype):
        return 0.0
    if not math.isfinite(bound):
        raise Unbounded
    return bound - (LOG2_LIMIT[dtype] * math.log(2) - math.log(terms))


class Softmax:
    """What the losses with a softmax have in common: rows, positives, and the parts of a loss of one anchor.

    Args:
        rows: all features.
        scale: of the logits.
        terms: the most candidates of an anchor.
    """

    def __init__(self, rows: Rows, scale: float, terms: int) -> None:
        self.rows, self.scale = rows, scale
        self.shift = _shift(abs(scale) * rows.bound * 1.0001, terms, rows.all.dtype)
        # e^(r - p) is a quotient of sums while both are of moderate size: logarithms of 15 have lost a digit.
        self.moderate = not self.shift and abs(scale) * rows.bound <= _MODERATE
        self.least = terms * 2.0 ** _LOG2_SMALLEST[rows.all.dtype] if self.shift else 0.0
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """The sum over the anchors so far."""
        assert self._value is not None
        return self._value

    def add(self, losses: Tensor) -> None:
        """Those of some anchors."""
        total = losses.sum(dtype=torch.float64)  # rounded once, in the end
        self._value = total if self._value is None else self._value.add_(total)

    def pairs(
        self, x: Tensor, y: Tensor, left_out: tuple[int, ...] = (), read: tuple[tuple[int, Tensor], ...] = ()
    ) -> Pairs:
        """Some rows against others."""
        return Pairs(x, y, self.scale, self.shift, left_out, read)

    def check(self, sums: Tensor) -> None:
        """Whether a shift that suits the largest logits has left enough of the smallest sum."""
        if not sums.min().item() > self.least:
            raise Unbounded

    def positives(self) -> Tensor:
        """``scale <x_i, y_i> - shift`` of the first two parts."""
        positives = (self.rows.of[0] * self.rows.of[1]).sum(1).mul_(self.scale)
        return positives.sub_(self.shift) if self.shift else positives

    def coupled(self, sums: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
        """Adds ``-log p`` of the positives; the factor of the exponentials, and ``1 - p``.

        Not of the sum with the positive in it: the loss of a confident model is the small difference.
        """
        if self.shift:
            self.check(sums)
        partner = positives.exp()
        excess = (sums / partner).log_() if self.moderate else sums.log().sub_(positives)
        self.add(F.softplus(excess, threshold=SOFTPLUS_IS_LINEAR))
        return sums.add_(partner).reciprocal_(), excess.sigmoid_()

    def decoupled(self, sums: Tensor, positives: Tensor, weights: Tensor | None) -> Tensor:
        """Adds the log-sum-exps less the weighted positives; the factor of the exponentials."""
        if self.shift:
            self.check(sums)
        if weights is not None:
            self.add(sums.log() + self.shift - (positives + self.shift) * weights)
        else:
            self.add((sums / positives.exp()).log_() if self.moderate else sums.log() - positives)
        return sums.reciprocal_()
