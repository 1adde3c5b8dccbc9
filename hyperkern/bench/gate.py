"""The gate before the clock: value and gradients against the textbook formula in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .registry import Case, Implementation, Loss, Setup

# Of the largest entry. In float32 `torch.pdist` passes, the least accurate of the textbook forms. In half precision a
# dense loss rounds its logits and sums, and gradients of float16 reach subnormal numbers, where no loss scale is used.
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-2}
ROWS = 500  # no multiple of a tile: a kernel that reads beyond its rows is seen


class GateFailure(Exception):
    """An implementation is wrong.

    Attributes:
        error: the relative error, where there is a number.
    """

    def __init__(self, reason: str, error: float | None = None) -> None:
        super().__init__(reason)
        self.error = error


def step(loss: Loss, inputs: Sequence[Tensor], mode: str = "both") -> list[Tensor]:
    """The value and, unless the mode is ``forward``, the gradients of all inputs that have one."""
    if mode == "forward":
        with torch.no_grad():
            return [loss(*inputs)]
    clear(inputs)
    value = loss(*inputs)
    torch.autograd.backward(value, torch.ones_like(value))  # a yardstick has no single number
    gradients = [x.grad for x in inputs]
    return [value.detach(), *(grad for grad in gradients if grad is not None)]


def clear(inputs: Sequence[Tensor]) -> None:
    """Forgets gradients, which would otherwise be added up."""
    for x in inputs:
        x.grad = None


def largest_error(results: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest error of any of the tensors, relative to its largest entry; infinite where one is not finite.

    Raises:
        GateFailure: results are missing, or of the wrong shape.
    """
    if len(results) != len(expected):
        raise GateFailure(f"{len(results) - 1} gradients, expected {len(expected) - 1}")
    worst = 0.0
    for got, want in zip(results, expected, strict=True):
        if got.shape != want.shape:
            raise GateFailure(f"shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if not got.isfinite().all():
            return float("inf")
        worst = max(worst, ((got.double() - want).abs().max() / want.abs().max()).item())
    return worst


def check(case: Case, implementation: Implementation, make: Callable[[], Loss], setup: Setup) -> float | None:
    """Holds an implementation against the truth in float64, on few rows of the setup's dimension and dtype.

    Returns:
        The relative error; ``None`` for a yardstick, which has no truth.

    Raises:
        GateFailure: it fails, or is further off than its dtype explains.
    """
    if case.truth is None:
        return None
    rows = min(setup.n, ROWS // implementation.rows_multiple_of * implementation.rows_multiple_of)
    mode = "forward" if setup.mode == "forward" else "both"
    inputs = case.draw(rows, setup.d, setup.dtype, setup.device, most_queue=ROWS)
    exact = [exactly(x) for x in inputs]
    expected = step(case.truth, exact, mode)
    try:
        results = step(make(), inputs, mode)
    except Exception as failure:
        raise GateFailure(f"{type(failure).__name__}: {first_line(failure)}") from failure
    error = largest_error(results, expected)
    if not error <= TOLERANCES[setup.dtype]:
        reason = f"wrong: relative error {error:.2g} of float64 at N {rows}, {TOLERANCES[setup.dtype]:g} is allowed"
        raise GateFailure(reason, error)
    return error


def exactly(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The same input in a wider dtype; labels as they are."""
    return x.detach().to(dtype).requires_grad_(x.requires_grad) if x.is_floating_point() else x


def first_line(failure: BaseException) -> str:
    """What a message begins with."""
    lines = str(failure).strip().splitlines()
    return lines[0][:200] if lines else ""
