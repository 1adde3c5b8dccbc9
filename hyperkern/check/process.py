"""A check in a process of its own: started, listened to, and ended when its time is up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from . import records
from .records import Record
from .scope import Scope

_SIGKILL = 9  # for which Windows has no name
MARK = "hyperkern check: "
# Nothing on the way to the first import may come from the folder that a user happens to be in. The package that asks is
# the one to be checked, whatever else has come into the path since, and whatever its name is there: a loader of kernels
# gives each build a name of its own.
_COMMAND = """
import sys; sys.path[:] = filter(None, sys.path)
import json; request = json.loads(sys.stdin.readline())
sys.path[:] = dict.fromkeys(request["path"] + sys.path)
if "hyperkern" not in sys.modules:
    from importlib import util
    spec = util.spec_from_file_location("hyperkern", request["package"])
    sys.modules["hyperkern"] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["hyperkern"])
from hyperkern.correctness.child import main
main(request)
"""
_PACKAGE = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))
_ROOT = os.path.dirname(_PACKAGE)
# Signals by which somebody ends what this process has started, and that say nothing of a kernel.
_ENDED = ("SIGHUP", "SIGINT", "SIGTERM", "SIGXCPU")


class Row(NamedTuple):
    """One case of a check."""

    what: str  # was computed
    shape: str  # of which size, in words
    status: str  # passed or failed
    error: float | None  # the largest; None where there is no number
    allowed: float | None  # the largest allowed
    seconds: float  # that it took, compilation included
    reason: str  # what is wrong; empty if nothing is

    @property
    def share(self) -> float:
        """The error, of the one allowed; 0 where there is no number."""
        return self.error / self.allowed if self.error is not None and self.allowed else 0.0


class Request(NamedTuple):
    """What a child is to check. Name and digest, those of a `hyperkern.check.records.Machine`, must be its own too."""

    backend: str  # by name
    device: str  # as text
    name: str  # of the device
    digest: str  # of the kernels
    scope: Scope  # what is to be covered
    dims: tuple[int, ...]  # the D that are taken, all of the scope's class
    depth: str  # quick, as at a first use, or full, see hyperkern.correctness.cases
    threads: int  # of PyTorch on a CPU


class Outcome(NamedTuple):
    """How a check has ended."""

    status: str  # one of hyperkern.check.records.STATUSES, or "not checked", where no process could do it
    reason: str  # why it has not passed
    rows: list[Row]  # the cases that have ended
    seconds: float  # that it took

    @property
    def record(self) -> Record:
        """What is kept of it."""
        worst = max((row.share for row in self.rows), default=0.0)
        return Record(self.status, self.reason, records.now(), round(self.seconds, 1), len(self.rows), worst)


class Stop:
    """Ends checks that other threads wait for, those that are about to start as well."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def add(self, child: subprocess.Popen[bytes]) -> None:
        """Takes note of a process that has started."""
        self._running.add(child)
        if self._stopped:
            _kill(child)

    def discard(self, child: subprocess.Popen[bytes]) -> None:
        """Forgets one that has ended."""
        self._running.discard(child)

    def all(self) -> None:
        """Ends them."""
        self._stopped = True
        for child in list(self._running):
            _kill(child)


def run(
    request: Request, limit: float, ended: Callable[[Row], None] = lambda row: None, stop: Stop | None = None
) -> Outcome:
    """Checks.

    Args:
        request: what.
        limit: seconds that it may take.
        ended: called with each case as it ends.
        stop: by which another thread may end it.
    """
    stop = stop or Stop()
    start = time.monotonic()
    rows: list[Row] = []
    last: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors:
        try:
            child = _start(request, errors)
        except (OSError, ValueError) as error:
            return Outcome("not checked", f"no process could be started for it ({error})", rows, 0.0)
        stop.add(child)
        late = threading.Event()

        def end() -> None:
            late.set()
            _kill(child)

        timer = threading.Timer(limit, end)
        try:
            timer.start()
            for line in _answers(child, request):
                if "what" in line:
                    rows.append(Row(**line))
                    ended(rows[-1])
                else:
                    last |= line
            child.wait()
        finally:
            timer.cancel()
            stop.discard(child)
            if child.poll() is None:  # the caller was interrupted
                _kill(child)
                child.wait()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        status, reason = _verdict(rows, last, late.is_set(), child.returncode, limit, errors)
    return Outcome(status, reason, rows, time.monotonic() - start)


def _start(request: Request, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    if not sys.executable or getattr(sys, "frozen", False):  # it would start the program again
        raise ValueError("this program has no Python interpreter to start")
    environment = {
        **os.environ,
        "HYPERKERN_CHECK": "off",  # whatever it computes, it checks nothing on the way
        "HYPERKERN_BACKEND": "",
        "PYTHONWARNINGS": "ignore",  # nobody sees them, and as errors they would be failures
    }
    if request.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        cwd=None if _is_there() else _ROOT,
        start_new_session=True,  # so that it is killed with the compilers that it has started
    )


def _is_there() -> bool:
    """The folder that this process is in: it may have been removed."""
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _answers(child: subprocess.Popen[bytes], request: Request) -> Iterator[dict[str, Any]]:
    assert child.stdin is not None
    assert child.stdout is not None
    asked = {"path": _path(), "package": os.path.join(_PACKAGE, "__init__.py"), **request._asdict()}
    with contextlib.suppress(BrokenPipeError):  # it has ended: its errors say why
        child.stdin.write(f"{json.dumps(asked)}\n".encode())
        child.stdin.flush()  # and it stays open: the child ends where nobody holds the other end
    for line in child.stdout:
        text = line.decode(errors="replace")
        if text.startswith(MARK) and text.endswith("\n"):
            with contextlib.suppress(ValueError):
                yield json.loads(text[len(MARK) :])


def _path() -> list[str]:
    """The caller's, behind the standard library: a user's module may have the name of one of its own."""
    library = sysconfig.get_path("platstdlib")
    entries = [sysconfig.get_path("stdlib"), library, os.path.join(library, "lib-dynload"), _ROOT]
    for entry in sys.path:
        with contextlib.suppress(OSError):  # a folder that is gone
            entries += [os.path.abspath(entry)] if isinstance(entry, str) else []
    return list(dict.fromkeys(entries))


def _kill(child: subprocess.Popen[bytes]) -> None:
    """With all that it has started; whatever is left of its session."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, _SIGKILL)
        else:
            child.kill()


def _verdict(
    rows: Sequence[Row], last: dict[str, Any], late: bool, status: int, limit: float, errors: IO[bytes]
) -> tuple[str, str]:
    """The status of a check and the reason."""
    if "status" in last:
        return last["status"], last["reason"]
    failed = [row for row in rows if row.status == "failed"]
    if failed:
        return "failed", said(failed)
    behind = f" after {rows[-1].what} ({rows[-1].shape})" if rows else ", before the first case had ended"
    if late:
        return "timed out", f"it had not ended after {limit:.0f} s{behind}"
    if last.get("done") and status == 0:
        return "passed", ""
    if status == -_SIGKILL:
        return "no memory", f"its process was killed{behind}, as the system does when memory runs out"
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 10_000))
    lines = errors.read().decode(errors="replace").strip().splitlines()
    names = {number.value: number.name for number in signal.Signals}
    cause = f"signal {names.get(-status, -status)}" if status < 0 else f"status {status}"
    reason = f"its process ended with {cause}{behind}" + (f": {lines[-1][:200]}" if lines else "")
    # Of a kernel that is no more than of whoever ended it, or of what the process needed to start.
    return "crashed" if last.get("begun") and names.get(-status) not in _ENDED else "not checked", reason


def said(failed: Sequence[Row]) -> str:
    """The cases that have failed, in a sentence."""
    first = failed[0]
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"{first.what} ({first.shape}): {first.reason}{more}"
