"""The primitives of a backend beside dense float64, on rows whose products are exact in every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..spec import PairSpec, PairTerms, norm_eps, pair_logits

if TYPE_CHECKING:
    from ..backends import Backend

BATCH = 2
SCALE = 8.0


class Results(NamedTuple):
    """What a primitive returned, and what it should have.

    Attributes:
        found: its tensors.
        wanted: the same in float64.
        exact: for each, whether nothing but its own arithmetic is rounded; else the operand of a second product is.
    """

    found: list[Tensor]
    wanted: list[Tensor]
    exact: list[bool]


class Pattern(NamedTuple):
    """Which kernels a problem takes.

    Attributes:
        symmetric: whether rows meet themselves.
        exclude: one of `hyperkern.spec.EXCLUSIONS`.
        bounded: whether exponentials are summed as they are.
        weighted: whether rows and columns have log-weights.
    """

    symmetric: bool
    exclude: str
    bounded: bool
    weighted: bool

    @property
    def name(self) -> str:
        """In words."""
        words = ["symmetric" if self.symmetric else "two sides", "bounded" if self.bounded else "running maximum"]
        words += [] if self.exclude == "none" else [f"without {self.exclude.replace('_', ' ')}"]
        return ", ".join(words + (["weighted"] if self.weighted else []))


# The most telling first: a first use takes some of them.
PATTERNS = (
    Pattern(True, "self", True, False),
    Pattern(False, "self", False, True),
    Pattern(False, "same_id", True, False),
    Pattern(False, "none", True, False),
    Pattern(True, "self", False, True),
    Pattern(True, "same_id", True, False),
)


class Given(NamedTuple):
    """A problem, and its logits in float64."""

    x: Tensor
    y: Tensor | None
    terms: PairTerms
    spec: PairSpec
    logits: Tensor

    @property
    def columns(self) -> Tensor:
        """The rows that ``x`` meets."""
        return self.x if self.y is None else self.y


def drawn(pattern: Pattern, m: int, n: int, dim: int, precision: str, device: torch.device) -> Given:
    """A problem of ``m`` rows and, unless it is symmetric, ``n`` columns."""
    generator = torch.Generator(device).manual_seed(m + n + dim)
    n = m if pattern.symmetric else n
    x = exact_rows(m, dim, generator)
    y = None if pattern.symmetric else exact_rows(n, dim, generator)
    u, v = (torch.randn(BATCH, count, generator=generator, device=device) for count in (m, n))
    # Ids that no row and no column has alone.
    row_ids, col_ids = (torch.arange(count, device=device).expand(BATCH, -1) % 5 for count in (m, n))
    terms = PairTerms(
        u if pattern.weighted else None,
        v if pattern.weighted and y is not None else None,
        row_ids if pattern.exclude == "same_id" else None,
        col_ids if pattern.exclude == "same_id" and y is not None else None,
    )
    spec = PairSpec(SCALE, pattern.bounded, pattern.exclude, precision)
    of_all = terms.as_columns() if y is None else terms
    logits = pair_logits(x.double(), (x if y is None else y).double(), of_all, spec, slice(0, m))
    return Given(x, y, terms, spec, logits)


def exact_rows(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """``(BATCH, n, dim)``: unit rows of ``4^k`` entries ``± 2^-k``, at random places.

    Every entry is exact in every dtype, and so are all inner products: sums of ``4^k`` numbers ``± 4^-k``.
    """
    entries = 1
    while 4 * entries <= min(dim, 256):
        entries *= 4
    noise = torch.randn(BATCH, n, dim, generator=generator, device=generator.device)
    places = noise.abs().argsort(-1)[..., :entries]
    return torch.zeros_like(noise).scatter(-1, places, noise.sign().gather(-1, places) * entries**-0.5)


def rows(backend: Backend, x: Tensor) -> Results:
    """``prepare`` and ``normalize_backward`` of features ``(B, M, D)``, and of the same with a row of zeros."""
    unit, rstd = backend.prepare(x)
    exact = x.double()
    norm = torch.linalg.vector_norm(exact, dim=-1).clamp_min(norm_eps(x.dtype))
    wanted = [F.normalize(exact, dim=-1, eps=1e-300), norm.reciprocal()]
    grad = torch.roll(unit, 1, -1) + 0.5
    found = backend.normalize_backward(grad, unit, rstd, x.dtype)
    of_unit, slope = unit.double(), grad.double()
    behind = rstd.double()[..., None] * (slope - (slope * of_unit).sum(-1, keepdim=True) * of_unit)
    dead = x.index_fill(1, torch.tensor([x.shape[1] // 2], device=x.device), 0)
    of_dead, bound = backend.prepare(dead)
    finite = backend.normalize_backward(grad, of_dead, bound, x.dtype).isfinite().to(grad.dtype)
    results = [unit, rstd, found, of_dead, finite]
    truths = [*wanted, behind, F.normalize(dead.double(), dim=-1, eps=1e-300), torch.ones_like(finite).double()]
    return Results(results, truths, [True, True, x.dtype == torch.float32, True, True])


def row_lse(backend: Backend, given: Given) -> Results:
    """``row_lse`` of both sides, and what its rounding leaves of the sums."""
    two = given.y is not None
    found = backend.row_lse(given.x, given.y, given.terms, given.spec, need_cols=two)
    rows, cols = given.logits.logsumexp(2), given.logits.logsumexp(1)
    sides = [(found.row, found.row_rounding, rows), *([(found.col, found.col_rounding, cols)] if two else [])]
    results, wanted = [], []
    for lse, rounding, truth in sides:
        # Of the weights exp(l - lse) of a row, times that, the sum is 1.
        share = (truth - lse.double()).exp() * rounding.double()
        empty = truth == -torch.inf
        results += [lse, share.masked_fill(empty, 1)]
        wanted += [truth, torch.ones_like(truth)]
    if two:  # the rows alone, as a loss of one way asks for them
        results.append(backend.row_lse(given.x, given.y, given.terms, given.spec, need_cols=False).row)
        wanted.append(rows)
    return Results(results, wanted, [True] * len(results))


def pair_grad(backend: Backend, given: Given) -> Results:
    """``pair_grad`` of both sides, with factors of both signs."""
    two = given.y is not None
    lse = [given.logits.logsumexp(side).float() for side in (2, 1)]
    generator = torch.Generator(given.x.device).manual_seed(1)
    a, b = (torch.randn(side.shape, generator=generator, device=side.device) for side in lse)
    weights = _weights(given, lse[0], a, 2) + (_weights(given, lse[1], b, 1) if two else _weights(given, lse[0], a, 1))
    of_columns = (lse[1], b) if two else (None, None)

    def computed(need_x: bool, need_y: bool) -> tuple[Tensor, ...]:
        factors = (lse[0], of_columns[0], a, of_columns[1])
        return backend.pair_grad(given.x, given.y, given.terms, given.spec, *factors, need_x=need_x, need_y=need_y)

    found, wanted, exact = _sides(computed(True, two), weights, given, two)
    if two:  # one side alone, as where the other has no gradient
        found += [*computed(True, False)[:2], *computed(False, True)[2:]]
    return Results(found, wanted * (len(found) // len(wanted)), exact * (len(found) // len(exact)))


def energy_exp(backend: Backend, given: Given) -> Results:
    """``energy`` of the Gaussian potential."""
    return _energy(backend, given, "exp", given.logits.exp(), given.logits.exp())


def energy_softplus(backend: Backend, given: Given) -> Results:
    """``energy`` of the sigmoid loss."""
    return _energy(backend, given, "softplus", F.softplus(given.logits, threshold=700), given.logits.sigmoid())


FUNCTIONS: dict[str, Callable[[Backend, Given], Results]] = {
    "row_lse": row_lse,
    "pair_grad": pair_grad,
    "energy exp": energy_exp,
    "energy softplus": energy_softplus,
}


def functions_of(pattern: Pattern) -> list[str]:
    """Those that a pattern is for: an energy is asked for bounded sums alone."""
    return [name for name in FUNCTIONS if pattern.bounded or not name.startswith("energy")]


def _weights(given: Given, lse: Tensor, factor: Tensor, dim: int) -> Tensor:
    """``factor exp(l - lse)``, 0 where a pair is left out; both are of rows with ``dim`` 2, of columns with 1."""
    exact = lse.double().unsqueeze(dim)
    kernel = torch.where(given.logits == -torch.inf, 0, (given.logits - exact).exp())
    return factor.double().unsqueeze(dim) * kernel


def _energy(backend: Backend, given: Given, potential: str, value: Tensor, slope: Tensor) -> Results:
    two = given.y is not None
    problem = (given.x, given.y, given.terms, given.spec, potential)
    total, *sides = backend.energy(*problem, need_x=True, need_y=two)
    alone = backend.energy(*problem, need_x=False, need_y=False)[0]
    found, wanted, exact = _sides(tuple(sides), slope, given, two)
    return Results([total, alone, *found], [value.sum((1, 2))] * 2 + wanted, [True, True, *exact])


def _sides(found: tuple[Tensor, ...], weights: Tensor, given: Given, two: bool) -> Results:
    """Weighted rows and weight sums of the rows and, of a problem of two sides, of the columns."""
    wanted = [weights @ given.columns.double(), weights.sum(2), weights.mT @ given.x.double(), weights.sum(1)]
    count = 4 if two else 2
    return Results(list(found[:count]), wanted[:count], [False] * count)
