"""Runs a plan: each step a process group of its own, with a time limit; what one of them loses, no other does.

Nothing of PyTorch is imported here: what a step does to a GPU, or to its driver, cannot reach the process that keeps
the results.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SCHEMA = 1
ROOT = Path(__file__).parents[2]
# Of the log; what a step prints beyond is nowhere but on the terminal.
LOG_BYTES = 8 << 20
# Seconds between Ctrl-C, at which a command writes what it has, and the end; and between two looks at a step.
GRACE, TICK = 5.0, 0.1
# What stands in a command for this Python, and for the file that a step adds its rows to.
PYTHON, ROWS = "python3", "ROWS"


class Run(NamedTuple):
    """What a step is in one mode.

    Attributes:
        command: its words; `PYTHON` stands for this Python, `ROWS` for the file of its rows.
        limit: seconds that it may take.
        most: seconds that it may take where the steps before it have left so many of theirs.
    """

    command: tuple[str, ...]
    limit: float
    most: float = 0.0


class Step(NamedTuple):
    """A step of a plan.

    Attributes:
        name: how it is called.
        shows: what it is evidence of.
        full: what it is in a whole run; ``None``: no part of it.
        smoke: in one of a minute.
        cpu: walked through without a GPU.
        environment: variables beside those of the run.
        needs: names of what must be there, see `Session.missing`.
    """

    name: str
    shows: str
    full: Run | None
    smoke: Run | None
    cpu: Run | None
    environment: dict[str, str] = {}  # noqa: RUF012, never changed
    needs: tuple[str, ...] = ()

    def of(self, mode: str) -> Run | None:
        """What it is in a mode."""
        run: Run | None = getattr(self, mode)
        return run


@dataclass
class Session:
    """One run of a plan.

    Attributes:
        mode: ``full``, ``smoke`` or ``cpu``.
        budget: seconds of the whole run, from `started`.
        out: the folder of the results.
        scratch: a folder for what is nothing to the results.
        machine: what it runs on.
        missing: why something that steps need is not there, or ``None``; by name, asked before each step.
        started: on `time.monotonic`.
        steps: what became of the steps so far.
        rows: theirs.
    """

    mode: str
    budget: float
    out: Path
    scratch: Path
    machine: dict[str, Any]
    missing: dict[str, Callable[[], str | None]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    steps: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.started + self.budget - time.monotonic()

    def write(self) -> None:
        """The results so far, whole: whoever reads them finds those of this step or of the one before."""
        result = {"schema": SCHEMA, "machine": self.machine, "mode": self.mode, "steps": self.steps, "rows": self.rows}
        beside = self.out / ".result.json"
        beside.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
        os.replace(beside, self.out / "result.json")


def run_plan(session: Session, steps: Sequence[Step]) -> int:
    """Runs the steps of a mode, one after the other.

    Returns:
        0; 1 if one of them failed or ran out of its time; 130 if interrupted, with what there is until then.
    """
    todo = [(step, run) for step in steps if (run := step.of(session.mode)) is not None]
    with open(session.out / "log.txt", "wb") as log, open(session.out / "rows.jsonl", "wb") as rows:
        try:
            for i, (step, run) in enumerate(todo):
                later, left = sum(other.limit for _, other in todo[i + 1 :]), session.left - GRACE
                limit = min(left, max(run.limit, min(run.most, left - later)))
                _Running(session, step, run, limit, Tee(log), rows).through()
                session.write()
        except KeyboardInterrupt:
            print("gpu_check.sh: interrupted", file=sys.stderr)
            session.write()
            return 130
    print_summary(session)
    return 1 if any(step["status"] in ("failed", "timed out") for step in session.steps) else 0


def print_summary(session: Session) -> None:
    """One line for each step, the failures among them to be seen."""
    print("\n== summary")
    for step in session.steps:
        mark = step["status"] if step["status"] in ("passed", "skipped") else step["status"].upper()
        reason = "" if step["reason"] is None else f"  {step['reason']}"
        print(f"{step['name']:<18}{mark:<11}{step['seconds']:>7.1f} s  {step['rows']:>4} rows{reason}"[:200])


class Tee:
    """Output of steps, to a file and to where this process prints; and the last line of a step."""

    def __init__(self, log: Any) -> None:
        self._log, self._end = log, b""

    def write(self, output: bytes) -> None:
        """Bytes as they come, whatever they are."""
        self._log.write(output[: max(0, LOG_BYTES - self._log.tell())])
        self._log.flush()
        self._end = (self._end + output)[-2000:]
        with contextlib.suppress(OSError):  # nobody reads it any more: the results are files
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()

    def begin(self, head: bytes) -> None:
        """The head of a step, whose last line is none of it."""
        self.write(head)
        self._end = b""

    @property
    def last_line(self) -> str:
        """That says something."""
        lines = self._end.decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[-300:]


class _Running:
    """A step while it runs."""

    def __init__(self, session: Session, step: Step, run: Run, limit: float, tee: Tee, rows: Any) -> None:
        self.session, self.step, self.run, self.limit, self.tee, self.rows = session, step, run, limit, tee, rows
        self.file = session.scratch / f"{len(session.steps)}.jsonl"
        self.read, self.found = 0, 0

    def through(self) -> None:
        """From its beginning to its entry in the results."""
        start, before = time.monotonic(), self._compiled()
        self.tee.begin(f"\n== {self.step.name}: {self.step.shows}\n".encode())
        status, reason = "skipped", self._obstacle()
        try:
            if reason is None:
                status, reason = "failed", "interrupted"
                status, reason = self._process()
        finally:
            self._collect(last=True)
            found = {"name": self.step.name, "shows": self.step.shows, "command": " ".join(self.run.command)}
            found |= {"status": status, "reason": None if reason is None else anonymous(reason, self.session)}
            found |= {"seconds": round(time.monotonic() - start, 2), "limit_s": round(self.limit, 1)}
            self.session.steps.append(found | {"rows": self.found, "compiled": self._compiled() - before})
            if status != "passed":
                self.tee.write(f"== {self.step.name}: {status}: {reason}\n".encode(errors="replace"))

    def _obstacle(self) -> str | None:
        """Why it does not run, or ``None``."""
        if self.limit <= 0:
            return f"no time left of {self.session.budget:g} s"
        return next(filter(None, (self.session.missing[need]() for need in self.step.needs)), None)

    def _process(self) -> tuple[str, str | None]:
        """Runs the command; returns the status and, unless it passed, a reason."""
        words = {PYTHON: sys.executable, ROWS: str(self.file)}
        command = [words.get(word, word) for word in self.run.command]
        # What it needs was asked for since the limit was set, which may have taken a while.
        deadline = time.monotonic() + min(self.limit, self.session.left - GRACE)
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self.step.environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=os.setpgrp,  # no session of its own: what ends this one ends the step too
            )
        except OSError as error:
            return "failed", f"cannot be started: {error.strerror}"
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        with process.stdout:
            try:
                late = not self._watch(process, deadline)
            except KeyboardInterrupt:
                self._end(process)
                raise
            line = self.tee.last_line  # of its work, rather than of its end
            if late:
                self._end(process)
        if late:
            return "timed out", f"took longer than {self.limit:.0f} s" + (f"; the last line: {line}" if line else "")
        self._kill(process)  # what it left running would disturb the next step
        if process.returncode == 0:
            return "passed", None
        return "failed", f"exit status {process.returncode}" + (f": {line}" if line else "")

    def _watch(self, process: subprocess.Popen, deadline: float) -> bool:
        """Takes output and rows until the process ends; whether it does before a time."""
        while process.poll() is None:
            self._take(process)
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
        self._take(process)
        return True

    def _take(self, process: subprocess.Popen) -> None:
        """What the process has printed and measured since the last time, of one that prints without end a part."""
        assert process.stdout is not None
        for _ in range(64):
            output = process.stdout.read(1 << 16)
            if not output:
                break
            self.tee.write(output)
        self._collect()

    def _end(self, process: subprocess.Popen) -> None:
        """Ctrl-C for all of its processes, and the end where that does not help."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(KeyboardInterrupt):  # a second one: no patience
            self._watch(process, time.monotonic() + GRACE)
        self._kill(process)
        process.wait()
        self._take(process)

    @staticmethod
    def _kill(process: subprocess.Popen) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def _collect(self, *, last: bool = False) -> None:
        """Copies the whole lines that the step has added to its file; at the end a torn one is left behind."""
        with contextlib.suppress(FileNotFoundError), open(self.file, "rb") as file:
            file.seek(self.read)
            new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self.read += len(whole)
            for row in rows_of(whole, self.session):
                row = {"step": self.step.name, **row}
                self.rows.write((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="replace"))
                self.session.rows.append(row)
                self.found += 1
            self.rows.flush()
            if last and len(new) > len(whole):
                self.tee.write(b"== a row that was not written to its end is left out\n")

    def _compiled(self) -> int:
        """Kernels in Triton's cache."""
        cache = os.environ.get("TRITON_CACHE_DIR")
        return 0 if cache is None else sum(1 for _ in Path(cache).rglob("*.cubin"))


def rows_of(lines: bytes, session: Session) -> Iterator[dict[str, Any]]:
    """The rows in whole lines; what is none is left out."""
    for line in anonymous(lines.decode(errors="replace"), session).split("\n"):
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def anonymous(text: str, session: Session) -> str:
    """A text without the folders of this machine, which a result is not about."""
    for folder, name in (
        (str(session.scratch), "SCRATCH"),
        (str(ROOT), "."),
        (sys.prefix, "PYTHON"),
        (str(Path.home()), "~"),
    ):
        text = text.replace(folder, name) if len(folder) > 1 else text
    return text
