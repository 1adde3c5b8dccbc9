"""The gate of the drop-ins: a loss against another in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


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
