"""The features of a whole loss, unit rows or as they are, and their gradients.

Lengths and rows, and the gradient behind them, are what PyTorch has for weight normalisation: one visit where a norm, a
quotient and their derivative are six. It reads and writes what it is given as one piece of memory, unchecked.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import DTYPES, norm_eps

# Lengths of rows whose squares neither over- nor underflow, and whose reciprocals are no longer than any other number.
_SHORTEST = {dtype: max(1e-10, 2 * norm_eps(dtype)) for dtype in DTYPES}
_LONGEST = 1e15
# Of gradients that are projected at a time, so that the result can take their place.
_PIECE_BYTES = 8 << 20

_normalized_backward = torch.ops.aten._weight_norm_interface_backward.default


class Unbounded(Exception):
    """Not ordinary: no tensor has been touched, the composition computes it."""


class Rows(NamedTuple):
    """The features of a loss.

    Attributes:
        of: ``(rows, D)`` of each tensor, as the products see them.
        lengths: ``(rows, 1)`` of each; none where rows are taken as they are.
        bound: of an inner product of two rows.
    """

    of: Sequence[Tensor]
    lengths: Sequence[Tensor]
    bound: float

    def grads(self, *wanted: bool) -> "Grads":
        """Room for gradients, of those that are wanted."""
        found = []
        for x, want in zip(self.of, wanted, strict=True):
            found.append(torch.empty_like(x) if want else None)
        return Grads(self, found)


class Grads(NamedTuple):
    """The gradients of features, before the normalisation.

    Attributes:
        rows: the features.
        of: that of each tensor, or ``None``.
    """

    rows: Rows
    of: Sequence[Tensor | None]

    def behind(self, i: int, factor: float) -> tuple[Tensor, Tensor]:
        """A gradient behind the normalisation, times a factor, in its place or not, and ``(rows, 1)`` inner products
        of the rows with what it was.
        """
        grad, x = self.of[i], self.rows.of[i]
        assert grad is not None
        if not self.rows.lengths:
            products = torch.linalg.vecdot(grad, x).unsqueeze(1)
            return grad.mul_(factor), products
        slope = self.rows.lengths[i].reciprocal().mul_(factor)
        ones, step = torch.ones_like(slope), max(1, _PIECE_BYTES // (x.shape[1] * x.element_size()))
        if x.shape[0] <= step:
            found: tuple[Tensor, Tensor] = _normalized_backward(grad, x, slope, ones, 0)
            return found
        radial = torch.empty_like(slope)
        for start in range(0, x.shape[0], step):
            piece = slice(start, start + step)
            found = _normalized_backward(grad[piece], x[piece], slope[piece], ones[piece], 0)
            grad[piece], radial[piece] = found
        return grad, radial


def prepared(normalize: bool, *features: Tensor) -> Rows:
    """Unit rows, or the rows themselves."""
    given = features[0].dtype
    dtype, of, lengths = torch.float64 if given == torch.float64 else torch.float32, [], []
    for x in features:
        rows = x.to(dtype).contiguous()
        unit, length = torch._weight_norm_interface(rows, rows.new_ones((rows.shape[0], 1)), 0)
        of.append(unit if normalize else rows)
        lengths.append(length)
    low, high = (lengths[0] if len(lengths) == 1 else torch.cat(lengths)).aminmax()
    longest = high.item()
    if not ((_SHORTEST[given] if normalize else -1.0) < low.item() and longest < _LONGEST):  # nan is neither
        raise Unbounded
    return Rows(of, lengths, 1.0) if normalize else Rows(of, (), longest * longest)
