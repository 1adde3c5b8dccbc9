"""What the choice of a backend asks: is it right here? The first call that needs an answer waits for a check.

The answer is kept for the process, and on disk for those after it. Nothing is checked while a CUDA graph is captured or
a graph is traced: there the answer is "not now", and it is asked for again at the next call.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ..files import OutputError
from . import process, records
from .records import Machine, Record
from .scope import ROWS, Scope, class_of

ENVIRONMENT_VARIABLE = "HYPERKERN_CHECK"
MODES = ("first-use", "off", "trust", "require")
# Seconds for a check; those who wait for another process that checks give it a little more.
LIMIT, WAIT = 120.0, 150.0

_SAID = {
    "failed": "they failed their check",
    "crashed": "their check crashed",
    "timed out": "their check took too long",
    "no memory": "there was no memory for their check",
}
_ADVICE = (
    "The next backend computes instead, plain PyTorch at last, which is slower. `hyperkern check --backend {0}` checks "
    "again and says more; with --json report.json it makes a file to report it with"
)
_log = logging.getLogger("hyperkern")


class Verdict(NamedTuple):
    """Whether a backend may be taken."""

    usable: bool
    settled: bool  # whether that stays so for this process
    reason: str  # why it may not


# Of a backend on a device, why no process can check it: the same for all scopes.
_unchecked: dict[tuple[str, torch.device], str] = {}
# By what is asked, since a scale that changes with every call asks each time.
_verdicts: dict[tuple[str, torch.device, str, int], Verdict] = {}
# What this process has checked, which may not be on disk.
_found: dict[Machine, dict[str, Record]] = {}
_warned: set[tuple[str, torch.device, str, bool]] = set()
# One thread checks, the others wait for what it finds.
_checking = threading.RLock()


def _new_lock() -> None:
    """In a process that was forked meanwhile, the thread that would release the old one is not there."""
    global _checking
    _checking = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


def mode() -> str:
    """What ``HYPERKERN_CHECK`` says: one of `MODES`.

    Raises:
        ValueError: it says something else.
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE) or MODES[0]
    if given not in MODES:
        raise ValueError(f"{ENVIRONMENT_VARIABLE}={given!r} is unknown; choose one of {', '.join(MODES)}")
    return given


def verdict(backend: str, device: torch.device, kind: str, dim: int) -> Verdict:
    """Whether a backend has been found right in what a call needs; checks that if need be.

    Args:
        backend: by name.
        device: where.
        kind: of the products; empty where there are none, as in row-wise kernels.
        dim: D.

    Raises:
        RuntimeError: it may not be taken, where ``HYPERKERN_CHECK=require`` asks for it.
        ValueError: ``HYPERKERN_CHECK`` is unknown.
    """
    found = _verdicts.get((backend, device, kind, dim))
    if found is not None and found.usable:
        return found
    scope = Scope(kind or ROWS, class_of(dim))
    if found is None:
        if torch.compiler.is_compiling():  # what is traced is chosen again when it runs
            return Verdict(False, False, "not checked while a graph is traced")
        with _checking:
            found = _verdicts.get((backend, device, kind, dim))
            if found is None:
                found = _find(backend, device, scope, dim)
                if found.settled:
                    _verdicts[backend, device, kind, dim] = found
    if found.usable:
        return found
    what = "" if (backend, device) in _unchecked else f" for {scope}"
    text = f"the {backend} kernels are not used on {device}{what}: {found.reason}"
    if mode() == "require":
        raise RuntimeError(f"{ENVIRONMENT_VARIABLE}=require: {text}. {_ADVICE.format(backend)}")
    if mode() == "off":
        _log.info(text)
    elif (said := (backend, device, what, found.settled)) not in _warned:
        _warned.add(said)
        warnings.warn(f"{text}. {_ADVICE.format(backend)}", stacklevel=frames_of_libraries())
    return found


def frames_of_libraries() -> int:
    """How far up the stack the caller of the library is: that is where a warning belongs."""
    frame, level, libraries = sys._getframe(1), 1, (__name__.partition(".")[0], "torch")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in libraries:
        frame, level = frame.f_back, level + 1
    return level


def _find(backend: str, device: torch.device, scope: Scope, dim: int) -> Verdict:
    """The same where this process does not know it yet."""
    how = mode()
    if how == "trust":
        return Verdict(True, True, "")
    machine = records.machine(backend, device)
    record = of_scope(known(machine), scope)
    if record is None:
        if how == "off":
            return Verdict(False, True, f"not checked on {machine.device}, and {ENVIRONMENT_VARIABLE}=off")
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            reason = "not checked yet, and no check begins while a CUDA graph is captured: call the loss once before"
            return Verdict(False, False, reason)
        if (backend, device) not in _unchecked:
            outcome = _check(machine, device, scope, dim)
            if isinstance(outcome, str):
                _unchecked[backend, device] = outcome
            else:
                record = outcome
        if record is None:
            return Verdict(False, True, _unchecked[backend, device])
    if record.status == "passed":
        return Verdict(True, True, "")
    return Verdict(False, True, f"{_SAID[record.status]} ({record.age}): {record.reason}")


def known(machine: Machine) -> dict[str, Record]:
    """The records of a machine, by `Scope.key`."""
    return records.read(machine) | _found.get(machine, {})


def told(backend: str, device: torch.device) -> list[str]:
    """What is known of a backend on a device, a line for each scope."""
    machine = records.machine(backend, device)
    found = known(machine)
    if not found:
        return [f"{machine.device}: not checked yet, which the first call does, or `hyperkern check`"]
    lines = []
    for key, record in sorted(found.items()):
        what = f"{record.status}: {record.reason}"
        if not record.reason:
            what = f"passed {record.cases} cases, {100 * record.worst:.0f} % of the allowed error at most"
        lines.append(f"{machine.device}: {Scope.of_key(key)}: {what} ({record.age})")
    return lines


def keep(machine: Machine, scope: Scope, record: Record) -> None:
    """Keeps a record, for this process and, where there is a folder for it, on disk."""
    _found.setdefault(machine, {})[scope.key] = record
    try:
        records.write(machine, {scope: record})
    except (OSError, OutputError) as error:
        _log.info("not recorded, so that the next process checks again: %s", error)


def of_scope(found: dict[str, Record], scope: Scope) -> Record | None:
    """The record of a scope; row-wise kernels are checked along with every product, the best of which counts."""
    record = found.get(scope.key)
    if record is None and scope.kind == ROWS:
        others = [other for key, other in found.items() if key.endswith(scope.key.removeprefix(ROWS))]
        record = min(others, key=lambda other: other.status != "passed", default=None)
    return record


def _check(machine: Machine, device: torch.device, scope: Scope, dim: int) -> Record | str:
    """The record of a check, of this process or of one that came first; why there is none, where there is none."""
    with locked(machine) as first:
        if not first:
            return f"another process has been checking them for {WAIT:.0f} s"
        found = of_scope(known(machine), scope)
        if found is not None:
            return found
        _log.warning(
            "checking the %s kernels on %s for %s, once: up to %.0f s (%s=off takes plain PyTorch instead)",
            *(machine.backend, machine.device, scope, LIMIT, ENVIRONMENT_VARIABLE),
        )
        of_call = (dim, scope.other(dim))
        where = (machine.backend, str(device), machine.device, machine.digest)
        try:
            outcome = process.run(process.Request(*where, scope, of_call, "quick", torch.get_num_threads()), LIMIT)
        except Exception as error:  # a loss that cannot be checked can be computed
            return f"not checked: {type(error).__name__}: {error}"
        if outcome.status == "not checked":
            return f"not checked: {outcome.reason}"
        keep(machine, scope, outcome.record)
        return outcome.record


@contextlib.contextmanager
def locked(machine: Machine) -> Iterator[bool]:
    """One process at a time checks for a machine.

    Where no lock can be had, as in a home that cannot be written to or without the library for it, each checks for
    itself.

    Returns:
        Whether it is the turn of this one; not if another has it for too long.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        yield True
        return
    lock, mine = None, True
    try:
        path = records.path_of(machine)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        lock.acquire(timeout=WAIT)
    except Timeout:
        mine = False
    except (OSError, NotImplementedError):
        lock = None
    try:
        yield mine
    finally:
        if lock is not None and mine:
            lock.release()
