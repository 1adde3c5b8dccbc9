"""The modules behind an encoder, and those of them that reduce gradients over ranks: DDP, FSDP."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn


def modules_behind(call: Any) -> list[nn.Module]:
    """The modules that a callable can be seen to use, not their children.

    The module itself; what a bound method is bound to; function and arguments of a `functools.partial`; attributes of a
    callable object; of a function what it closes over, and the modules among the global names in it.
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting = [call]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.append(part)
        elif isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif inspect.ismethod(part):
            owner = part.__self__
            waiting.append(owner)
            waiting += [value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, nn.Module)]
        elif inspect.isfunction(part):
            for cell in part.__closure__ or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    waiting.append(cell.cell_contents)
            named = (part.__globals__.get(name) for name in _names(part.__code__))
            waiting += [value for value in named if isinstance(value, nn.Module)]
        elif callable(part) and not inspect.isclass(part):
            waiting += [value for value in getattr(part, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return found


def _names(code: CodeType) -> Iterator[str]:
    """The names of globals and attributes in a function and in those that it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


class Wrappers:
    """The outermost wrappers behind the encoders of some inputs: each is to reduce its gradients once, at its last use.

    Args:
        modules: for each input the modules behind its encoder.
        sync: whether they shall reduce at all.
    """

    def __init__(self, modules: Sequence[Sequence[nn.Module]], sync: bool) -> None:
        self._sync = sync
        self._of_input = [_wrappers(behind) for behind in modules]
        self._all = list(dict.fromkeys(itertools.chain.from_iterable(self._of_input)))
        for wrapper in self._all:
            if getattr(wrapper, "static_graph", False):
                raise ValueError(
                    "encoders must be in DDP without static_graph, which reduces in its first step after the first "
                    "chunk: got static_graph=True"
                )
        self._ran: set[tuple[int, nn.Module]] = set()
        self._last: dict[nn.Module, tuple[int, int]] = {}
        self._from_loss: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    @contextlib.contextmanager
    def watched(self, i: int) -> Iterator[None]:
        """A forward pass of input `i` without reductions, which shows what its encoder uses."""

        def note(wrapper: nn.Module, _: Any) -> None:
            self._ran.add((i, wrapper))

        # A hook would be compiled in, and compiled again without it.
        uncompiled = (wrapper for wrapper, compiled in self._of_input[i].items() if not compiled)
        hooks = [wrapper.register_forward_pre_hook(note) for wrapper in uncompiled]
        try:
            with self._without(self._all):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def plan(self, counts: dict[int, int]) -> None:
        """Finds the last use of each.

        Args:
            counts: the inputs that will be encoded again, in their order, and in how many chunks.
        """
        seen = {wrapper for _, wrapper in self._ran}
        for wrapper in self._all:
            # One that was seen in no input is compiled, or is called by another method than its forward pass.
            ran = [i for i in counts if wrapper not in seen or (i, wrapper) in self._ran]
            users = [i for i in ran if wrapper in self._of_input[i]]
            if users:
                self._last[wrapper] = (users[-1], counts[users[-1]] - 1)

    @contextlib.contextmanager
    def loss_pass(self) -> Iterator[None]:
        """Forward and backward pass of the loss, from which parameters of DDP's get their gradient with its last chunk.

        A learned temperature that lives in the wrapped model but is used by the loss alone would otherwise be reduced
        before, or not at all, and DDP would wait for it.
        """
        ddp = [wrapper for wrapper in self._all if hasattr(wrapper, "no_sync")]
        owned = [(wrapper, [p for p in wrapper.parameters() if p.requires_grad]) for wrapper in ddp]
        kept = [(parameter, parameter.grad) for _, parameters in owned for parameter in parameters]
        for parameter, _ in kept:
            parameter.grad = None
        try:
            with self._without(self._all):
                yield
            for wrapper, parameters in owned:
                self._from_loss[wrapper] = [(p, p.grad) for p in parameters if p.grad is not None]
                for parameter in parameters:  # one that two wrappers share counts once
                    parameter.grad = None
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient

    def left_over(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters and their gradients from the loss, of wrappers that have no last use."""
        return [pair for wrapper, pairs in self._from_loss.items() if wrapper not in self._last for pair in pairs]

    @contextlib.contextmanager
    def turn(self, i: int, chunk: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Forward and backward pass of a chunk: only wrappers whose last use it is reduce.

        Gives the parameters of these and their gradients from the loss, to go into the backward pass.
        """
        last = {wrapper for wrapper, use in self._last.items() if use == (i, chunk)}
        reduced = last if self._sync else set()
        with self._without([wrapper for wrapper in self._all if wrapper not in reduced]):
            yield [pair for wrapper in last for pair in self._from_loss.pop(wrapper, [])]

    @contextlib.contextmanager
    def _without(self, wrappers: Sequence[nn.Module]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for wrapper in wrappers:
                without: Callable[..., Any] | None = getattr(wrapper, "no_sync", None)
                stack.enter_context(without() if without is not None else _sharded_without_sync(wrapper))
            yield


@contextlib.contextmanager
def _sharded_without_sync(wrapper: Any) -> Iterator[None]:
    """FSDP's counterpart of ``no_sync``; afterwards its flags are as by default, since they cannot be read."""
    flags = [getattr(wrapper, f"set_{name}", None) for name in ("requires_gradient_sync", "is_last_backward")]
    try:
        for flag in flags:
            if flag is not None:
                flag(False)
        yield
    finally:
        for flag in flags:
            if flag is not None:
                flag(True)


def _outermost(module: nn.Module, compiled: bool = False) -> Iterator[tuple[nn.Module, bool]]:
    """The wrappers that lie in no other, and whether a compiler sees their call."""
    compiled = compiled or getattr(module, "_compiled_call_impl", None) is not None
    original = module._modules.get("_orig_mod")
    if isinstance(original, nn.Module):  # what `torch.compile` returns answers for the attributes of the original
        yield from _outermost(original, True)
    elif hasattr(module, "no_sync") or hasattr(module, "set_requires_gradient_sync"):
        yield module, compiled
    else:
        for child in module.children():
            yield from _outermost(child, compiled)


def _wrappers(behind: Sequence[nn.Module]) -> dict[nn.Module, bool]:
    """Those behind the encoder of an input, each with whether a compiler sees its call."""
    found: dict[nn.Module, bool] = {}
    for wrapper, compiled in itertools.chain.from_iterable(map(_outermost, behind)):
        found[wrapper] = found.get(wrapper, False) or compiled
    return found


def devices_of(modules: Sequence[nn.Module]) -> Iterator[torch.device]:
    """Where the parameters and buffers of modules are."""
    for module in modules:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            yield tensor.device
