"""The gate of the drop-ins, a loss against another in float64; and what the scripts make of their times."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hyperkern.bench.result import as_json, quantile
from hyperkern.files import write_files


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


def spread(samples_ms: Sequence[float]) -> dict[str, float]:
    """Median, interquartile range and fastest of some times."""
    low, median, high = (quantile(samples_ms, q) for q in (0.25, 0.5, 0.75))
    return {"median_ms": median, "iqr_ms": high - low, "fastest_ms": min(samples_ms)}


def in_words(row: Mapping[str, Any]) -> str:
    """Median ± half of the interquartile range (fastest)."""
    return f"{row['median_ms']:.3g} ± {row['iqr_ms'] / 2:.2g} ({row['fastest_ms']:.3g})"


def write(path: Path, content: object) -> None:
    """Writes a result file."""
    write_files({path: as_json(content)})
