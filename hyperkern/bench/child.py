"""What runs in a process of its own, where it may die of too little memory; a call there: its peak, time and value."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..memory import PeakMemory
from . import clock
from .gate import first_line, step
from .load import load_all, load_file
from .registry import CASES, IMPLEMENTATIONS, Setup

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
        answers, death = run(_alone, name, execution, setups[len(found) :], files=files)
        found += answers
        if death is not None and len(found) < len(setups):
            found.append(death)
    return found


def _alone(name: str, execution: str, setups: Sequence[Setup]) -> Iterator[Alone | str]:
    for setup in setups:
        try:
            answer: Alone | str = once(name, execution, setup)
        except Exception as failure:
            answer = f"{type(failure).__name__}: {first_line(failure)}"
        yield answer


def run(function: Callable[..., Iterator[Any]], *args: Any, files: Sequence[Path] = ()) -> tuple[list[Any], str | None]:
    """Runs a function in a process of its own, with all cases registered and as many threads as here.

    Args:
        function: of a module, yields answers that can be pickled.
        args: can be pickled.
        files: your own, with further cases and implementations.

    Returns:
        What it yielded, and why its process did not come to the end; ``None`` where it did.
    """
    request = pickle.dumps((function, args, files, torch.get_num_threads()))
    child = subprocess.run([sys.executable, "-m", "hyperkern.bench.child"], input=request, capture_output=True)
    output, answers = io.BytesIO(child.stdout), []
    with contextlib.suppress(EOFError, pickle.UnpicklingError):  # it died while it wrote
        while output.tell() < len(child.stdout):
            answers.append(pickle.load(output))
    if child.returncode == -signal.SIGKILL:
        return answers, "killed by the system, as it does when memory runs out"
    lines = child.stderr.decode(errors="replace").strip().splitlines()
    why = f"its process ended with status {child.returncode}" + (f": {lines[-1][:200]}" if lines else "")
    return answers, why if child.returncode else None


def main() -> None:
    """The child: a request on the standard input, the answers on the output, to which nothing else gets."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        function, args, files, threads = pickle.load(sys.stdin.buffer)
        torch.set_num_threads(threads)
        load_all()
        for file in files:
            load_file(file)
        for answer in function(*args):
            answers.write(pickle.dumps(answer))


if __name__ == "__main__":
    main()
