"""What the reports of compiled kernels share: a row, what it says of the machine code, and how a table is printed."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .cubin import Instruction
from .hazards import serialised, walk
from .sass import Flow, Shape, is_matrix, main_loop, main_regions

_OF_A_ROUND = ("matrix", "exponentials", "polynomials", "special", "other")
# Names of PTX, which say more than those of machine code.
_PTX_NAMES = {"HGMMA": "wgmma", "HMMA": "mma", "UTC": "tcgen05"}


class Row(NamedTuple):
    """What the compiler made of one kernel for one architecture and use.

    Attributes:
        architecture: ``sm_90``, for instance.
        backend: ``triton`` or ``cuda``.
        kernel: its name.
        operand: the dtype, or the precision, of the rows; empty where a kernel has none.
        dim: D; 0 where a kernel has none.
        problem: the loss, the weight or the task.
        tile: rows x columns, and the elements of D of a step where that is not all; empty for row-wise kernels.
        warps: of a block of threads; 0 where the launch decides.
        stages: tiles in flight.
        registers: of a thread.
        spill_bytes: of local memory for each thread, where spilled registers go.
        shared_bytes: shared memory of a block of threads.
        loop_spills: instructions for local memory in loops with matrix instructions.
        loop_fences: waits in such loops until all accesses to memory are seen by others.
        instruction: the matrix instructions: ``wgmma``, ``mma``, ``tcgen05``.
        per_pair: instructions of a thread for each of its pairs in the main loop, unmasked; 0 for row-wise kernels.
        pairs: of a thread in one round of the main loop; the next five count the instructions of such a round.
        matrix: matrix instructions.
        exponentials: ``MUFU.EX2``.
        polynomials: exponentials by multiplications and additions; these instructions are among the others.
        special: other instructions of the special function unit.
        other: all others.
        stores: stores to global memory in the whole kernel by their width in bits.
        multicast: copies that go to several blocks of threads at once.
        late: exponentials of the main loop, masked or not, while no product of their warpgroup runs.
        serialised: products that the compiler waits for one by one.
        hazards: instructions that touch registers of an unfinished product.
    """

    architecture: str
    backend: str
    kernel: str
    operand: str
    dim: int
    problem: str
    tile: str
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    loop_spills: int
    loop_fences: int
    instruction: str
    per_pair: float
    pairs: float
    matrix: float
    exponentials: float
    polynomials: float
    special: float
    other: float
    stores: dict[str, int]
    multicast: int
    late: int
    serialised: int
    hazards: int


def of_code(code: Sequence[Instruction], shape: Shape | None) -> dict[str, Any]:
    """The fields of a row that the machine code tells. ``shape`` is that of a pairwise kernel."""
    flow = Flow(code)
    matrix = {i for i, instruction in enumerate(code) if is_matrix(instruction)}
    asynchronous = any(code[i].opcode.startswith("HGMMA") for i in matrix)
    names = {ptx for start, ptx in _PTX_NAMES.items() if any(code[i].opcode.startswith(start) for i in matrix)}
    with_matrix = [loop for loop in flow.loops if not matrix.isdisjoint(flow.places(loop))]
    in_loops = set().union(*map(flow.places, with_matrix))
    fields: dict[str, Any] = {
        "loop_spills": sum(code[i].opcode.startswith(("LDL", "STL")) for i in in_loops),
        "loop_fences": sum(code[i].opcode.startswith("MEMBAR") for i in in_loops),
        "instruction": " ".join(sorted(names)),
        **dict.fromkeys(("per_pair", "pairs", *_OF_A_ROUND, "late"), 0),
        "stores": _stores(code),
        "multicast": sum("MULTICAST" in instruction.opcode for instruction in code),
        "serialised": serialised(code) if asynchronous else 0,
        "hazards": 0,
    }
    if shape is not None:
        loop = main_loop(flow, shape)
        fields |= {"per_pair": round(loop.per_pair, 2), "pairs": _number(loop.pairs)}
        fields |= {name: _number(getattr(loop.round, name)) for name in _OF_A_ROUND}
    if asynchronous:
        found = walk(flow)
        tiles = set().union(*map(flow.places, main_regions(flow)))
        fields["late"] = sum(code[i].opcode.startswith("MUFU.EX2") for i in tiles & found.idle)
        fields["hazards"] = len(found.hazards)
    return fields


def _number(value: float) -> float:
    return int(value) if value == int(value) else round(value, 2)


def _stores(code: Iterable[Instruction]) -> dict[str, int]:
    found: Counter[int] = Counter()
    for instruction in code:
        if instruction.opcode.startswith("STG"):
            width = re.search(r"\.[US]?(8|16|64|128)(?:\.|$)", instruction.opcode)
            found[int(width[1]) if width else 32] += 1
    return {str(width): found[width] for width in sorted(found)}


# Shorter heads of columns, where the names are long.
_HEADS = {"architecture": "arch", "registers": "regs", "spill_bytes": "spills", "shared_bytes": "shared"}
_HEADS |= {"loop_spills": "in loop", "exponentials": "exp", "instruction": "products"}


def print_rows(rows: Iterable[Row]) -> None:
    """Prints a table."""
    lines = [[_text(value) for value in row] for row in rows]
    print_table([_HEADS.get(name, name) for name in Row._fields], lines)


def _text(value: Any) -> str:
    return " ".join(f"{count}x{width}" for width, count in value.items()) if isinstance(value, dict) else str(value)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints columns of equal width."""
    table = [tuple(header), *rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        print("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())
