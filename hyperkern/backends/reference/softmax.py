"""What whole losses with a softmax have in common: the shift of the logits, and what an anchor adds to the loss."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ...spec import LOG2_LIMIT, is_bounded
from .normalize import Rows, Unbounded
from .pairs import Pairs

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
    """What the losses with a softmax have in common: the shift of the logits, and what an anchor adds to the loss.

    Args:
        rows: all features.
        scale: of the logits, >= 0.
        terms: the most candidates of an anchor.
    """

    def __init__(self, rows: Rows, scale: float, terms: int) -> None:
        dtype, bound = rows.of[0].dtype, scale * rows.bound
        self.scale, self.shift = scale, _shift(bound * 1.0001, terms, dtype)
        # e^(r - p) is a quotient of sums while both are of moderate size: logarithms of 15 have lost a digit.
        self.moderate = not self.shift and bound <= _MODERATE
        self.least = terms * 2.0 ** _LOG2_SMALLEST[dtype] if self.shift else 0.0
        self.value = 0.0  # the sum over the anchors so far, rounded to the dtype of the loss once, in the end

    def add(self, losses: Tensor) -> None:
        """Those of some anchors."""
        self.value += losses.sum(dtype=torch.float64).item()

    def pairs(self, x: Tensor, y: Tensor, *left_out: tuple[int, Tensor | None]) -> Pairs:
        """Some rows against others."""
        return Pairs(x, y, self.scale, self.shift, False, left_out)

    def among(self, x: Tensor, *left_out: tuple[int, Tensor | None]) -> Pairs:
        """Rows against each other."""
        return Pairs(x, x, self.scale, self.shift, True, left_out)

    def check(self, sums: Tensor) -> None:
        """Whether a shift that suits the largest logits has left enough of the smallest sum."""
        if not sums.min().item() > self.least:
            raise Unbounded

    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """``scale <x_i, y_i> - shift`` of each row of both."""
        logits: Tensor = torch.linalg.vecdot(x, y).mul_(self.scale)
        return logits.sub_(self.shift) if self.shift else logits

    def coupled(self, sums: Tensor, positives: Tensor) -> Tensor:
        """Adds ``-log p`` of the positives; the factor of the exponentials, with which ``sums`` make ``1 - p``.

        Not of the sum with the positive in it: the loss of a confident model is the small difference.
        """
        if self.shift:
            self.check(sums)
        partner = positives.exp()
        if self.moderate:
            self.add((sums / partner).log1p_())
        else:
            self.add(F.softplus(sums.log().sub_(positives), threshold=SOFTPLUS_IS_LINEAR))
        return (sums + partner).reciprocal_()

    def decoupled(self, sums: Tensor, positives: Tensor, weights: Tensor | None) -> Tensor:
        """Adds the log-sum-exps less the weighted positives; the factor of the exponentials."""
        if self.shift:
            self.check(sums)
        if weights is not None:
            self.add(sums.log() + self.shift - (positives + self.shift) * weights)
        else:
            self.add((sums / positives.exp()).log_() if self.moderate else sums.log() - positives)
        return sums.reciprocal_()
