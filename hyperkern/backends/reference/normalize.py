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
        given: ``(rows, D)`` of each tensor, of any dtype and strides.
        of: the same as the products see them; the tensor itself where that is so already.
        lengths: ``(rows, 1)`` of each; none where rows are taken as they are.
        bound: of an inner product of two rows.
    """

    given: Sequence[Tensor]
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
        grad = self.of[i]
        assert grad is not None
        if not self.rows.lengths:
            products = torch.linalg.vecdot(grad, self.rows.of[i]).unsqueeze(1)
            return grad.mul_(factor), products
        x, lengths, (number, dim) = self.rows.given[i], self.rows.lengths[i], grad.shape
        factors, step = torch.full_like(lengths, factor), max(1, _PIECE_BYTES // (dim * grad.element_size()))
        if number <= step:
            found: tuple[Tensor, Tensor] = _normalized_backward(
                grad, x.to(grad.dtype).contiguous(), factors, lengths, 0
            )
            return found
        products = torch.empty_like(lengths)
        for start in range(0, number, step):
            piece = slice(start, start + step)
            rows = x[piece].to(grad.dtype).contiguous()
            grad[piece], products[piece] = _normalized_backward(grad[piece], rows, factors[piece], lengths[piece], 0)
        return grad, products


def prepared(normalize: bool, *features: Tensor) -> Rows:
    """Unit rows, or the rows themselves, of one dtype."""
    given, of, lengths, ones = features[0].dtype, [], [], None
    dtype = torch.float64 if given == torch.float64 else torch.float32
    for x in features:
        rows = x.to(dtype).contiguous()
        if normalize:
            if ones is None or ones.shape[0] != x.shape[0]:
                ones = rows.new_ones((x.shape[0], 1))
            rows, length = torch._weight_norm_interface(rows, ones, 0)
        else:
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        of.append(rows)
        lengths.append(length)
    low, high = (lengths[0] if len(lengths) == 1 else torch.cat(lengths)).aminmax()
    longest = high.item()
    if not ((_SHORTEST[given] if normalize else -1.0) < low.item() and longest < _LONGEST):  # nan is neither
        raise Unbounded
    return Rows(features, of, lengths, 1.0) if normalize else Rows(features, of, (), longest * longest)
