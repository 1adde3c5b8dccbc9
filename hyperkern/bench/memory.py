"""Peak memory: on a CPU in a process of its own for each implementation, on a GPU from PyTorch's allocator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..demo.memory import PeakMemory
from .gate import first_line, step
from .registry import CASES, IMPLEMENTATIONS, Setup, load_all, load_file

Peak = int | str | None  # bytes; or why it failed; or not measured

WARM_ROWS = 256


def peak(name: str, setup: Setup) -> int | None:
    """How far memory rises above the inputs in one step, gradients counted; ``None`` where it cannot be measured."""
    case, implementation = CASES[setup.case], IMPLEMENTATIONS[setup.case, name]
    mode = "forward" if setup.mode == "forward" else "both"
    loss = implementation.make()
    if not implementation.compiled:  # the libraries' own buffers are not ours to count
        warm = min(setup.n, WARM_ROWS // implementation.rows_multiple_of * implementation.rows_multiple_of)
        step(loss, case.draw(warm, setup.d, setup.dtype, setup.device), mode)
    inputs = case.draw(setup.n, setup.d, setup.dtype, setup.device)
    if implementation.compiled:  # the compiler's are larger still
        step(loss, inputs, mode)
    for x in inputs:
        x.grad = None
    with PeakMemory(torch.device(setup.device)) as memory:
        kept = step(loss, inputs, mode)
    del kept
    return memory.rise


def peaks_in_child(name: str, setups: Sequence[Setup], files: Sequence[Path]) -> list[Peak]:
    """The peaks of an implementation at several points, in a process that may die of them.

    Where it dies, that point has failed, and another process goes on with the next.
    """
    found: list[Peak] = []
    while len(found) < len(setups):
        request = {
            "implementation": name,
            "setups": [setup._asdict() for setup in setups[len(found) :]],
            "files": [str(file) for file in files],
            "threads": torch.get_num_threads(),
        }
        child = subprocess.run(
            [sys.executable, "-m", "hyperkern.bench.memory"], input=json.dumps(request), capture_output=True, text=True
        )
        answers = [json.loads(line[len(_MARK) :]) for line in child.stdout.splitlines() if line.startswith(_MARK)]
        found += answers
        if len(found) < len(setups):
            found.append(_death(child.returncode, child.stderr))
    return found


_MARK = "peak: "


def _death(status: int, errors: str) -> str:
    if status == -9:
        return "killed by the system, as it does when memory runs out"
    lines = errors.strip().splitlines()
    return f"its process ended with status {status}" + (f": {lines[-1][:200]}" if lines else "")


def main() -> None:
    """The child: a request on the standard input, a line for each point."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    load_all()
    for file in request["files"]:
        load_file(Path(file))
    for fields in request["setups"]:
        answer: Peak
        try:
            answer = peak(request["implementation"], Setup(**fields))
        except Exception as failure:
            answer = f"{type(failure).__name__}: {first_line(failure)}"
        print(_MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
