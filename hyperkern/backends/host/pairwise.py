"""The pairwise primitives, made of two that a backend has kernels for: sums of pairs and weighted sums of rows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ...spec import PairSpec, PairTerms
from .. import LogSumExp
from .partials import Side, Sums

_Operands = TypeVar("_Operands", bound="Operands")


@dataclass(frozen=True)
class Operands:
    """A pairwise problem as kernels take it: rows ``x`` against columns ``y``. A backend adds what it needs besides.

    Attributes:
        x: ``(B, M, D')`` in the dtype of the product, unit stride along D'. D' is D, or D padded with zeros.
        y: ``(B, N, D')``, likewise; ``x`` itself where the problem is symmetric.
        terms: log-weights and ids of both sides.
        spec: the problem.
        symmetric: whether ``y`` is ``x``.
        kind: ``bfloat16``, ``float16``, ``tf32`` or ``float32`` (three tf32 products).
    """

    x: Tensor
    y: Tensor
    terms: PairTerms
    spec: PairSpec
    symmetric: bool
    kind: str

    def swapped(self: _Operands) -> _Operands:
        """The same pairs with the roles of rows and columns exchanged."""
        u, v, row_ids, col_ids = self.terms
        return replace(self, x=self.y, y=self.x, terms=PairTerms(v, u, col_ids, row_ids))

    @property
    def plain(self) -> bool:
        """Whether exponentials are taken of the logits as they are.

        Relative to a maximum or a log-sum-exp an exponent is small where it counts, and its rounding too. Operands of
        half precision do not see the difference, float32 does.
        """
        return self.spec.bounded and self.kind != "float32"


class Factors(NamedTuple):
    """What weighs the pairs of `pair_grad`: ``a_i exp(l_ij - row_lse_i) + b_j exp(l_ij - col_lse_j)``."""

    row_lse: Tensor | None = None
    a: Tensor | None = None
    col_lse: Tensor | None = None
    b: Tensor | None = None

    def swapped(self) -> "Factors":
        """With the roles of rows and columns exchanged."""
        return Factors(self.col_lse, self.b, self.row_lse, self.a)


class Pairwise(NamedTuple):
    """The pairwise functions of `Backend`, for float32 sums.

    Attributes:
        as_operands: ``(x, y, terms, spec, *, weights=None)``; ``weights`` is the mode of the weights where a second
            product follows.
        pair_sums: ``(operands, mode, *, need_cols, total)``, the row sums and, on request, the column sums of the
            modes ``exp`` and ``softplus``; relative to maxima where the mode is ``running``. With ``total`` the sum of
            the row sums alone is right.
        contract: ``(operands, mode, factors, *, need_x, need_y)``, the weighted sums of either side, where needed:
            with weights ``exp`` or ``softplus``, or with factors ``bounded`` or ``running``.
    """

    as_operands: Callable[..., Operands]
    pair_sums: Callable[..., tuple[Sums, Sums]]
    contract: Callable[..., tuple[Side | None, Side | None]]

    def row_lse(self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, *, need_cols: bool) -> LogSumExp:
        """Row and column log-sum-exp; plain sums in the bounded regime."""
        o = self.as_operands(x, y, terms, spec)
        rows, cols = self.pair_sums(o, "exp" if o.plain else "running", need_cols=need_cols, total=False)
        (row_lse, row_rounding), (col_lse, col_rounding) = rows.logarithm(), cols.logarithm()
        return LogSumExp(row_lse, col_lse, row_rounding, col_rounding)

    def pair_grad(
        self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec,
        row_lse: Tensor, col_lse: Tensor | None, a: Tensor, b: Tensor | None, *, need_x: bool, need_y: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Weighted sums of rows and columns; each side is a pass of its own over the pairs while D <= 256."""
        if y is None:
            col_lse, b = row_lse, a
        if not (need_x or need_y):
            return *_nothing(x), *_nothing(x)
        o = self.as_operands(x, y, terms, spec, weights="bounded")
        mode = "bounded" if o.plain else "running"
        factors = Factors(*(None if t is None else t.float() for t in (row_lse, a, col_lse, b)))
        return _results(x, *self.contract(o, mode, factors, need_x=need_x, need_y=need_y))

    def energy(
        self, x: Tensor, y: Tensor | None, terms: PairTerms, spec: PairSpec, potential: str,
        *, need_x: bool, need_y: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Total and weighted sums; the total alone costs the upper triangle and no second product."""
        if not (need_x or need_y):
            rows, _ = self.pair_sums(self.as_operands(x, y, terms, spec), potential, need_cols=False, total=True)
            return rows.total.sum(1), *_nothing(x), *_nothing(x)
        o = self.as_operands(x, y, terms, spec, weights=potential)
        of_x, of_y = self.contract(o, potential, Factors(), need_x=need_x, need_y=need_y)
        side = of_x or of_y
        assert side is not None
        return side.total(), *_results(x, of_x, of_y)

    def exp_sums(self, o: Operands, *, need_grad: bool) -> tuple[Tensor, Tensor]:
        """Of a symmetric problem ``sum_j exp(l_ij) y_j`` and ``sum_j exp(l_ij)``, in ranges of columns as in `Side`.

        Without the gradient the total of the sums alone is right; they stand in its place too.
        """
        if need_grad:
            side, _ = self.contract(o, "exp", Factors(), need_x=True, need_y=False)
            assert side is not None
            return side.grad, side.sum
        sums = self.pair_sums(o, "exp", need_cols=False, total=True)[0].total.unsqueeze(0)
        return sums, sums


def _results(x: Tensor, of_x: Side | None, of_y: Side | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_added(x, of_x), *_added(x, of_y)


def _added(x: Tensor, side: Side | None) -> tuple[Tensor, Tensor]:
    """The gradient and the sums of a side, without what the operands are padded with."""
    if side is None:
        return _nothing(x)
    grad, total = side.added()
    return grad if grad.shape[2] == x.shape[2] else grad[..., : x.shape[2]].contiguous(), total


def _nothing(x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the sums of a side that nobody needs."""
    grad = x.new_empty((x.shape[0], 0, x.shape[2]), dtype=torch.float32)
    return grad, grad.new_empty(x.shape[0], 0)
