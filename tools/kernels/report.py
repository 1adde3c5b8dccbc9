"""Reports what the compilers made of every kernel, without a GPU: Triton's, and those of the built CUDA extension.

``python -m tools.kernels [--arch sm_90] [--quick] [--json FILE | --release FILE]``; `make kernels-report`. The
committed file, which docs/kernels.md is made of: ``make kernels-report ARGS="--json
benchmarks/results/kernels_report.json"``.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.tables import result, table
from hyperkern.bench.machine import describe
from hyperkern.files import OutputError, check_outputs, write_files

from .rows import Row, print_rows

RESULT = "kernels_report"
# The same of some kernels by releases of Triton: PYTHONPATH=FOLDER python -m tools.kernels --release FILE, with a
# release that was installed there by pip install --no-deps --target FOLDER triton==3.6.0
RELEASES = "kernels_by_triton"
COMPARED = (
    *(("contract", problem) for problem in ("uniformity", "contrastive", "row_factor", "softplus")),
    *(("contract_sides", problem) for problem in ("uniformity", "contrastive")),
    *(("sums", "uniformity"), ("two_way", "contrastive"), ("panel", "uniformity")),
    *(("contract_specialised", "uniformity"), ("sums_specialised", "uniformity")),
)
OF_A_ROUND = ("matrix", "exponentials", "polynomials", "special", "other")
# What the tables of the documentation show of a file with all architectures and operands.
SHOWN = {"architecture": "sm_90", "operand": "bfloat16"}


def made(architectures: Sequence[str], quick: bool, jobs: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows of both backends, and what they were made by and of."""
    from . import cuda, triton

    rows = triton.report(architectures, quick, jobs)
    about = {"machine": asdict(describe("cpu")), "triton": version("triton"), "cuda": None}
    about |= {"triton_sources": triton.source_digests()}
    if cuda.LIBRARY.exists():
        rows += cuda.report(architectures)
        about |= {"cuda": toolkit(cuda.LIBRARY.read_bytes())}
    return rows, about


def toolkit(library: bytes) -> str:
    """The release of the compiler that an object says it was made by."""
    found = re.search(rb"Cuda compilation tools, release [\d.]+, V(\d+(?:\.\d+)*)", library)
    return found[1].decode() if found else "unknown"


def text(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The content of a result file, one row a line; their fields are named once."""
    head = json.dumps(about | {"fields": Row._fields}, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return f'{head},\n "rows": [\n  {lines}\n ]\n}}\n'


def read() -> list[dict[str, Any]]:
    """The rows of the committed file."""
    found = result(RESULT)
    return [dict(zip(found["fields"], row, strict=True)) for row in found["rows"]]


# ---- docs/kernels.md ------------------------------------------------------------------------------------------------


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


def add_release(path: Path) -> None:
    """Writes what the installed Triton makes of the kernels shown beside what others made of them."""
    from . import triton

    content = json.loads(path.read_text(encoding="utf-8"))["releases"] if path.exists() else {}
    rows = triton.report([SHOWN["architecture"]], only=lambda case: case.operand == SHOWN["operand"])
    names = ("kernel", "problem", "dim", "registers", "spill_bytes", "per_pair", "serialised", "hazards")
    content[version("triton")] = [{name: getattr(row, name) for name in names} for row in rows]
    blocks = []
    for release in sorted(content, key=lambda release: [*map(int, release.split("."))]):
        lines = ",\n  ".join(map(json.dumps, content[release]))
        blocks.append(f' "{release}": [\n  {lines}\n ]')
    head = json.dumps({"machine": asdict(describe("cpu"))}, indent=1)[:-2]
    releases = ",\n".join(blocks)
    write_files({path: f'{head},\n "releases": {{\n{releases}\n }}\n}}\n'.encode()})


BLOCKS: dict[str, Callable[[], str]] = {
    "kernels": overall,
    "kernels by Triton": by_triton,
    "kernels triton": lambda: pairwise("triton"),
    "kernels cuda": lambda: pairwise("cuda"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes the file."""
    from hyperkern.backends.triton import config

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [architecture.name for architecture in config.shipped()]
    parser.add_argument("--arch", action="append", choices=names, help="only this architecture (repeatable)")
    parser.add_argument("--quick", action="store_true", help="of Triton all of sm_90, of others one a configuration")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the rows, instead of a table")
    parser.add_argument("--release", type=Path, metavar="FILE", help="adds what the installed Triton makes of some")
    args = parser.parse_args(arguments)
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {args.jobs}")
    try:
        check_outputs({"json": args.json, "release": args.release})
    except OutputError as error:
        parser.error(str(error))
    if args.release:
        add_release(args.release)
        return
    rows, about = made(args.arch or (), args.quick, args.jobs)
    if args.json:
        write_files({args.json: text(rows, about).encode()})
    else:
        print_rows(rows)
    if about["cuda"] is None:
        print("the CUDA extension is not built: its kernels are left out")
