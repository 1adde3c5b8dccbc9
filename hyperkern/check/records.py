"""What has been checked on this machine: one file for each backend, GPU, driver, release and source of the kernels.

A file whose key is another does not count: whatever may change the machine code that runs is part of it.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files import as_json, write_files
from .scope import Scope

SCHEMA = 1
STATUSES = ("passed", "failed", "crashed", "timed out", "no memory")
# Memory that was taken may be free again, and what a slow machine had no time to compile is half done: for so many
# seconds that counts.
PASSING = 3600.0

_PACKAGE = Path(__file__).parents[1]


class Machine(NamedTuple):
    """What a record belongs to."""

    backend: str
    device: str  # the name of the GPU
    capability: str  # its compute capability, 9.0
    driver: str  # the version of its driver
    torch: str  # that of PyTorch
    triton: str  # that of Triton; empty where there is none
    digest: str  # of the sources, configurations and compiled kernels of the backend, and of the check


class Record(NamedTuple):
    """The outcome of a check."""

    status: str  # one of STATUSES
    reason: str  # why it has not passed; empty if it has
    date: str  # when, in UTC, ISO 8601
    seconds: float  # that it took
    cases: int  # how many there were
    worst: float  # the largest error, as a share of the one allowed

    @property
    def age(self) -> str:
        """In words."""
        age = int(self._age().total_seconds())
        if age < -60:
            return "dated later than this clock"
        days, seconds = divmod(max(0, age), 86400)
        for number, unit in ((days, "day"), (seconds // 3600, "hour"), (seconds // 60, "minute")):
            if number:
                return f"{number} {unit}{'s' if number > 1 else ''} ago"
        return "just now"

    @property
    def counts(self) -> bool:
        """Whether it still says something."""
        passing = self.status == "no memory" or (self.status == "timed out" and not self.cases)
        return not passing or 0 <= self._age().total_seconds() < PASSING

    def _age(self) -> datetime.timedelta:
        return datetime.datetime.now(datetime.timezone.utc) - datetime.datetime.fromisoformat(self.date)


def now() -> str:
    """The date of a record that is made now."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@functools.lru_cache(maxsize=64)
def machine(backend: str, device: torch.device) -> Machine:
    """What records of a backend on a device belong to; on a CPU its kernels are interpreted or emulated."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = ""
    if device.type != "cuda":
        return Machine(backend, device.type, "", "", str(torch.__version__), triton, digest(backend))
    name = torch.cuda.get_device_name(device)
    capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
    return Machine(backend, name, capability, driver_version(), str(torch.__version__), triton, digest(backend))


@functools.cache
def driver_version() -> str:
    """That of NVIDIA's driver: as its module says, else its tool, else the version of CUDA that it knows."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").split()
        return next(word for word in words if word.count(".") >= 1 and word.replace(".", "").isdigit())
    except (OSError, StopIteration, UnicodeDecodeError):
        pass
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
        except (OSError, subprocess.SubprocessError):
            found = []
        if found and found[0][0].isdigit():
            return found[0]
    known = getattr(torch._C, "_cuda_getDriverVersion", None)
    return f"CUDA {known()}" if known is not None else "unknown"


@functools.cache
def digest(backend: str) -> str:
    """Of all that its numbers depend on: sources, configurations, the compiled library, and the check itself."""
    total = hashlib.sha256()
    found = sorted(_PACKAGE.glob("*.so"))  # where a build for the kernels hub has the compiled one
    for folder in (f"backends/{backend}", "backends/host", "correctness"):
        found += [path for path in sorted((_PACKAGE / folder).rglob("*")) if path.suffix in (".py", ".json", ".so")]
    for path in found:
        total.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:32]


def folder() -> Path:
    """Where records are kept: in the user's cache folder.

    Raises:
        OSError: the user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative path is to be ignored, says the XDG specification.
        cache = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return cache / "hyperkern" / "checks"


def path_of(key: Machine) -> Path:
    """The file of a machine."""
    of_key = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return folder() / f"{key.backend}-{of_key}.json"


def read(key: Machine) -> dict[str, Record]:
    """The records by `Scope.key`; none where there is no file, or one that cannot be read or is of something else."""
    try:
        content: Any = json.loads(path_of(key).read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA or content["machine"] != key._asdict():
            return {}
        found = {Scope.of_key(name).key: Record(**fields) for name, fields in content["scopes"].items()}
        return {name: r for name, r in found.items() if r.status in STATUSES and r.age and r.counts}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write(key: Machine, outcomes: dict[Scope, Record]) -> None:
    """Adds records to those of a machine; whoever else may write holds the lock of the file.

    Raises:
        OSError: the folder cannot be made.
        OutputError: the file cannot be written.
    """
    path = path_of(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = read(key) | {scope.key: record for scope, record in outcomes.items()}
    scopes = {name: record._asdict() for name, record in records.items()}
    write_files({path: as_json({"schema": SCHEMA, "machine": key._asdict(), "scopes": scopes})})
