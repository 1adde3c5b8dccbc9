"""What the tests of drop-in replacements share: the original library, value and gradients, how close they must be."""

import contextlib
import importlib
import inspect
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Set by `make test-integrations`, whose environment has them all: there a missing library is an error.
REQUIRED = "HYPERKERN_REQUIRE_INTEGRATIONS"


def library(name: str) -> ModuleType:
    """The original, or a skipped test where it is not installed."""
    _make_torchvision_importable()
    if os.environ.get(REQUIRED):
        return importlib.import_module(name)
    return pytest.importorskip(name)


def _make_torchvision_importable() -> None:
    """Some of the libraries import torchvision, for what no loss needs.

    There is no build of it on PyPI for a PyTorch without CUDA. One for CUDA cannot load its operators there, and then
    stops at the first that it looks up; their declarations are enough for it to go on.
    """
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
            importlib.import_module("torchvision")


def defaults(function: Callable) -> dict[str, Any]:
    """The parameters of a function, without ``self``, and their defaults; those without one are `...`."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: ... if p.default is p.empty else p.default for p in parameters if p.name != "self"}


def value_and_grads(loss: Callable[..., Tensor], *args: Tensor, factor: float = 1.0) -> list[Tensor]:
    """The loss, and the gradient of ``factor`` times it for each argument: 0 where the loss does not depend on it."""
    leaves = [arg.detach().clone().requires_grad_() for arg in args]
    value = loss(*leaves)
    assert value.shape == ()
    grads = torch.autograd.grad(factor * value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest error, over the largest entry; of a loss, a difference of logarithms, over 1 if it is smaller."""
    assert actual.shape == expected.shape
    largest = max(expected.abs().max().item(), float(expected.dim() == 0))
    error = (actual.double() - expected.double()).abs().max().item()
    return error / largest if largest else error


def assert_parity(
    ours: Callable[..., Tensor],
    original: Callable[..., Tensor],
    *args: Tensor,
    largest_logit: float = 10.0,
    also: Callable[..., Tensor] | None = None,
) -> None:
    """Value and gradients: to 1e-10 in float64; to 1e-6 in float32, or to twice what the original loses there itself.

    With logits beyond 10 to 2e-6: their rounding, half a unit of 2^-20 there, is a relative error of the weights.

    The truth for float32 is what float64 makes of the same rounded numbers.

    Args:
        ours: the replacement.
        original: what it replaces.
        *args: features in float64.
        largest_logit: how large logits may become.
        also: another way to write the original, for instance by the tests' own formula.
    """
    rounded = [arg.float() for arg in args]
    truths = value_and_grads(original, *(arg.double() for arg in rounded))
    for way in (ours, also or ours):
        for actual, truth in zip(value_and_grads(way, *(arg.double() for arg in rounded)), truths, strict=True):
            assert actual.dtype == torch.float64
            assert relative_error(actual, truth) <= 1e-10
    tolerance = 1e-6 if largest_logit <= 10 else 2e-6
    peers = value_and_grads(original, *rounded)
    for actual, peer, truth in zip(value_and_grads(ours, *rounded), peers, truths, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, truth) <= max(tolerance, 2 * relative_error(peer, truth))


class Largest(TorchDispatchMode):
    """How many elements the largest tensor has that is made in it, backward too."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        made = (tensor.numel() for tensor in tree_leaves(result) if isinstance(tensor, Tensor))
        self.numel = max(self.numel, *made, 0)
        return result


def pretend(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """A process group that is not there."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
