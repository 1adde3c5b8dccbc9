"""What a benchmark needs besides the clock: the machine's own matrix rate, the correctness gate, the peak memory."""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

_SIZE = 2048
_OPERANDS = [torch.randn(_SIZE, _SIZE) for _ in range(2)]
_PRODUCT = torch.empty(_SIZE, _SIZE)


def sgemm_rate() -> float:
    """FLOP/s of one float32 product of the machine's own library, 2048 x 2048 x 2048."""
    start = time.perf_counter()
    torch.mm(*_OPERANDS, out=_PRODUCT)
    return 2 * _SIZE**3 / (time.perf_counter() - start)


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def loss_and_grads(loss: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The loss and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def check(loss: Callable[..., Tensor], truth: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """The gate before the clock: loss and gradients of float32 inputs against the truth in float64.

    1e-4 of the largest entry lets `torch.pdist` pass, the least accurate of the baselines.

    Raises:
        AssertionError: a result is further off than float32 explains.
    """
    expected = loss_and_grads(truth, [x.double() for x in inputs])
    for got, want in zip(loss_and_grads(loss, inputs), expected, strict=True):
        error, size = (got.double() - want).abs().max().item(), want.abs().max().item()
        assert error <= 1e-4 * size, f"{getattr(loss, '__name__', loss)}: error {error:.2e} on values up to {size:.2e}"


_PEAK_PROGRAM = """
import ctypes, json, re, sys, time, torch, hyperkern
def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)) * 1024
def step(x):
    hyperkern.uniformity(x).backward()
rows, dim = map(int, sys.argv[1:])
step(torch.randn(256, dim, requires_grad=True))  # the libraries' own buffers are not ours to count
x = torch.randn(rows, dim, requires_grad=True)
ctypes.CDLL(None).malloc_trim(0)  # freed heap that stays resident would be used again unseen
open("/proc/self/clear_refs", "w").write("5")  # peak := current
before, start = status("VmRSS"), time.perf_counter()
step(x)
print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": status("VmHWM") - before}))
"""


def uniformity_peak(rows: int, dim: int) -> dict[str, float]:
    """Seconds and peak extra resident bytes of loss + gradient of one float32 batch, in a process of its own (Linux).

    The gradient that stays is counted, the input is not.
    """
    output = subprocess.run(
        [sys.executable, "-c", _PEAK_PROGRAM, str(rows), str(dim)], check=True, capture_output=True, text=True
    ).stdout
    result: dict[str, float] = json.loads(output)
    return result
