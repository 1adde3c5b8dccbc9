"""What the compiler makes of the kernels with specialised warps, as JSON: a program without Triton's interpreter."""

import json
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from ttgir import groups, loaded

from hyperkern.backends.triton import config
from tools.kernels import triton as report
from tools.kernels.cubin import Instruction, instructions, usage
from tools.kernels.triton import Case

BATCH = 2
# Rows of each side, and into how many ranges its columns are cut.
SIDES = ((300, 2), (400, 1))


def program(case: Case) -> tuple[list[dict[str, int]], int, list[int]]:
    """The numbers that each program of a small problem gets, how many rows are stored, and where each one's start."""
    (m, splits), (n, splits_1) = SIDES
    both = case.kernel == "contract_sides_specialised"
    stripes, blocks_1 = -(-m // 128), -(-n // 128)
    common = {name: 0 for name, kind in case.signature.items() if kind != "constexpr" and kind != "fp32"}
    sizes = {"batch": BATCH, "m": m, "n": n, "splits": splits, "stripes": stripes, "rows": m + n}
    strides = {"stride_xm": case.dim, "stride_yn": case.dim, "stride_gm": case.dim}
    of_sides = {"m_0": m, "n_0": n, "col_0": m, "splits_0": splits}
    of_sides |= {"m_1": n, "n_1": m, "row_1": m, "splits_1": splits_1}
    found, first, starts = [], [0, BATCH * splits * m], []
    for side, (rows, cuts, blocks) in enumerate(((m, splits, stripes), (n, splits_1, blocks_1))[: 1 + both]):
        for i in range(blocks * cuts * BATCH):
            cut, element = i // blocks % cuts, i // blocks // cuts
            starts.append(first[side] + (cut * BATCH + element) * rows)
            numbers = {"program": len(found), "programs": BATCH * splits * stripes}
            found.append({**common, **sizes, **strides, **of_sides, **numbers})
    return found, first[1] + BATCH * splits_1 * n * both, starts


def rows_of(case: Case, text: str) -> str:
    """What is wrong with the rows that groups of warps load and store; nothing if it is empty.

    On sm_100 one group has all rows of a tile.
    """
    if case.architecture != "sm_90":
        return ""
    programs, count, starts = program(case)
    stored: list[list[np.ndarray]] = []
    for numbers, start in zip(programs, starts, strict=True):
        of_buffers = loaded(text, numbers)
        for group in groups(text, numbers):
            stored += [group.stored] if group.stored else []
            if not group.stored:  # it loads
                continue
            (buffer,) = group.buffers
            first = int(group.stored[-1].min(initial=1 << 40)) - start
            if group.stored[-1].size and first != of_buffers[buffer]:
                return f"rows from {of_buffers[buffer]} on are loaded, and stored from {first} on"
    for i, size in enumerate((count * case.dim, count) if len(stored[0]) == 2 else (count,)):
        addresses = np.sort(np.concatenate([each[i] for each in stored]))
        if not np.array_equal(addresses, np.arange(size)):
            return f"{len(addresses)} elements are stored, {len(np.unique(addresses))} different ones, of {size}"
    return ""


def loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The innermost loops that take exponentials."""
    ranges = [(i.target, i.address) for i in code if i.target is not None and i.target < i.address]
    inner = [r for r in ranges if not any(o != r and r[0] <= o[0] and o[1] <= r[1] for o in ranges)]
    bodies = [[i for i in code if first <= i.address <= last] for first, last in inner]
    return [body for body in bodies if any(i.opcode.startswith("MUFU.EX2") for i in body)]


def described(case: Case) -> dict[str, Any]:
    """What counts of a compiled kernel."""
    result = report.compiled(case)
    text, ptx = result.asm["ttgir"], result.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        of_thread = next(iter(usage(file.name).values()))
        _, code = next(iter(instructions(file.name)))
    of_rounds = [
        {
            "instructions": len(body),
            "exponentials": sum(i.opcode.startswith("MUFU.EX2") for i in body),
            "products": sum(i.opcode.startswith("HGMMA") for i in body),
            "waits": sum(i.opcode.startswith("WARPGROUP.DEPBAR") for i in body),
            "spilled": sum(i.opcode.split(".")[0] in ("LDL", "STL") for i in body),
        }
        for body in loops(code)
    ]
    return {
        "case": [*case[:5], case.options["num_stages"]],
        "specialised": len(re.findall(r"ttg\.warp_specialize\(", text)),
        "partitions": len(re.findall(r"\bpartition\d+\(", text)),
        "registers_moved": ptx.count("setmaxnreg"),
        "fetched": ptx.count("cp.async.bulk.tensor"),
        "loaded": ptx.count("ld.global"),
        "matrix": ptx.count("wgmma.mma_async") + ptx.count("tcgen05.mma"),
        "stack": of_thread.stack_bytes,
        "shared": result.metadata.shared,
        "scratch": result.metadata.global_scratch_size,
        "rounds": of_rounds,
        "wrong_rows": rows_of(case, text),
    }


def cases() -> list[Case]:
    """The specialised kernels of both architectures."""
    names = ("sm_90", "sm_100")
    all_of = [case for name in names for case in report.specialised_cases(config.of_name(name))]
    return [case for case in all_of if case.problem != "rest"]


def main() -> None:
    """Prints a description of each case."""
    with ProcessPoolExecutor(2) as pool:
        print(json.dumps(list(pool.map(described, cases()))))


if __name__ == "__main__":
    sys.exit(main())
