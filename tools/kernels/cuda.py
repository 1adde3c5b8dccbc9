"""Reports what the compiler made of the kernels in the built extension: no GPU is needed, only cuobjdump.

``python -m tools.kernels.cuda [kernels.so] [--arch sm_90a] [--json]``; `make kernels-report`.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import hyperkern

from .cubin import instructions, usage
from .rows import Row, of_code, print_rows
from .sass import WARP, WARPGROUP, Shape

LIBRARY = Path(hyperkern.__file__).parent / "backends" / "cuda" / "kernels.so"
# The enums of csrc/, in their order.
WEIGHTS = ("exp", "factor", "two", "softplus", "classes")
TASKS = (
    *("sum exp", "sum softplus", "sum running"),
    *("store exp", "store factor", "store two", "store softplus", "sum classes", "store classes"),
)
_OPERANDS = {"Bf16": "bfloat16", "Fp16": "float16", "Tf32": "float32, tf32", "Fp32": "float32"}
_PANEL_BYTES = 128
# What the kernels of sums are shown for: rows of up to four panels stay in shared memory where they can, others stream.
_RESIDENT_DIMS, _STREAMED_DIMS = (64, 128, 256), (768,)
_SUMS_COLS = 128  # of a tile


class _Name(NamedTuple):
    """What a mangled name says.

    ``rows`` is a dimension, 'resident' or 'streamed', of row-wise kernels the chunks of a row; ``problem`` is a weight
    or a task.
    """

    kernel: str
    operand: str
    rows: str
    problem: str


def _read(name: str) -> _Name:
    # Template arguments: a type of this namespace, or a literal of a type and a value.
    match = re.fullmatch(r"_ZN9hyperkern\d+(\w+?)_kernel(?:I(.*?)EEv)?.*", name)
    if match is None:
        return _Name(name, "", "", "")
    kernel, arguments = match[1], match[2] or ""
    operand = next((full for short, full in _OPERANDS.items() if f"NS_4{short}E" in arguments), "")
    weight = re.search(r"LNS_6WeightE(\d)", arguments)
    task = re.search(r"LNS_4TaskE(\d)", arguments)
    numbers = re.findall(r"Li(\d+)E", arguments)
    flag = re.search(r"Lb([01])", arguments)
    if kernel == "sums_wgmma" and flag is not None:
        rows = "resident" if flag[1] == "1" else "streamed"
    elif kernel == "sums_mma":
        rows = "streamed"
    else:
        rows = " ".join([*numbers, "long"] if flag is not None and flag[1] == "1" else numbers)
    problem = WEIGHTS[int(weight[1])] if weight else TASKS[int(task[1])] if task else ""
    return _Name(kernel, operand, rows, problem)


def _launched(architecture: str, name: _Name) -> bool:
    """Whether anything launches a kernel there: operands of two bytes take wgmma on sm_90a, and only there."""
    if not name.kernel.endswith("mma"):
        return True
    wgmma = architecture == "sm_90a" and name.operand in ("bfloat16", "float16")
    return name.kernel.endswith("_wgmma") == wgmma


class _Use(NamedTuple):
    """A kernel as it is launched for a D. Row-wise kernels do not say any of it: 0."""

    dim: int = 0
    tile: str = ""
    threads: int = 0
    stages: int = 0
    shared_bytes: int = 0
    shape: Shape | None = None


def _uses(name: _Name) -> Iterator[_Use]:
    family, _, matrix = name.kernel.partition("_")
    if matrix not in ("mma", "wgmma"):
        yield _Use()
        return
    element = 4 if name.operand.startswith("float32") else 2
    contract = family == "contract"
    kind = WEIGHTS.index(name.problem) if contract else TASKS.index(name.problem)
    times = 3 if name.operand == "float32" else 1
    dims = (int(name.rows),) if contract else _RESIDENT_DIMS if name.rows == "resident" else _STREAMED_DIMS
    for dim in dims:
        threads, shared, stages = torch.ops.hyperkern_cuda.block(int(contract), element, dim, kind, matrix == "wgmma")
        consumers = threads - WARPGROUP if matrix == "wgmma" else threads
        rows = consumers // WARP * 16
        if not contract:
            rows, cols = rows * (2 if matrix == "wgmma" else 1), _SUMS_COLS
        else:
            # Rows and a ring of columns lie in shared memory, and with wgmma barriers, which are less than a column.
            cols = (shared // (dim * element) - rows) // stages
        shape = Shape(dim * times * (2 if contract else 1), rows * cols / consumers)
        yield _Use(dim, f"{rows}x{cols}", threads, stages, shared, shape)


def rows(path: Path, architectures: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of every kernel of the library that is ever launched: of those for rows of any length several."""
    torch.ops.load_library(path)
    used = usage(path)
    for (architecture, mangled), code in instructions(path):
        name = _read(mangled)
        wanted = not architectures or architecture.startswith(tuple(architectures))
        if not wanted or not _launched(architecture, name):
            continue
        of_thread = used[architecture, mangled]
        for use in _uses(name):
            yield Row(
                architecture=architecture.removesuffix("a"),
                backend="cuda",
                kernel=name.kernel,
                operand=name.operand,
                dim=use.dim,
                problem=name.problem or name.rows,
                tile=use.tile,
                warps=use.threads // WARP,
                stages=use.stages,
                registers=of_thread.registers,
                spill_bytes=of_thread.stack_bytes,
                shared_bytes=use.shared_bytes,
                **of_code(code, use.shape),
            )


def report(architectures: Sequence[str] | None = None, library: Path = LIBRARY) -> list[Row]:
    """All rows, in the order of their names."""
    return sorted(rows(library, architectures), key=lambda row: row[:6])


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description="Registers, spills and instructions of the kernels in the extension.")
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY, help="default: the built one")
    parser.add_argument("--arch", action="append", help="only what starts like this, as sm_90 (repeatable)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args()
    if not args.library.exists():
        parser.error(f"{args.library} is not built: `make build`")
    found = report(args.arch, args.library)
    if args.json:
        print(json.dumps([row._asdict() for row in found]))
        return
    print_rows(found)


if __name__ == "__main__":
    main()
