"""One call in a process of its own, where it may die of too little memory: its peak, its time, its value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..memory import PeakMemory
from . import clock
from .gate import first_line, step
from .registry import CASES, IMPLEMENTATIONS, Setup, load_all, load_file

WARM_ROWS = 256


class Alone(NamedTuple):
    """What a step took.

    Attributes:
        peak_bytes: how far memory rose above the inputs, gradients counted; ``None`` where it cannot be measured.
        ms: its time.
        value: of the loss; ``None`` where it is no single number.
    """

    peak_bytes: int | None
    ms: float
    value: float | None


def once(name: str, execution: str, setup: Setup) -> Alone:
    """Runs one step, warmed up with few rows; what is compiled for its shape is compiled before."""
    case, implementation = CASES[setup.case], IMPLEMENTATIONS[setup.case, name]
    mode = "forward" if setup.mode == "forward" else "both"
    loss = implementation.loss(execution)
    compiled = implementation.compiled or execution == "compile"
    if not compiled:  # the libraries' own buffers are not ours to count
        warm = min(setup.n, WARM_ROWS // implementation.rows_multiple_of * implementation.rows_multiple_of)
        step(loss, case.draw(warm, setup.d, setup.dtype, setup.device, most_queue=WARM_ROWS), mode)
    inputs = case.draw(setup.n, setup.d, setup.dtype, setup.device)
    if compiled:  # the compiler's are larger still
        step(loss, inputs, mode)
    for x in inputs:
        x.grad = None
    results: list[Tensor] = []
    with PeakMemory(torch.device(setup.device)) as memory:
        ms = clock.once(lambda: results.extend(step(loss, inputs, mode)), setup.device)
    return Alone(memory.rise, ms, results[0].item() if results[0].dim() == 0 else None)


def each_alone(name: str, execution: str, setups: Sequence[Setup], files: Sequence[Path]) -> list[Alone | str]:
    """An implementation at several points, one after the other; for those that fail, why.

    Where the process dies, that point has failed, and another process goes on with the next.
    """
    found: list[Alone | str] = []
    while len(found) < len(setups):
        request = {
            "implementation": name,
            "execution": execution,
            "setups": [setup._asdict() for setup in setups[len(found) :]],
            "files": [str(file) for file in files],
            "threads": torch.get_num_threads(),
        }
        child = subprocess.run(
            [sys.executable, "-m", "hyperkern.bench.child"], input=json.dumps(request), capture_output=True, text=True
        )
        answers = [json.loads(line[len(_MARK) :]) for line in child.stdout.splitlines() if line.startswith(_MARK)]
        found += [answer if isinstance(answer, str) else Alone(*answer) for answer in answers]
        if len(found) < len(setups):
            found.append(_death(child.returncode, child.stderr))
    return found


_MARK = "alone: "


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
        answer: Alone | str
        try:
            answer = once(request["implementation"], request["execution"], Setup(**fields))
        except Exception as failure:
            answer = f"{type(failure).__name__}: {first_line(failure)}"
        print(_MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
