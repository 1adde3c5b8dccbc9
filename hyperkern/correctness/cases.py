"""What is computed in a check, and what is right: the primitives, whole losses, rings that wrap, repeats.

Truth is float64. The primitives get rows whose products are exact in every dtype (`exact_rows`): what their results
lack is the kernel's own. Whole losses get random features, and may be as far off as the textbook formula in PyTorch in
the same dtype, twice; both are rounded, so a few units in the last place are always allowed, and as much as the truth
moves where operands are rounded (`rounding`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import load
from ..bench import gate, registry
from ..bench.load import load_all
from ..check.scope import ROWS, Scope
from . import primitives, rounding
from .variants import MANY_ROWS, VARIANTS, Variant

# What is allowed of the largest entry, whatever PyTorch's own error: where an operand is rounded to the dtype of the
# products, some of its last digits; of what is float32 throughout, less.
_UNITS = {"bfloat16": 2.0**-7, "float16": 2.0**-9, "tf32": 2.0**-9, "float32": 2.0**-16}
_EXACT = 2.0**-18
# And of what may be 0: the loss of a row that has nothing to choose from is a difference of equal numbers.
_FLOOR = 2.0**-20
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
_QUEUE = 777  # rows of a queue


def setting_of(kind: str) -> str:
    """`torch.set_float32_matmul_precision` by which products of float32 features are of a kind."""
    return "high" if kind == "tf32" else "highest"


class Checked(NamedTuple):
    """The outcome of a case."""

    error: float  # the largest
    allowed: float  # the largest that is allowed
    reason: str  # what is wrong; empty if nothing is

    @property
    def right(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reason


class Case(NamedTuple):
    """Something to check."""

    what: str  # in words
    shape: str  # of which size, in words
    run: Callable[[], Checked]  # does it; whatever it raises is a failure
    compiles: bool = False  # whether others need the kernels that it compiles


class Sizes(NamedTuple):
    """How much is computed."""

    pairs: tuple[tuple[int, int], ...]  # rows and columns of the primitives
    rows: tuple[int, ...]  # N of the losses: on both sides of a tile's edge, and all sizes between
    patterns: int  # how many kinds of primitives
    wrap: int  # N for which every block of threads fetches more than its ring of buffers holds
    repeats: int  # of that, for equal bits


# On a CPU kernels are interpreted or emulated, a thousand times slower: there the check itself is tested.
SIZES = {
    ("cpu", "quick"): Sizes(((37, 21),), (19,), 4, 70, 2),
    ("cpu", "full"): Sizes(((37, 21),), (2, 19), 6, 70, 2),
    ("cuda", "quick"): Sizes(((257, 130), (256, 128)), (127, 256), 3, 4099, 10),
    ("cuda", "full"): Sizes(((1, 1), (257, 130), (256, 128), (1000, 777)), (2, 127, 256, 500, 1111), 6, 20011, 20),
}


def cases(backend: str, device: torch.device, scope: Scope, dims: Sequence[int], depth: str) -> Iterator[Case]:
    """All of a scope.

    Args:
        backend: by name; the environment names it too, for the losses.
        device: where.
        scope: what is covered.
        dims: the D that are taken.
        depth: ``quick``, as at a first use, or ``full``.
    """
    load_all()
    sizes = SIZES[device.type, depth]
    for dim in dims:
        # Of a second D what is masked there is enough, unless all is asked for.
        few = depth != "full" and dim != dims[0]
        yield from _of_rows(backend, device, dim, sizes)
        if scope.kind != ROWS:
            patterns = primitives.PATTERNS[: 1 if few else sizes.patterns]
            yield from _of_primitives(backend, device, scope.kind, dim, sizes, patterns)
            yield from _of_losses(device, scope.kind, dim, sizes, MANY_ROWS if few else registry.CASES)
        if scope.kind != ROWS and not few:
            yield from _of_variants(backend, device, scope.kind, dim, [rows for rows in sizes.rows if rows > 2])
            yield from _of_many_rows(backend, device, scope.kind, dim, sizes)


def _of_rows(backend: str, device: torch.device, dim: int, sizes: Sizes) -> Iterator[Case]:
    for dtype, rows in itertools.product((torch.float32, torch.bfloat16, torch.float16), sizes.rows[:2]):

        def run(dtype: torch.dtype = dtype, rows: int = rows) -> Checked:
            generator = torch.Generator(device).manual_seed(rows)
            x = torch.randn(2, rows, dim, generator=generator, device=device).to(dtype)
            found, wanted, exact = primitives.rows(load(backend), x)
            return _compared(found, wanted, torch.finfo(dtype).eps, exact)

        yield Case(f"rows, {_name(dtype)}", f"2 × {rows} × {dim}", run, compiles=rows == sizes.rows[0])


def _of_primitives(
    backend: str, device: torch.device, kind: str, dim: int, sizes: Sizes, patterns: Sequence[primitives.Pattern]
) -> Iterator[Case]:
    for (m, n), pattern in itertools.product(sizes.pairs, patterns):
        for name in primitives.functions_of(pattern):
            run = functools.partial(_primitive, backend, device, kind, name, pattern, (m, n, dim))
            shape = f"{primitives.BATCH} × {m} × {m if pattern.symmetric else n} × {dim}"
            yield Case(f"{name}, {pattern.name}", shape, run, compiles=(m, n) == sizes.pairs[0])


def _primitive(
    backend: str,
    device: torch.device,
    kind: str,
    name: str,
    pattern: primitives.Pattern,
    shape: tuple[int, int, int],
) -> Checked:
    precision = kind if kind in ("bfloat16", "float16") else "float32"  # of which the setting decides
    given = primitives.drawn(pattern, *shape, precision, device)
    found, wanted, exact = primitives.FUNCTIONS[name](load(backend), given)
    return _compared(found, wanted, _UNITS[kind], exact)


def _of_losses(device: torch.device, kind: str, dim: int, sizes: Sizes, names: Collection[str]) -> Iterator[Case]:
    for rows, name in itertools.product(sizes.rows, names):
        case, own = registry.CASES[name], registry.IMPLEMENTATIONS.get((name, "hyperkern"))
        if case.classes and rows < 4:  # of one class: its loss is 0, a difference of two logits that are rounded apart
            continue
        if case.truth is not None and own is not None:
            of_case = (case, own.loss(), device, kind, rows, dim)
            queue = f", {min(case.queue, _QUEUE)} in the queue" if case.queue else ""
            first = rows == sizes.rows[0]
            yield Case(name, f"{rows} × {dim}{queue}", functools.partial(_loss, *of_case), compiles=first)
            if not case.scalars:
                yield Case(f"{name}, exact rows", f"{rows} × {dim}{queue}", functools.partial(_exact_loss, *of_case))


def _loss(case: registry.Case, loss: registry.Loss, device: torch.device, kind: str, rows: int, dim: int) -> Checked:
    """Value and gradients beside those of the textbook formula in the same dtype."""
    inputs = case.draw(rows, dim, _name(_DTYPES[kind]), str(device), most_queue=_QUEUE)
    assert case.truth is not None
    wanted = gate.step(case.truth, [gate.exactly(x) for x in inputs])
    half = _DTYPES[kind] if kind in ("bfloat16", "float16") else None
    with torch.autocast(device.type, half, enabled=half is not None):
        peer = gate.step(case.truth, [gate.exactly(x, torch.float32) for x in inputs])
    found = gate.step(loss, inputs)
    moves = rounding.moves(case.truth, wanted, inputs, kind, dim)
    floor = _FLOOR * _steepest(inputs) / rows
    return _compared(found, wanted, _UNITS[kind], peer=peer, moves=moves, floor=floor)


def _exact_loss(
    case: registry.Case, loss: registry.Loss, device: torch.device, kind: str, rows: int, dim: int
) -> Checked:
    """The value, to the last digits of float32 whatever the products: nothing but sums is rounded."""
    generator = torch.Generator(device).manual_seed(rows)

    def exact(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return primitives.exact_rows(x.shape[0], dim, generator)[0].to(x.dtype).requires_grad_(x.requires_grad)

    inputs = [exact(x) for x in case.draw(rows, dim, _name(_DTYPES[kind]), str(device), most_queue=_QUEUE)]
    assert case.truth is not None
    wanted = gate.step(case.truth, [gate.exactly(x) for x in inputs], "forward")
    found = [*gate.step(loss, inputs)[:1], *gate.step(loss, inputs, "forward")]
    return _compared(found, wanted * 2, _UNITS[kind], exact=[True, True])


def _steepest(features: Sequence[Tensor]) -> float:
    """The largest factor of a gradient behind the normalisation: of very few numbers a row may be very short."""
    lengths = (torch.linalg.vector_norm(x.detach().float(), dim=-1).min() for x in features if x.dim() > 1)
    return float(max(1.0, 1 / max(min(length.item() for length in lengths), 1e-12)))


def _of_variants(backend: str, device: torch.device, kind: str, dim: int, all_rows: Sequence[int]) -> Iterator[Case]:
    """Other ways to call them, against plain PyTorch in float64."""
    for rows, (name, variant) in itertools.product(all_rows, VARIANTS.items()):
        run = functools.partial(_variant, variant, backend, device, kind, rows, dim)
        yield Case(name, f"{rows} × {dim}", run, compiles=rows == all_rows[0])


def _variant(
    variant: Variant, backend: str, device: torch.device, kind: str, rows: int, dim: int, *, many: bool = False
) -> Checked:
    inputs = variant.draw(rows, dim, _DTYPES[kind], device)
    truth = functools.partial(variant.loss, backend="reference")
    wanted = gate.step(truth, [gate.exactly(x) for x in inputs])
    found = gate.step(functools.partial(variant.loss, backend=backend), inputs)
    floor = _FLOOR * _steepest(inputs) / rows
    if many:  # there is no dense peer of so many rows; a ring that is read too early is further off than this
        return _compared(found, wanted, 4 * _UNITS[kind], floor=floor)
    # It is code that is looked for here, not digits: no peer says what the rounding of weights adds up to.
    moves = [4 * move for move in rounding.moves(truth, wanted, inputs, kind, dim)]
    return _compared(found, wanted, 2 * _UNITS[kind], moves=moves, floor=floor)


def _of_many_rows(backend: str, device: torch.device, kind: str, dim: int, sizes: Sizes) -> Iterator[Case]:
    """Several stripes and panels, rings that wrap: against plain PyTorch in float64, and against themselves."""
    for name, variant in MANY_ROWS.items():
        shape, of_kind = f"{sizes.wrap} × {dim}", (device, kind, sizes.wrap, dim)
        yield Case(f"{name}, many rows", shape, functools.partial(_variant, variant, backend, *of_kind, many=True))
        run = functools.partial(_repeats, variant, backend, *of_kind, sizes.repeats)
        yield Case(f"{name}, {sizes.repeats} repeats", shape, run)


def _repeats(
    variant: Variant, backend: str, device: torch.device, kind: str, rows: int, dim: int, repeats: int
) -> Checked:
    inputs = variant.draw(rows, dim, _DTYPES[kind], device)
    run = functools.partial(gate.step, functools.partial(variant.loss, backend=backend), inputs)
    first = run()
    for i in range(repeats):
        pairs = list(zip(first, run(), strict=True))
        if not all(torch.equal(a, b) for a, b in pairs):
            worst = max((a.double() - b.double()).abs().max().item() for a, b in pairs)
            return Checked(worst, 0.0, f"repeat {i + 1} has other bits, by up to {worst:.3g}")
    return Checked(0.0, 0.0, "")


def _compared(
    found: Sequence[Tensor],
    wanted: Sequence[Tensor],
    unit: float,
    exact: Sequence[bool] | None = None,
    peer: Sequence[Tensor] | None = None,
    moves: Sequence[float] | None = None,
    floor: float = 0.0,
) -> Checked:
    """The largest error of the tensor whose error is the largest share of what is allowed.

    Args:
        found: what a backend returned.
        wanted: the same in float64.
        unit: allowed of the largest entry of a tensor.
        exact: for which tensors no operand is rounded, so that less is allowed.
        peer: what PyTorch returned in the same dtype: twice its error is allowed.
        moves: how far the truth moves where operands are rounded: that is allowed.
        floor: allowed of results that should be 0, of a single number as much of 1.
    """
    worst, largest = Checked(0.0, 0.0, ""), -1.0
    for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
        if got.shape != want.shape:
            return Checked(float("inf"), 0.0, f"result {i} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        finite = want.isfinite()
        off = (got.double() - want).abs()
        # Where nothing is left of a row both are -inf.
        off = torch.where(finite, off, torch.where(got == want, 0.0, torch.inf)).flatten()
        size = want.abs().masked_fill(~finite, 0).max().item()
        allowed = unit * size if exact is None or not exact[i] else _EXACT * (1 + size)
        if floor:
            allowed = max(allowed, floor if got.dim() else _FLOOR)
        if peer is not None:
            by_peer = (peer[i].double() - want).abs().max().nan_to_num(0, 0).item()  # what overflows is no measure
            allowed = max(allowed, 2 * by_peer + torch.finfo(got.dtype).eps * size)
        if moves is not None:
            allowed = max(allowed, moves[i])
        # Gradients in float16 have digits down to 2^-24 only: the mean of thousands of rows has few.
        allowed += torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
        error = off.max().item()
        if not error <= allowed:
            place = tuple(int(j) for j in torch.unravel_index(off.nan_to_num(torch.inf).argmax(), want.shape))
            reason = f"result {i} at {place} is {got[place].item():.6g}, expected {want[place].item():.6g}"
            return Checked(error, allowed, reason)
        share = error / allowed if allowed else 0.0
        if share > largest:
            worst, largest = Checked(error, allowed, ""), share
    return worst


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
