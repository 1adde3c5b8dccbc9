"""A meter of peak memory that needs nothing beyond the standard library and PyTorch."""

from __future__ import annotations

import ctypes
import gc
import os
import threading

import torch

SAMPLE_SECONDS = 0.002


class PeakMemory:
    """Measures how far the peak of memory inside a `with` block lies above the level at its start.

    On a GPU this is what PyTorch's allocator handed out. On a CPU it is the resident memory of the whole
    process: from the kernel's high-water mark where it may be reset, else from samples taken by a thread;
    systems without `/proc` are not measured.

    Attributes:
        rise: the rise in bytes, or None if it could not be measured.
        method: how it was measured.
    """

    def __init__(self, device: torch.device) -> None:
        """Take the device whose memory counts."""
        self.rise: int | None = None
        self.method = "not measured: no /proc on this system"
        self._device = device
        self._level = 0
        self._sampler: _Sampler | None = None

    def __enter__(self) -> PeakMemory:
        """Note the level."""
        gc.collect()
        if self._device.type == "cuda":
            self.method = "torch.cuda.max_memory_allocated"
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._level = torch.cuda.memory_allocated(self._device)
        elif os.path.exists("/proc/self/status"):
            _release_free_heap()
            if _reset_high_water_mark():
                self.method = "VmHWM of the process"
                self._level = _status_bytes("VmRSS")
            else:
                self.method = f"resident memory of the process, sampled every {1000 * SAMPLE_SECONDS:g} ms"
                self._level = _status_bytes("VmRSS")
                self._sampler = _Sampler()
                self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Note the peak."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.rise = torch.cuda.max_memory_allocated(self._device) - self._level
        elif self._sampler is not None:
            self.rise = max(0, self._sampler.stop() - self._level)
        elif self._level:
            self.rise = max(0, _status_bytes("VmHWM") - self._level)


class _Sampler(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak = _status_bytes("VmRSS")
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, _status_bytes("VmRSS"))

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return max(self._peak, _status_bytes("VmRSS"))


def _release_free_heap() -> None:
    # Freed heap that stays resident would be used again unseen, and the rise would come out too small.
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return  # not glibc


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # "5" resets VmHWM to the current resident size
        return _status_bytes("VmHWM") > 0
    except (OSError, KeyError):
        return False


def _status_bytes(field: str) -> int:
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    return int(fields[field].split()[0]) * 1024  # the kernel's kB are 1024 bytes
