"""Rows and columns as the losses see them, and the logits of all or some of their pairs."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import autograd
from ...losses.logits import inverse, logsumexp, scaled, scaled_views
from ...spec import PairSpec, PairTerms, product_precision

# Elements of a matrix of all pairs that is made at once: a few calls of PyTorch, where blocks and classes take many.
DENSE = 512 * 512


class Sides(NamedTuple):
    """Prepared features and the scale of their inner products.

    Attributes:
        x: ``(N, D)`` rows, the anchors.
        y: ``(M, D)`` columns; ``None`` for ``x``.
        spec: the problem, without an exclusion.
    """

    x: Tensor
    y: Tensor | None
    spec: PairSpec

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None, *, temperature: float | Tensor, normalize: bool) -> "Sides":
        """Those of features as they come; without ``y`` the rows are the columns."""
        precision = product_precision(x)
        # As the original does it, in fewer calls; half precision does not hold the squares.
        plain = normalize and x.itemsize > 2 and len(x) * len(x if y is None else y) <= DENSE
        rows = F.normalize(x, dim=1) if plain else autograd.prepare(x, normalize=normalize)
        if y is None:
            (rows,), spec = scaled_views([rows], temperature, len(x), unit=normalize, precision=precision)
            return cls(rows, None, spec)
        columns = F.normalize(y, dim=1) if plain else autograd.prepare(y, normalize=normalize)
        rows, spec = scaled(rows, inverse(temperature, x), len(y), unit=normalize, precision=precision)
        return cls(rows, columns, spec)

    @property
    def columns(self) -> Tensor:
        """Those of either kind."""
        return self.x if self.y is None else self.y

    @property
    def pairs(self) -> int:
        """How many there are."""
        return len(self.x) * len(self.columns)

    @property
    def is_small(self) -> bool:
        """Whether there is room for the matrix of all pairs."""
        return self.pairs <= DENSE

    def logits(self) -> Tensor:
        """Those of all pairs, ``(N, M)``."""
        # Unit rows are float32 for the accuracy of these logits: autocast would round them before they are multiplied.
        with torch.autocast(self.x.device.type, enabled=False):
            return self.spec.scale * (self.x @ self.columns.mT)

    def logits_of(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """Those of some pairs, ``(P,)`` for each ``(rows, columns)``.

        Of the matrix of all pairs, if there are so many that their features would be larger.
        """
        if self.is_dense(sum(len(rows) for rows, _ in pairs)):
            every = self.logits()
            return [every[pair] for pair in pairs]
        return [self.spec.scale * (self.x[rows] * self.columns[columns]).sum(-1) for rows, columns in pairs]

    def is_dense(self, named: int) -> bool:
        """Whether the matrix of all pairs has fewer elements than the features of so many."""
        return self.pairs <= named * self.x.shape[1]

    def row_lse(self, exclude: str, row_ids: Tensor | None = None, column_ids: Tensor | None = None) -> Tensor:
        """Log-sum-exp over the columns for each row, without the matrix."""
        terms = PairTerms(row_ids=row_ids, col_ids=None if self.y is None else column_ids)
        return autograd.row_lse(self.x, self.y, spec=self.spec._replace(exclude=exclude), terms=terms)[0]


def masked_lse(logits: Tensor, left_out: Tensor) -> Tensor:
    """Log-sum-exp over the columns that are not left out; -inf, with gradient 0, where all are."""
    return logsumexp(logits.masked_fill(left_out, -torch.inf))


def segment_lse(values: Tensor, segments: Tensor, number: int) -> Tensor:
    """Log-sum-exp of the values of each segment, ``(number,)``; -inf, with gradient 0, for one without values."""
    known = values.detach()
    top = known.new_full((number,), -torch.inf).scatter_reduce(0, segments, known, "amax")
    top = top.masked_fill(top == -torch.inf, 0)
    total = torch.zeros_like(top).index_add(0, segments, (values - top[segments]).exp())
    empty = total == 0
    return (total.masked_fill(empty, 1).log() + top).masked_fill(empty, -torch.inf)
