"""Predicts the times of the pairwise kernels from what the compilers made of them; docs/performance.md is made of it.

A kernel is bounded by its matrix products, its exponentials, the instructions that are issued for its pairs, and what
comes out of the L2 cache. Which of these run at the same time is read from the report too: see `Prediction.least`.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.tables import result, table

from . import pages as kernels
from .report import SHOWN, rows_of

N = 65_536
# Longer rows stream through a kernel beside the columns. What is reported of two D is there to be compared.
LONGEST_HELD, SHOWS_PADDING = 256, (100, 112)

# A good kernel reaches about so much of bounds like these: there are barriers, turns, the first and the last tile, and
# the last wave. A guess, which the first measurement replaces.
REACHED = 0.85


class Machine(NamedTuple):
    """What one GPU does in a second, and what a multiprocessor has room for.

    Attributes:
        flops: of a large bf16 product of the library.
        exponentials: of the special function units.
        issued: instructions of single threads.
        copied: bytes of memory.
        l2: bytes out of the L2 cache.
        registers: of a multiprocessor.
        shared: bytes of shared memory of a multiprocessor, of which each block of threads takes 1 KB more than it asks.
    """

    flops: float
    exponentials: float
    issued: float
    copied: float
    l2: float
    registers: int
    shared: int


_CLOCK, _MULTIPROCESSORS = 1.755e9, 132
# One H200: the rates of products and copies were measured by others (see "The limit" in docs/performance.md), that of
# the L2 cache is assumed; a multiprocessor starts 16 exponentials and 128 instructions of threads in a clock.
H200 = Machine(
    790e12,
    16 * _CLOCK * _MULTIPROCESSORS,
    128 * _CLOCK * _MULTIPROCESSORS,
    4.3e12,
    5.5e12,
    65_536,
    233_472,
)


class Path(NamedTuple):
    """One way through the library.

    Attributes:
        name: what is computed.
        backend: ``triton`` or ``cuda``.
        kernel: its kernel of pairs.
        problem: what the report calls its use.
        dim: D.
        products: with the tile of pairs, of 2 D operations for each pair, in the kernel.
        visited: the share of the N x N pairs that the kernel visits, of all its sides together.
        library: products of the library behind it, of the same size for each visited pair.
        counted: the operations that a dense computation has, in N^2 D, by which the library's rate is divided.
        target: of the library's rate.
    """

    name: str
    backend: str
    kernel: str
    problem: str
    dim: int
    products: int
    visited: float
    library: int
    counted: float
    target: float | None = None


def _paths(
    name: str, backend: str, kernel: str, problem: str, shape: tuple[int, float, int, float], targets: dict
) -> list[Path]:
    return [Path(name, backend, kernel, problem, dim, *shape, target) for dim, target in targets.items()]


# Products, visited share, products of the library, counted operations.
_GRADIENT, _TWO_SIDES, _HALF, _BOTH_SUMS, _PANELS = (
    (2, 1, 0, 4),
    (2, 2, 0, 8),
    (1, 0.5, 0, 2),
    (1, 1, 0, 2),
    (1, 0.5, 2, 4),
)
_ENERGY, _VALUE = "uniformity, loss + gradient", "uniformity, value alone"
_CLIP, _SIGLIP, _SUMS = "clip, gradients of both sides", "siglip, loss + gradient", "clip, sums of both sides"
PATHS = (
    *_paths(_ENERGY, "triton", "contract", "uniformity", _GRADIENT, {64: 0.5, 128: 0.62, 256: 0.55}),
    *_paths(
        _ENERGY + ", specialised warps", "triton", "contract_specialised", "uniformity", _GRADIENT, {64: 0.5, 128: 0.62}
    ),
    *_paths(_ENERGY, "triton", "panel", "uniformity", _PANELS, {768: 0.9}),
    *_paths(_VALUE, "triton", "sums", "uniformity", _HALF, {64: None, 128: 1.1, 256: 1.3, 768: 1.3}),
    *_paths(_VALUE + ", specialised warps", "triton", "sums_specialised", "uniformity", _HALF, {64: None, 128: 1.1}),
    *_paths(_SUMS, "triton", "two_way", "contrastive", _BOTH_SUMS, {64: None, 128: None, 256: None}),
    *_paths(_CLIP, "triton", "contract_sides", "contrastive", _TWO_SIDES, {64: None, 128: None, 256: None}),
    *_paths(_SIGLIP, "triton", "contract_sides", "softplus", _TWO_SIDES, {128: None}),
    *_paths(
        _ENERGY, "cuda", "contract_wgmma", "exp", _GRADIENT, {64: 0.65, 128: 0.82, 160: None, 192: None, 256: 0.85}
    ),
    *_paths(_ENERGY, "cuda", "sums_wgmma", "store exp", _PANELS, {768: 1.0}),
    *_paths(_VALUE, "cuda", "sums_wgmma", "sum exp", _HALF, {64: None, 128: 1.4, 256: 1.7, 768: 1.7}),
    *_paths(_SUMS, "cuda", "sums_wgmma", "sum exp", _BOTH_SUMS, {64: None, 128: None, 256: None}),
    *_paths(_CLIP, "cuda", "contract_wgmma", "factor", _TWO_SIDES, {64: None, 128: None, 256: None}),
    *_paths(_SIGLIP, "cuda", "contract_wgmma", "softplus", _TWO_SIDES, {64: None, 128: None, 256: None}),
)
# What a path's kernel was called before it had one of its own.
_FORMER = {"two_way": "sums"}


class Prediction(NamedTuple):
    """Milliseconds of each bound of a path at N = 65,536, and what the kernel does at once.

    Attributes:
        products: of the kernel.
        exponentials: those of the special function units.
        issue: all instructions of the main loop.
        l2: bytes of operands through the L2 cache.
        library: products of the library, and the stored weights that they wait for.
        streams: how many groups of warps of a multiprocessor multiply and weigh independently of one another.
        hidden: whether the weights of a tile are made while a product of the same warps runs.
        row: of the report.
    """

    products: float
    exponentials: float
    issue: float
    l2: float
    library: float
    streams: int
    hidden: bool
    row: dict[str, Any]

    @property
    def least(self) -> float:
        """``max(products, weights, L2)`` where they run at once, with ``weights = max(exponentials, issue)``; with one
        stream that does one after the other ``max(products + weights, L2)``; and the library behind it.
        """
        weights = max(self.exponentials, self.issue)
        at_once = self.hidden or self.streams > 1
        return max(max(self.products, weights) if at_once else self.products + weights, self.l2) + self.library

    @property
    def ms(self) -> float:
        """What is predicted."""
        return self.least / REACHED

    @property
    def largest(self) -> str:
        """The largest part of the kernel."""
        names = ("products", "exponentials", "issue", "l2")
        name = max(names, key=lambda name: getattr(self, name))
        return {"l2": "L2", "issue": "instructions"}.get(name, name)


def predicted(path: Path, rows: list[dict[str, Any]], machine: Machine = H200) -> Prediction | None:
    """The prediction of a path from the rows of a report; None where none of them serves it."""
    row = row_of(path, rows)
    if row is None:
        return None
    of_tile = [int(size) for size in row["tile"].split("x")]
    pairs = path.visited * N * N
    streams_rows = path.dim > LONGEST_HELD
    # A kernel of a D multiplies what rows are padded to, one for any D what it is given.
    width = path.dim if streams_rows else row["dim"]
    flops = 2.0 * pairs * width
    held, streamed = of_tile[:2] if row["kernel"] != "two_way" else of_tile[1::-1]
    # The blocks of a cluster fetch each a share of the rows.
    loaded = 1 / held + (1 / (streamed * (2 if row["multicast"] else 1)) if streams_rows else 0)
    library, weights = 0.0, 2.0 * pairs
    if path.library:
        library = weights / machine.copied
        library += path.library * max(2.0 * pairs * path.dim / machine.flops, weights / machine.copied)
    special = (row["exponentials"] + row["special"]) / row["pairs"]
    return Prediction(
        1e3 * path.products * flops / machine.flops,
        1e3 * special * pairs / machine.exponentials,
        1e3 * row["per_pair"] * pairs / machine.issued,
        1e3 * 2.0 * pairs * width * loaded / machine.l2,
        1e3 * library,
        streams(row, machine),
        row["late"] == 0,
        row,
    )


def row_of(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the kernel that serves a path: that of the least D which is enough."""
    names = {path.kernel, _FORMER.get(path.kernel)}
    found = [
        row
        for row in rows
        if row["kernel"] in names
        and row["problem"] == path.problem
        and row["dim"] >= path.dim
        and row["dim"] not in SHOWS_PADDING
        and all(row[name] == value for name, value in SHOWN.items())
    ]
    return min(found, key=lambda row: row["dim"], default=None)


def streams(row: dict[str, Any], machine: Machine) -> int:
    """Groups of warps of a multiprocessor that multiply and weigh independently: blocks of threads, as many as fit; of
    specialised warps both groups that compute, and of the CUDA kernels the warpgroups, which take turns or, where rows
    stream, have a ring each.
    """
    threads = 32 * row["warps"]
    if row["backend"] == "cuda" or row["kernel"].endswith("specialised"):
        return 2
    registers = -(-row["registers"] // 8) * 8 * threads
    return max(1, min(machine.registers // registers, machine.shared // (row["shared_bytes"] + 1024)))


def of_rate(path: Path, ms: float, machine: Machine = H200) -> float:
    """The share of the library's rate, counted dense."""
    return path.counted * N * N * path.dim / (machine.flops * ms * 1e-3)


def before() -> list[dict[str, Any]]:
    """The rows of the report of an earlier commit, which the file names."""
    return rows_of(result("kernels_before"))


# ---- docs/performance.md --------------------------------------------------------------------------------------------


def predictions(backend: str) -> str:
    """What bounds each path, before and now."""
    heads = ["at N = 65,536, ms", "D", "tile", "instructions a pair", "products", "exponentials", "instructions", "L2"]
    heads += ["library", "streams", "before", "predicted", "of the library's rate", "target"]
    lines = []
    for path, then, now in pairs_of_predictions():
        if path.backend == backend:
            parts = [f"{part:.2f}" for part in now[:5]]
            hidden = f"{now.streams}{', hidden' if now.hidden else ''}"
            rate = f"{of_rate(path, now.ms):.2f}"
            target = "–" if path.target is None else f"{path.target:g}"
            former = ["–", f"{now.row['per_pair']:.1f}"]
            if then is not None:
                former = [f"{then.ms:.2f}", f"{then.row['per_pair']:.1f} → {now.row['per_pair']:.1f}"]
            sizes = [path.name, str(path.dim), now.row["tile"], former[1]]
            lines.append([*sizes, *parts, hidden, former[0], f"**{now.ms:.2f}**", rate, target])
    return table(heads, lines)


def order() -> str:
    """In which order a device should measure: where a prediction has changed most it is worth most, and least sure."""
    found = [(then.ms / now.ms, path, now) for path, then, now in pairs_of_predictions() if then is not None]
    found.sort(key=lambda one: -one[0])
    heads = ["path", "backend", "D", "before ÷ predicted", "largest part"]
    names = {"triton": "Triton", "cuda": "CUDA C++"}
    return table(
        heads,
        [
            [path.name, names[path.backend], str(path.dim), f"{ratio:.2f}", now.largest]
            for ratio, path, now in found
            if abs(ratio - 1) > 0.02
        ],
    )


def pairs_of_predictions() -> Iterator[tuple[Path, Prediction | None, Prediction]]:
    """Of each path what was predicted before, if it was there, and what is now."""
    rows, former = kernels.read(), before()
    for path in PATHS:
        now = predicted(path, rows)
        assert now is not None, path
        yield path, predicted(path, former), now


def reached() -> str:
    """The guess in the predictions."""
    return f"Predicted is what the formula says, divided by {REACHED:g}."


BLOCKS: dict[str, Callable[[], str]] = {
    "predictions triton": lambda: predictions("triton"),
    "predictions cuda": lambda: predictions("cuda"),
    "order of measurements": order,
    "reached": reached,
}
