"""What a figure belongs to: the machine, its clocks and versions, and its own rates, measured in the same run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..backends import backend_info
from .clock import once, ready, sample, synchronize
from .registry import DTYPES, BenchError
from .result import Limit, Provenance, quantile

# One H200, for plans without one: all assumed. Half precision and copy are as others published them
# (docs/performance.md), the rest stands in its data sheet.
H200 = {
    "bfloat16": Limit(flops=790e12, bytes=4.3e12),
    "float16": Limit(flops=790e12, bytes=4.3e12),
    "float32": Limit(flops=67e12, bytes=4.3e12),
    "float64": Limit(flops=67e12, bytes=4.3e12),
}


# Side of the product and bytes of the copy, of which no cache holds the second.
SIDE = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 1 << 27, "cuda": 1 << 28}


class Rates:
    """Measures the rates of a dtype, again and again in the course of a run.

    Args:
        device: where.
        dtype: of the product and the copy.
    """

    def __init__(self, device: str, dtype: str) -> None:
        of_device = "cpu" if device == "cpu" else "cuda"
        self._size = SIDE[of_device]
        kind = DTYPES[dtype]
        if device == "cpu" and kind.itemsize == 2:
            self._size //= 4  # not every processor has instructions for them
        self._device = device
        a, b = (torch.randn(self._size, self._size, device=device).to(kind) for _ in range(2))
        product = torch.empty_like(a)
        # No zeros, which some memories compress.
        source = torch.rand(COPIED[of_device] // kind.itemsize, device=device).to(kind)
        target = torch.empty_like(source)
        self._runs: dict[str, Callable[[], Tensor]] = {
            "flops": lambda: torch.mm(a, b, out=product),
            "bytes": lambda: target.copy_(source),
        }
        self._counts = {"flops": 2.0 * self._size**3, "bytes": 2.0 * source.numel() * source.element_size()}
        self.found: dict[str, list[float]] = {"flops": [], "bytes": []}
        self.measure()  # the first is a warm-up
        self.found = {"flops": [], "bytes": []}
        self.measure()

    def measure(self) -> None:
        """One figure more for each rate."""
        for name, run in self._runs.items():
            if self._device == "cpu":
                times = [once(run, self._device)]
            else:
                times = sample(ready(run, self._device), "eager", self._device)
            synchronize(self._device)
            self.found[name].append(1e3 * self._counts[name] / quantile(times, 0.5))

    def limit(self, since: int = 0) -> Limit:
        """The medians, of all figures or of those since a number of them."""
        medians = {name: quantile(rates[since:] or rates, 0.5) for name, rates in self.found.items()}
        return Limit(**medians, best_flops=max(self.found["flops"]))


def find_device(name: str | None, *, here: bool = True) -> str:
    """The device of a name, ``cpu`` or ``cuda`` with or without an index; by default a GPU if there is one.

    Raises:
        BenchError: it is neither, or, where it is to be ``here``, there is none.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    found = re.fullmatch(r"(cpu|cuda)(?::(\d+))?", name)
    if found is None:
        raise BenchError(f"argument --device: must be cpu, cuda or cuda:<index>, got {name!r}")
    if found[1] == "cpu":
        return "cpu"  # of which there is one, whatever its index
    if here and int(found[2] or 0) >= torch.cuda.device_count():
        raise BenchError(f"argument --device: PyTorch finds {torch.cuda.device_count()} GPUs, got {name!r}")
    return name


def describe(device: str) -> Provenance:
    """This machine, its versions, the commit and the date: what every result file carries."""
    info = backend_info()["versions"]
    on_gpu = device != "cpu"
    try:
        own = importlib.metadata.version("hyperkern")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "0+source"
    return Provenance(
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        processor=processor(),
        threads=torch.get_num_threads(),
        clocks=clocks(device),
        torch=info["torch"],
        triton=info["triton"],
        cuda=info["cuda"] if on_gpu else None,
        driver=_smi("driver_version", device) if on_gpu else None,
        python=platform.python_version(),
        hyperkern=own,
        commit=commit(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def busy() -> str | None:
    """A warning where other work takes the processors: threads that wait for each other then wait for that too."""
    if not hasattr(os, "getloadavg"):
        return None
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load <= processors / 2:
        return None
    return f"the machine is busy (load {load:.1f} on {processors} processors): times will be too long and vary"


def processor() -> str:
    """The name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def clocks(device: str) -> str | None:
    """Those of the moment, where they can be read."""
    if device != "cpu":
        found = _smi("clocks.sm,clocks.mem,power.limit", device)
        return None if found is None else f"sm, memory, power limit: {found}"
    mhz = _cpuinfo("cpu MHz")
    return None if mhz is None else f"{float(mhz):.0f} MHz"


def commit() -> str:
    """That of the source tree this runs from, or of ``HYPERKERN_COMMIT``."""
    given = os.environ.get("HYPERKERN_COMMIT")
    if given:
        return given
    root = Path(__file__).parents[2]
    if shutil.which("git") is None or not (root / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip() or "unknown"


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), None)


def _smi(query: str, device: str) -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    index = str(torch.device(device).index or 0)
    options = [f"--query-gpu={query}", "--format=csv,noheader", f"--id={index}"]
    result = subprocess.run([command, *options], capture_output=True, text=True)
    return result.stdout.strip() or None if result.returncode == 0 else None
