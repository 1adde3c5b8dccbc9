"""Reports what the compilers made of every kernel, without a GPU: Triton's, and those of the built CUDA extension.

``python -m tools.kernels [--arch sm_90] [--quick] [--json FILE | --release FILE]``; `make kernels-report`. The
committed file, which docs/kernels.md is made of: ``make kernels-report ARGS="--quick --json
benchmarks/results/kernels_report.json"``.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hyperkern.bench.machine import describe
from hyperkern.files import OutputError, check_outputs, write_files

from .rows import Row, print_rows

# What the documentation shows of a file with all architectures and operands.
SHOWN = {"architecture": "sm_90", "operand": "bfloat16"}


def made(architectures: Sequence[str], quick: bool, jobs: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows of both backends, and what they were made by and of."""
    from . import cuda, triton

    rows = triton.report(architectures, quick, jobs)
    about = {"machine": asdict(describe("cpu")), "triton": version("triton"), "cuda": None}
    about |= {"triton_sources": triton.source_digests(), "triton_inputs": triton.inputs()}
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


def rows_of(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a result file with their fields' names."""
    return [dict(zip(content["fields"], row, strict=True)) for row in content["rows"]]


def still_made(path: Path) -> dict[str, Any] | None:
    """What `tools.kernels.triton --quick` prints, from a result file; None where it may now print something else."""
    from . import triton

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if (found.get("triton"), found.get("triton_inputs")) != (version("triton"), triton.inputs()):
        return None
    rows = [row for row in rows_of(found) if row["backend"] == "triton"]
    cases = [case[:5] for case in triton.chosen(quick=True)]
    if [tuple(row[name] for name in triton.Case._fields[:5]) for row in rows] != cases:
        return None
    return {"rows": rows, "digests": found["triton_sources"]}


def add_release(path: Path) -> None:
    """Writes what the installed Triton makes of the kernels shown beside what others made of them.

    PYTHONPATH=FOLDER python -m tools.kernels --release FILE, with a release that was installed there by
    pip install --no-deps --target FOLDER triton==3.6.0
    """
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
