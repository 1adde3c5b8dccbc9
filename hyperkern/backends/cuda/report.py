"""Reports what the compiler made of the kernels in the built extension: no GPU is needed, only cuobjdump.

``python -m hyperkern.backends.cuda.report [kernels.so] [--arch sm_90a] [--json]``; `make kernels-report`.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ..common.report import Instruction, between, in_loops_with, instructions, print_table, usage

LIBRARY = Path(__file__).parent / "kernels.so"
# The enums of csrc/, in their order.
WEIGHTS = ("exp", "factor", "two", "softplus", "classes")
TASKS = (
    *("sum exp", "sum softplus", "sum running"),
    *("store exp", "store factor", "store two", "store softplus", "sum classes", "store classes"),
)
_OPERANDS = {"Bf16": "bfloat16", "Fp16": "float16", "Tf32": "float32, tf32", "Fp32": "float32"}
_PANEL_BYTES = 128
# Rows of up to four panels are resident; which streamed ones makes no difference.
_RESIDENT_PANELS, _STREAMED_PANELS = range(1, 5), range(5, 6)
_MATRIX = ("HGMMA", "HMMA")
_LOCAL = ("LDL", "STL")


class Row(NamedTuple):
    """One kernel for one architecture. ``loop`` counts what is in a loop with a matrix instruction.

    Local memory is where spilled registers go. ``late`` counts the exponentials in the loop of a contract kernel with
    wgmma that wait for the second product, and should run while it does. The row-wise kernels do not say their threads
    and shared memory: 0.
    """

    architecture: str
    kernel: str
    operand: str
    rows: str
    problem: str
    threads: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    hgmma: int
    hmma: int
    local: int
    loop: int
    loop_local: int
    late: int


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


def _block(name: _Name) -> tuple[int, int]:
    """Threads and the most shared memory of a block of threads, which the library knows."""
    family, _, matrix = name.kernel.partition("_")
    if matrix not in ("mma", "wgmma"):
        return 0, 0
    element = 4 if name.operand.startswith("float32") else 2
    if family == "contract":
        dims, kind = [int(name.rows)], WEIGHTS.index(name.problem)
    else:
        panels = _RESIDENT_PANELS if name.rows == "resident" else _STREAMED_PANELS
        dims, kind = [count * _PANEL_BYTES // element for count in panels], TASKS.index(name.problem)
    block = torch.ops.hyperkern_cuda.block
    threads, shared, _ = zip(
        *(block(("sums", "contract").index(family), element, dim, kind, matrix == "wgmma") for dim in dims), strict=True
    )
    return threads[0], max(shared)


def _late(code: list[Instruction], loop: set[int]) -> int:
    """The exponentials in a loop that no path reaches between the wait for one product and that for both."""
    waits = {
        pending: {i for i in loop if code[i].opcode.startswith("WARPGROUP.DEPBAR") and pending in code[i].operands}
        for pending in ("0x1", "0x0")
    }
    if not waits["0x1"]:
        return 0
    early = between(code, waits["0x1"], waits["0x0"])
    return sum(code[i].opcode.startswith("MUFU.EX2") for i in loop - early)


def rows(path: Path, architectures: list[str] | None = None) -> Iterator[Row]:
    """A row for every kernel of the library that is ever launched."""
    torch.ops.load_library(path)
    used = usage(path)
    for (architecture, mangled), code in instructions(path):
        name = _read(mangled)
        wanted = not architectures or architecture.startswith(tuple(architectures))
        if not wanted or not _launched(architecture, name):
            continue
        threads, shared = _block(name)
        local = {i for i, instruction in enumerate(code) if instruction.opcode.startswith(_LOCAL)}
        loop = in_loops_with(code, _MATRIX)
        hgmma, hmma = (sum(instruction.opcode.startswith(start) for instruction in code) for start in _MATRIX)
        of_thread = used[architecture, mangled]
        yield Row(
            architecture,
            *name,
            threads,
            of_thread.registers,
            of_thread.stack_bytes,
            shared,
            hgmma,
            hmma,
            len(local),
            len(loop),
            len(loop & local),
            _late(code, loop) if name.kernel == "contract_wgmma" else 0,
        )


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(description="Registers, spills and instructions of the kernels in the extension.")
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY, help="default: the built one")
    parser.add_argument("--arch", action="append", help="only what starts like this, as sm_90 (repeatable)")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args()
    if not args.library.exists():
        parser.error(f"{args.library} is not built: `make build`")
    found = sorted(rows(args.library, args.arch))
    if args.json:
        print(json.dumps([row._asdict() for row in found]))
        return
    header = dict(zip(Row._fields, Row._fields, strict=True))
    header |= {"architecture": "arch", "registers": "regs", "stack_bytes": "stack", "shared_bytes": "shared"}
    header["loop_local"] = "local in loop"
    print_table(list(header.values()), found)


if __name__ == "__main__":
    main()
