"""The README's tables and figures, made of committed results."""

from collections.abc import Iterator

from examples.digits.report import HEADER, table_rows
from examples.digits.results import Spread
from hyperkern.bench.page import figure
from hyperkern.bench.result import Result, Row, read
from hyperkern.catalog import readme_rows
from hyperkern.format import milliseconds

from .tables import RESULTS, result, table

# Shown as pictures: kind, case and D.
FIGURES = [(kind, case, 128) for case in ("uniformity", "clip") for kind in ("time", "memory")]


def bench() -> Result:
    """The run of ``hyperkern bench`` that the README shows."""
    return read(RESULTS / "cpu.json")


def catalog() -> str:
    """The functions and their modules."""
    return table(["function", "module", "what"], readme_rows()).replace("---:", "---")


def demo() -> str:
    """Every objective of the demo."""
    found = result("demo")
    summary = {
        objective: {metric: Spread(**spread) for metric, spread in metrics.items()}
        for objective, metrics in found["summary"].items()
    }
    rows = table_rows(summary, found["uniform_distribution"]["uniformity"])
    return table(list(HEADER), [list(row) for row in rows])


def batch() -> str:
    """The demo's huge batch."""
    found = result("demo")["huge_batch"]
    took = f"loss and gradient in {found['seconds']:.0f} s on two CPU cores with {found['extra_bytes'] / 1e6:.0f} MB"
    matrix = f"where one N×N matrix would take {found['matrix_bytes'] / 1e9:.1f} GB"
    return f"The demo ends with one batch of {found['rows']:,} × {found['dim']}: {took} of extra memory, {matrix}."


def machine() -> str:
    """What the benchmark ran on."""
    found = bench()
    facts, rate = found.machine, found.limits["float32"].flops
    return (
        f"{facts.processor}, {facts.threads} threads, torch {str(facts.torch).split('+')[0]}; the library's own "
        f"float32 product reached {rate / 1e9:.0f} GFLOP/s in the same run."
    )


def losses() -> str:
    """Every loss beside the usual code and the fastest peer."""
    heads = [
        "loss + gradient",
        "N",
        "D",
        "hyperkern",
        "of limit",
        "dense",
        "fastest peer",
        "memory",
        "dense's",
        "peer's",
    ]
    lines = []
    for own, dense, peer in _beside():
        times = [f"{other.median_ms / own.median_ms:.1f}×" if other else "" for other in (dense, peer)]
        if peer:
            times[1] += f" ({peer.implementation})"
        peaks = [f"{row.peak_bytes / 1e6:.0f} MB" if row else "" for row in (own, dense, peer)]
        name, n, d = f"`{own.case}`", f"{own.n:,}", str(own.d)
        lines.append([name, n, d, milliseconds(own.median_ms), f"{100 * own.of_limit:.0f} %", *times, *peaks])
    return table(heads, lines)


def _beside() -> Iterator[tuple[Row, Row | None, Row | None]]:
    """Our own row of each point, the dense one and the fastest of all peers."""
    points: dict[tuple[str, int, int], dict[str, Row]] = {}
    for row in bench().rows:
        if row.status == "ok":
            points.setdefault((row.case, row.d, row.n), {})[row.implementation] = row
    for rows in points.values():
        own = rows.pop("hyperkern")
        fastest = min(rows.values(), key=lambda row: row.median_ms, default=None)
        yield own, rows.get("dense"), fastest


def images() -> dict[str, str]:
    """The pictures, by file name."""
    found = bench()
    return {f"{case}-d{d}-{kind}.svg": figure(found, kind, case, d) for kind, case, d in FIGURES}


def ordinary() -> str:
    """Every loss at ordinary batches: times of the dense loss, eager and compiled, over those of hyperkern."""
    rows = [row for row in read(RESULTS / "ordinary_cpu.json").rows if row.status == "ok" and row.d == 128]
    cases, sizes = list(dict.fromkeys(row.case for row in rows)), list(dict.fromkeys(row.n for row in rows))
    times = {(row.case, row.n, row.implementation): row.median_ms for row in rows}

    def cell(case: str, n: int) -> str:
        own, *others = (times.get((case, n, name)) for name in ("hyperkern", "dense", "compiled"))
        return " / ".join("–" if time is None else f"{time / own:.2f}" for time in others)  # None: would take too long

    lines = [[f"`{case}`", *(cell(case, n) for n in sizes)] for case in cases]
    return table(["eager / compiled ÷ hyperkern", *(f"N = {n:,}" for n in sizes)], lines)


BLOCKS = {
    "catalog": catalog,
    "demo": demo,
    "batch": batch,
    "machine": machine,
    "losses": losses,
    "ordinary": ordinary,
}
