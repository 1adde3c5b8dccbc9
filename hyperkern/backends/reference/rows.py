"""The features of a whole loss in one piece, unit rows or as they are, and their gradients likewise."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...spec import DTYPES, norm_eps

# Lengths of rows whose squares neither over- nor underflow, and whose reciprocals are no longer than any other number.
_SHORTEST = {dtype: max(1e-10, 2 * norm_eps(dtype)) for dtype in DTYPES}
_LONGEST = 1e15
# Of rows that are multiplied with their gradients at a time: the products are thrown away.
_PIECE_BYTES = 8 << 20


class Unbounded(Exception):
    """Not ordinary: no tensor has been touched, the composition computes it."""


class Rows(NamedTuple):
    """The features of a loss, one after the other.

    Attributes:
        all: ``(rows, D)``, as the products see them.
        rstd: ``(rows, 1)`` reciprocal lengths; ``None`` where rows are taken as they are.
        of: those of each tensor.
        sizes: their numbers.
        bound: of an inner product of two rows.
    """

    all: Tensor
    rstd: Tensor | None
    of: Sequence[Tensor]
    sizes: list[int]
    bound: float

    def grads(self, *wanted: bool) -> "Grads":
        """Room for gradients, of those that are wanted and those before them."""
        if True not in wanted:
            return Grads(self, None, (None,) * len(wanted))
        if False not in wanted:
            room = torch.empty_like(self.all)
            return Grads(self, room, (room,) if len(wanted) == 1 else room.split_with_sizes(self.sizes))
        last = max([i + 1 for i, want in enumerate(wanted) if want])
        room = self.all.new_zeros(sum(self.sizes[:last]), self.all.shape[1])
        parts = [*room.split_with_sizes(self.sizes[:last]), *(None,) * (len(wanted) - last)]
        return Grads(self, room, [part if want else None for part, want in zip(parts, wanted, strict=True)])


class Grads(NamedTuple):
    """The gradients of features, before the normalisation.

    Attributes:
        rows: the features.
        all: ``(rows, D)`` of the first rows; ``None`` where none is wanted.
        of: that of each tensor, or ``None``.
    """

    rows: Rows
    all: Tensor | None
    of: Sequence[Tensor | None]

    def inner_products(self) -> Tensor:
        """That of each row with its own gradient, ``(rows, 1)``."""
        assert self.all is not None
        step = max(1, _PIECE_BYTES // (self.all.shape[1] * self.all.element_size()))
        if self.all.shape[0] <= step:
            return (self.all * self.rows.all[: self.all.shape[0]]).sum(1, keepdim=True)
        pieces = zip(self.all.split(step), self.rows.all[: self.all.shape[0]].split(step), strict=True)
        return torch.cat([(grad * rows).sum(1, keepdim=True) for grad, rows in pieces])

    def state(self, factor: float | Tensor, radial: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the backward pass multiplies: ``(rows, D)`` along the sphere and a factor for each row.

        ``radial`` are the `inner_products`, if they are known.
        """
        if self.all is None:
            return ()
        if self.rows.rstd is None:
            return self.all, torch.as_tensor(factor, dtype=self.all.dtype)
        rows, rstd = self.rows.all, self.rows.rstd
        if rows.shape[0] > self.all.shape[0]:
            rows, rstd = rows[: self.all.shape[0]], rstd[: self.all.shape[0]]
        radial = self.inner_products() if radial is None else radial
        return self.all.addcmul_(rows, radial, value=-1), rstd * factor


def prepared(normalize: bool, *features: Tensor) -> Rows:
    """Unit rows, or the rows themselves, of all features in one piece."""
    given = features[0].dtype
    rows = torch.cat(features).to(torch.float64 if given == torch.float64 else torch.float32)
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    low, high = lengths.aminmax()
    longest, shortest = high.item(), _SHORTEST[given] if normalize else -1.0
    if not (shortest < low.item() and longest < _LONGEST):  # nan is neither
        raise Unbounded
    sizes = [x.shape[0] for x in features]
    of = rows.split_with_sizes(sizes) if len(features) > 1 else (rows,)
    if not normalize:
        return Rows(rows, None, of, sizes, longest * longest)
    rows /= lengths
    return Rows(rows, lengths.reciprocal_(), of, sizes, 1.0)
