"""The process of a check: cases in, one line out for each."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from .. import backends
from ..check import records
from ..check.process import MARK
from ..check.scope import Scope
from .cases import Case, Checked, cases, setting_of

# Compilers of a child; Triton's leave the interpreter's lock for most of their time.
_MOST_COMPILERS = 8
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EACCES)
# What CUDA says where a GPU is for one process alone, which has it.
_TAKEN = "busy or unavailable"


def main(request: dict[str, Any]) -> None:
    """Checks what is asked for, see `hyperkern.check.process.Request`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer = _answers_to(sys.stdout.fileno())
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
    except RuntimeError as error:
        if _out_of_memory(error):
            answer({"status": "no memory", "reason": "the GPU has no memory left for it"})
        elif _TAKEN in str(error):
            reason = "the GPU takes one process at a time (exclusive-process mode): no second one can check it there; "
            reason += "`hyperkern check --jobs 1` can while nothing else uses it"
            answer({"status": "not checked", "reason": reason})
        else:
            answer({"status": "not checked", "reason": f"PyTorch cannot use {device}: {_first_line(error)}"})
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if name != request["name"]:  # the environment has changed since the parent took its GPUs
        answer({"status": "not checked", "reason": f"{device} is another GPU in a new process, {name}"})
        return
    if records.digest(request["backend"]) != request["digest"]:
        answer({"status": "not checked", "reason": f"other kernels would be checked, those of {backends.__file__}"})
        return
    os.environ[backends.ENVIRONMENT_VARIABLE] = request["backend"]
    scope = Scope(*request["scope"])
    torch.set_float32_matmul_precision(setting_of(scope.kind))  # for good: threads share it
    # Then memory comes filled with nan, so that an element that is never written is seen.
    torch.set_deterministic_debug_mode("warn")  # and not by the function that imports the compiler for it
    todo = list(cases(request["backend"], device, scope, request["dims"], request["depth"]))
    answer({"begun": True})
    try:
        if device.type == "cuda":
            _compile(todo)
        for case in todo:
            answer(_row(case))
    except torch.OutOfMemoryError as error:
        answer({"status": "no memory", "reason": _first_line(error)})
    except _NoRoom as error:
        answer({"status": "not checked", "reason": _first_line(error)})
    else:
        answer({"done": True})


class _NoRoom(Exception):
    """The machine has no memory, no room on a disk or no descriptor for the check: that says nothing of a kernel."""


def _end_with_parent() -> None:
    """Nobody else would end this process: it is no part of the parent's group."""
    # Not by the file object, whose lock the end of the process would wait for.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _answers_to(output: int) -> Callable[[dict[str, Any]], None]:
    """Writes lines to where the parent listens; whatever else is printed goes to the errors."""
    answers = os.dup(output)
    sys.stdout.flush()
    os.dup2(sys.stderr.fileno(), output)

    def answer(content: dict[str, Any]) -> None:
        os.write(answers, f"{MARK}{json.dumps(content)}\n".encode())

    return answer


def _compile(todo: Sequence[Case]) -> None:
    """Runs what compiles kernels for the first time side by side; what fails fails again when its turn comes."""

    def run(case: Case) -> None:
        try:
            case.run()
        except Exception:
            return

    with ThreadPoolExecutor(min(_MOST_COMPILERS, os.cpu_count() or 1)) as pool:
        list(pool.map(run, [case for case in todo if case.compiles]))
    torch.cuda.synchronize()


def _row(case: Case) -> dict[str, Any]:
    """Runs a case."""
    start = time.perf_counter()
    try:
        found: Checked | str = case.run()
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:
        if _out_of_memory(failure):
            raise torch.OutOfMemoryError(_first_line(failure)) from failure
        if isinstance(failure, MemoryError) or getattr(failure, "errno", None) in _OF_THE_MACHINE:
            raise _NoRoom(f"{type(failure).__name__}: {_first_line(failure)}") from failure
        found = f"{type(failure).__name__}: {_first_line(failure)}"
    row = {"what": case.what, "shape": case.shape, "seconds": round(time.perf_counter() - start, 3)}
    if isinstance(found, str):
        return row | {"status": "failed", "error": None, "allowed": None, "reason": found}
    error = found.error if found.error < float("inf") else None  # JSON knows no nan
    status = "passed" if found.right else "failed"
    return row | {"status": status, "error": error, "allowed": found.allowed, "reason": found.reason}


def _out_of_memory(error: Exception) -> bool:
    """CUDA has errors of its own for it, beside that of PyTorch's allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
