"""Loss and gradient on one batch whose similarity matrix would not fit."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from hyperkern import uniformity
from hyperkern.memory import PeakMemory
from hyperkern.metrics import uniformity_limit

from .objectives import T

CPU_ROWS = 65_536
GPU_ROWS = 1_048_576
DIM = 128


class HugeBatch(NamedTuple):
    """What one forward and backward pass of the uniformity took.

    Attributes:
        rows: N.
        dim: D.
        seconds: time of the forward and the backward pass.
        extra_bytes: rise of the memory peak over the level before the call, the gradient included.
        extra_method: how that was measured.
        matrix_bytes: size of an N×N float32 matrix.
        uniformity: the value.
        limit: the value of the uniform distribution on the sphere.
    """

    rows: int
    dim: int
    seconds: float
    extra_bytes: int | None
    extra_method: str
    matrix_bytes: int
    uniformity: float
    limit: float


def default_rows(device: torch.device) -> int:
    """Return the number of rows that a device of this kind is given."""
    return GPU_ROWS if device.type == "cuda" else CPU_ROWS


def measure_huge_batch(device: torch.device, rows: int, *, backend: str | None) -> HugeBatch:
    """Compute the uniformity and its gradient on Gaussian features, which are uniform once normalised.

    Args:
        device: where to run.
        rows: N, at least 2.
        backend: backend of the uniformity, or None for the automatic choice.

    Returns:
        Time, memory and value.
    """
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(rows, DIM, generator=generator, device=device).requires_grad_()
    # One small call first: thread pools and compiled kernels belong to the process, not to the batch.
    small = x.detach()[:256].clone().requires_grad_()
    uniformity(small, t=T, backend=backend).backward()

    with PeakMemory(device) as memory:
        start = time.perf_counter()
        value = uniformity(x, t=T, backend=backend)
        value.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    return HugeBatch(
        rows=rows,
        dim=DIM,
        seconds=seconds,
        extra_bytes=memory.rise,
        extra_method=memory.method,
        matrix_bytes=4 * rows * rows,
        uniformity=value.item(),
        limit=uniformity_limit(DIM, T),
    )


def describe_huge_batch(huge: HugeBatch) -> list[str]:
    """Say in plain lines what was measured."""
    extra = "not measured" if huge.extra_bytes is None else _decimal_size(huge.extra_bytes)
    return [
        f"uniformity and its gradient on one batch of {huge.rows:,} × {huge.dim} float32",
        f"  time          {huge.seconds:.1f} s",
        f"  extra memory  {extra} (peak, by {huge.extra_method}); "
        f"an N×N float32 matrix would take {_decimal_size(huge.matrix_bytes)}",
        f"  value         {huge.uniformity:.4f}; uniform distribution on the sphere: {huge.limit:.4f}",
    ]


def _decimal_size(size: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
