"""What a forward pass changes besides its result, so that a chunk can be encoded twice as if it were once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class RandomState:
    """The state of the random number generators of the CPU and of some devices, at the time of the call.

    Args:
        devices: those whose generator an encoder may use. Reading it does not wait for a device.
        like: an earlier state, which shares the five kilobytes of the CPU's where these are the same.
    """

    def __init__(self, devices: Iterable[torch.device], like: RandomState | None = None) -> None:
        self._cpu = torch.get_rng_state()
        if like is not None and torch.equal(self._cpu, like._cpu):
            self._cpu = like._cpu
        self._devices = [(d, torch.get_device_module(d).get_rng_state(*_which(d))) for d in devices]

    def restore(self) -> None:
        """Sets them back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            torch.get_device_module(device).set_rng_state(state, *_which(device))


def generating(devices: Iterable[torch.device]) -> list[torch.device]:
    """The devices with a generator of their own, each once."""
    return list(dict.fromkeys(device for device in devices if device.type not in ("cpu", "meta")))


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # MPS has one device and takes no argument


class Held(NamedTuple):
    """A buffer of a module, and a copy of its value."""

    module: nn.Module
    name: str
    tensor: Tensor
    value: Tensor


class Buffers:
    """The buffers that modules in training mode change when they are called, such as running statistics.

    Which ones these are shows in their version counter or when another tensor is in their place. The kernels of batch
    normalisation count no versions but those of ``num_batches_tracked``, so all buffers of a module count as changed
    when one is.

    Args:
        modules: where to look, all levels.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [module for module in dict.fromkeys(modules) if module.training and any(_buffers(module))]
        self._suspects = self._modules
        self._marks: list[tuple[nn.Module, list[tuple[int, int]]]] = []

    def before(self) -> list[Held]:
        """Copies of what a call may change: of everything first, then of what the call before has changed."""
        self._marks = [(module, _marks(module)) for module in self._modules]
        return hold(self._suspects)

    def after(self, held: list[Held]) -> tuple[list[Held], list[nn.Module]]:
        """Of what `before` gave what has changed since, and all modules that have."""
        self._suspects = [module for module, marks in self._marks if marks != _marks(module)]
        changed = set(self._suspects)
        return [copy for copy in held if copy.module in changed], self._suspects


def hold(modules: Iterable[nn.Module]) -> list[Held]:
    """Copies of all buffers of modules, without those of their children."""
    return [
        Held(module, name, tensor, tensor.detach().clone()) for module in modules for name, tensor in _buffers(module)
    ]


@torch.no_grad()
def write_back(copies: Iterable[Held]) -> None:
    """Gives buffers the value, and the tensor, that they had."""
    for module, name, tensor, value in copies:
        module._buffers[name] = tensor
        tensor.copy_(value)


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, tensor) for name, tensor in module._buffers.items() if tensor is not None and not is_lazy(tensor)]


def _marks(module: nn.Module) -> list[tuple[int, int]]:
    return [(id(tensor), 0 if tensor.is_inference() else tensor._version) for _, tensor in _buffers(module)]
