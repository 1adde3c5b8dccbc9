"""The tables of docs/kernels.md, made of the committed reports."""

from collections.abc import Callable
from typing import Any

from benchmarks.tables import result, table

from .report import SHOWN, rows_of

RESULT = "kernels_report"
# The same of some kernels by releases of Triton.
RELEASES = "kernels_by_triton"
COMPARED = (
    *(("contract", problem) for problem in ("uniformity", "contrastive", "row_factor", "softplus")),
    *(("contract_sides", problem) for problem in ("uniformity", "contrastive")),
    *(("sums", "uniformity"), ("two_way", "contrastive"), ("panel", "uniformity")),
    *(("contract_specialised", "uniformity"), ("sums_specialised", "uniformity")),
)
OF_A_ROUND = ("matrix", "exponentials", "polynomials", "special", "other")


def read() -> list[dict[str, Any]]:
    """The rows of the committed file."""
    return rows_of(result(RESULT))


def overall() -> str:
    """Of each backend and architecture how many kernels there are, and what must not be."""
    found = result(RESULT)
    rows = read()
    heads = ["backend", "architecture", "kernels", "most registers", "with spills", "in the main loop"]
    heads += ["serialised", "hazards"]
    lines = []
    for backend, architecture in dict.fromkeys((row["backend"], row["architecture"]) for row in rows):
        some = [row for row in rows if (row["backend"], row["architecture"]) == (backend, architecture)]
        counts = [
            sum(row[name] > 0 for row in some) for name in ("spill_bytes", "loop_spills", "serialised", "hazards")
        ]
        most = max(row["registers"] for row in some)
        compiler = f"Triton {found['triton']}" if backend == "triton" else f"nvcc {found['cuda']}"
        lines.append([compiler, architecture, *map(str, (len(some), most, *counts))])
    return table(heads, lines)


def pairwise(backend: str) -> str:
    """The pairwise kernels of a backend."""
    heads = ["kernel", "D", "problem", "tile", "warps", "stages", "registers", "shared KB", "per pair"]
    heads += ["products", "exp", "by polynomial", "other special", "other", "stores", "late"]
    lines = []
    for row in read():
        if row["backend"] == backend and row["pairs"] and all(row[name] == value for name, value in SHOWN.items()):
            counts = [f"{row[name] / row['pairs']:.2f}" for name in OF_A_ROUND]
            stores = ", ".join(f"{count} × {width}" for width, count in row["stores"].items())
            sizes = [str(row[name]) for name in ("warps", "stages", "registers")]
            shared = f"{row['shared_bytes'] / 1024:.0f}"
            names = [f"`{row['kernel']}`", str(row["dim"]), row["problem"].replace("_", " "), row["tile"]]
            lines.append([*names, *sizes, shared, f"**{row['per_pair']:.1f}**", *counts, stores, str(row["late"])])
    return table(heads, lines)


def by_triton() -> str:
    """Instructions for each pair as several releases of Triton compile them."""
    found = result(RELEASES)["releases"]
    heads = ["kernel", "problem", "D", *(f"Triton {release}" for release in found)]
    lines = []
    for kernel, problem in COMPARED:
        some = [
            [row for row in rows if (row["kernel"], row["problem"]) == (kernel, problem)] for rows in found.values()
        ]
        for dim in sorted({row["dim"] for row in some[-1]}):
            counts = [next(row["per_pair"] for row in rows if row["dim"] == dim) for rows in some]
            lines.append([f"`{kernel}`", problem.replace("_", " "), str(dim), *(f"{count:.1f}" for count in counts)])
    for title, name in (("with spills", "spill_bytes"), ("serialised", "serialised"), ("hazards", "hazards")):
        counts = [sum(row[name] > 0 for row in rows) for rows in found.values()]
        lines.append([f"all, {title}", "", "", *map(str, counts)])
    return table(heads, lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "kernels": overall,
    "kernels by Triton": by_triton,
    "kernels triton": lambda: pairwise("triton"),
    "kernels cuda": lambda: pairwise("cuda"),
}
