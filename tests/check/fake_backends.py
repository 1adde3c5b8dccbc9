"""Backends that compute by the reference, and go wrong in a way: in this process, and in those that check them.

A process that starts with `environment` has one in front of all others, by a ``sitecustomize`` of its own.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hyperkern import backends
from hyperkern.backends import Problem, reference

NAME = "fake"
_ME = Path(__file__)
_TURNS = itertools.count()


def environment(behaviour: str, folder: Path) -> dict[str, str]:
    """What a process needs to have the fake; ``folder`` notes each that checks it, in a file ``checks``."""
    custom = folder / "site"
    custom.mkdir(exist_ok=True)
    code = f"import sys; sys.path.append({str(_ME.parent)!r}); import {_ME.stem} as fake; fake.install_here()\n"
    (custom / "sitecustomize.py").write_text(code)
    return {
        "PYTHONPATH": os.pathsep.join([str(custom), str(_ME.parents[2])]),
        "FAKE_BACKEND": behaviour,
        "FAKE_FOLDER": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def checks(folder: Path) -> int:
    """How many processes have checked it."""
    noted = folder / "checks"
    return len(noted.read_text().splitlines()) if noted.exists() else 0


def install_here() -> None:
    """Puts it in front of all others, as the environment says."""
    behaviour = os.environ["FAKE_BACKEND"]
    sys.modules[f"hyperkern.backends.{NAME}"] = make(behaviour)
    backends.PRIORITY = (NAME, *backends.PRIORITY)
    if os.environ.get("HYPERKERN_CHECK") == "off":  # as in the process of a check
        with open(Path(os.environ["FAKE_FOLDER"], "checks"), "a") as noted:
            noted.write(f"{os.getpid()}\n")
        if behaviour == "exclusive":
            torch.zeros = _busy
        if behaviour == "cannot be imported":
            torch.set_num_threads = _no_such_file
        if behaviour == "noisy":
            print("a library says hello", flush=True)


def make(behaviour: str) -> Any:
    """The module of the backend."""
    fake: Any = ModuleType(f"hyperkern.backends.{NAME}")
    for name in ("LOSSES", "prepare", "normalize_backward", "row_lse", "pair_grad", "energy", "loss", "loss_grad"):
        setattr(fake, name, getattr(reference, name))
    fake.unsupported = _unsupported
    fake.unverified = lambda problem: []
    fake.evidence = lambda device: ""
    if behaviour in _WRONG:
        name, wrong = _WRONG[behaviour]
        setattr(fake, name, wrong)
    fake.calls = _counted(fake)
    return fake


def _unsupported(problem: Problem) -> list[str]:
    known = (torch.float32, torch.bfloat16, torch.float16)
    return [] if problem.dtype in known else [f"dtype {problem.dtype}"]


def _counted(fake: Any) -> list[str]:
    """The names of its functions that are called, as they are."""
    calls: list[str] = []

    def note(name: str) -> None:
        function = getattr(fake, name)

        def noted(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        setattr(fake, name, noted)

    for name in ("prepare", "normalize_backward", "row_lse", "pair_grad", "energy", "loss", "loss_grad"):
        note(name)
    return calls


def _one_element(*args: Any, **options: Any) -> Any:
    found = reference.row_lse(*args, **options)
    found.row[-1, found.row.shape[1] // 2] += 1e-3
    return found


def _last_row(needed: Any, *args: Any) -> Any:
    found = reference.loss_grad(needed, *args)
    found["x"][..., -1, :] = torch.nan
    return found


def _unwritten(needed: Any, *args: Any) -> Any:
    found = reference.loss_grad(needed, *args)
    written = torch.empty_like(found["x"])
    written[..., :-1, :] = found["x"][..., :-1, :]
    return {**found, "x": written}


def _temperature(needed: Any, *args: Any) -> Any:
    found = reference.loss_grad(needed, *args)
    return {**found, "scale": 1.03 * found["scale"]} if "scale" in found else found


def _other_bits(*args: Any) -> Any:
    found = reference.loss(*args)
    if found is None:
        return None
    return found._replace(values=tuple(v * (1 + 2e-7 * (next(_TURNS) % 7)) for v in found.values))


def _without_ids(x: Any, y: Any, terms: Any, spec: Any, **options: Any) -> Any:
    exclude = "none" if spec.exclude == "same_id" else spec.exclude
    return reference.row_lse(x, y, terms, spec._replace(exclude=exclude), **options)


def _rows_alone(*args: Any, need_cols: bool) -> Any:
    found = reference.row_lse(*args, need_cols=need_cols)
    return found if need_cols else found._replace(row=found.row + 1e-3)


def _one_side(*args: Any, need_x: bool, need_y: bool) -> Any:
    found = reference.pair_grad(*args, need_x=need_x, need_y=need_y)
    return found if need_x or args[1] is None else tuple(3 * part for part in found)


def _dead_rows(x: Any) -> Any:
    unit, rstd = reference.prepare(x)
    return unit.masked_fill((x == 0).all(-1, keepdim=True), torch.nan), rstd


def _off(*args: Any) -> Any:
    found = reference.loss(*args)
    return None if found is None else found._replace(values=tuple(1.005 * value for value in found.values))


def _terminated(*args: Any, **options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def _full_disk(*args: Any, **options: Any) -> Any:
    raise OSError(28, "No space left on device")


def _raises(*args: Any, **options: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA")


def _names_a_file(*args: Any, **options: Any) -> Any:
    raise RuntimeError("an assertion failed in /home/alice/projects/secret.cu:7")


def _aborts(*args: Any, **options: Any) -> Any:
    os.abort()


def _killed(*args: Any, **options: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(*args: Any, **options: Any) -> Any:
    while True:
        time.sleep(60)


def _no_memory(*args: Any, **options: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _exits(*args: Any, **options: Any) -> Any:
    raise SystemExit(0)


_WRONG: dict[str, tuple[str, Callable[..., Any]]] = {
    "wrong in one element": ("row_lse", _one_element),
    "nan in the last row": ("loss_grad", _last_row),
    "ignores ids": ("row_lse", _without_ids),
    "wrong rows alone": ("row_lse", _rows_alone),
    "wrong on one side": ("pair_grad", _one_side),
    "dead rows": ("prepare", _dead_rows),
    "half a percent off": ("loss", _off),
    "terminated": ("pair_grad", _terminated),
    "a full disk": ("pair_grad", _full_disk),
    "never writes a row": ("loss_grad", _unwritten),
    "not deterministic": ("loss", _other_bits),
    "three percent off": ("loss_grad", _temperature),
    "raises": ("pair_grad", _raises),
    "path": ("pair_grad", _names_a_file),
    "aborts": ("energy", _aborts),
    "killed": ("energy", _killed),
    "hangs": ("energy", _hangs),
    "no memory": ("energy", _no_memory),
    "exits": ("energy", _exits),
}


def _no_such_file(*args: Any) -> Any:
    raise OSError(2, "no such file")


def _busy(*args: Any, **options: Any) -> Any:
    raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")
