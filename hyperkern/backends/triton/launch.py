"""Launches of kernels, the second of a kind without Triton.

An ordinary launch binds and specialises every argument anew, which takes several times as long as all the rest. What
Triton specialises on is looked at here too, of numbers once for all launches with the same; whatever is out of the
ordinary is left to Triton.
"""

from contextlib import nullcontext
from contextvars import copy_context
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .config import Config

# Of these it is known what they specialise on, and how a compiled kernel is launched.
_VERSIONS = ("3.6.", "3.7.", "3.8.", "3.9.")
_INT32, _INT64 = 1 << 31, 1 << 63


class _Compiled(NamedTuple):
    """A compiled kernel, and the source and cache that it is of."""

    kernel: Any
    source: str | None
    cache: Any


class _Kernel(NamedTuple):
    """What is known of a kernel.

    Attributes:
        function: the kernel itself: while it lives, no other has its ``id``.
        aligned: for each of the pointers, which are the first arguments, whether it counts that it is aligned.
        specialised: for each of the numbers behind them whether it counts that it is 1, or a multiple of 16.
        constants: the names of the compile-time arguments, which are the last.
        kept: what was compiled: for constants, options and kinds of numbers by device and kinds of pointers.
    """

    function: Any
    aligned: tuple[bool, ...]
    specialised: tuple[bool, ...]
    constants: tuple[str, ...]
    kept: dict[tuple[Any, ...], dict[tuple[Any, ...], _Compiled]]


_KERNELS: dict[int, _Kernel] = {}


class Launch:
    """All of a launch but its tensors.

    Attributes:
        kernel: what is launched.
        programs: in how many programs.
        numbers: the arguments behind the pointers, in the order of their declaration.
        choice: a configuration, which decides together with the constants on the options of the compiler.
        constants: the compile-time arguments by name.
        parts: what is launched in its place, one after the other: kernels that need memory of their own.
    """

    __slots__ = ("_aligned", "_behind", "_kept", "choice", "constants", "kernel", "numbers", "parts", "programs")

    def __init__(
        self, kernel: Any, programs: int, numbers: tuple[Any, ...], choice: Config | None, **constants: Any
    ) -> None:
        self.kernel, self.programs, self.numbers = kernel, programs, numbers
        self.choice, self.constants = choice, constants
        self.parts: tuple[Launch, ...] = ()
        self._behind: tuple[Any, ...] = ()
        self._kept: dict[tuple[Any, ...], _Compiled] | None = None
        known = _described(kernel)
        if known is None or constants.keys() != {*known.constants} or len(numbers) != len(known.specialised):
            return
        try:
            kinds = [_kind_of_number(*pair) for pair in zip(numbers, known.specialised, strict=True)]
        except TypeError:
            return
        self._aligned = known.aligned
        self._behind = (*numbers, *(constants[name] for name in known.constants))
        self._kept = known.kept.setdefault((choice, *constants, *constants.values(), *kinds), {})

    def again(self, device: int, pointers: tuple[Tensor | None, ...]) -> bool:
        """Launches on the current stream of the current device what was kept of a launch of the same kind, if anything.

        Returns:
            Whether there was anything. If not, an ordinary launch has to do it; `keep` what it returns.
        """
        if not self._kept:
            return False
        kernel, found = self.kernel, self._kept.get((device, *_kinds(pointers, self._aligned)))
        if found is None or _watched(kernel):
            return False
        # New source, and caches that somebody cleared, are for Triton to see.
        if found.source != kernel.hash or found.cache is not kernel.device_caches.get(device):
            return False
        stream = triton.runtime.driver.active.get_current_stream(device)
        found.kernel[self.programs, 1, 1](*pointers, *self._behind, stream=stream)
        return True

    def keep(self, device: int, pointers: tuple[Tensor | None, ...], compiled: Any) -> None:
        """Keeps what an ordinary launch has returned, for `again`."""
        kernel = self.kernel
        if self._kept is None or _watched(kernel):
            return
        key, cache = (device, *_kinds(pointers, self._aligned)), kernel.device_caches.get(device)
        if len(key) > 1 and cache is not None and isinstance(compiled, triton.compiler.CompiledKernel):
            self._kept[key] = _Compiled(compiled, kernel.hash, cache)


def launch(planned: Launch, device: torch.device, *pointers: Tensor | None) -> None:
    """Launches on the current stream of the device."""
    if planned.parts:
        # What a context sets is gone with it: the kernels of others keep the allocator that they were given.
        copy_context().run(_launch_parts, planned.parts, device, pointers)
        return
    on_gpu, index = device.type == "cuda", device.index
    elsewhere = on_gpu and index != torch.cuda.current_device()
    usual = on_gpu and not elsewhere
    if usual and planned.again(index, pointers):
        return
    constants, choice = planned.constants, planned.choice
    options = fusion(constants)
    if choice is not None:
        options |= {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
    with torch.cuda.device(device) if elsewhere else nullcontext():
        compiled = planned.kernel[(planned.programs,)](*pointers, *planned.numbers, **constants, **options)
    if usual:
        planned.keep(index, pointers, compiled)


def _launch_parts(parts: tuple[Launch, ...], device: torch.device, pointers: tuple[Tensor | None, ...]) -> None:
    triton.set_allocator(_scratch)
    for part in parts:
        launch(part, device, *pointers)


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the tensor descriptors of a launch: PyTorch's, of the current stream, in a graph of the graph."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def fusion(constants: dict[str, Any]) -> dict[str, Any]:
    """The option that lets a product and a sum be rounded once.

    Not where the difference of a logit and a log-sum-exp is taken: a logit has to be the same number in the maximum of
    a sum and in each weight, also where a mask stands between the product and the difference.
    """
    return {"enable_fp_fusion": constants.get("MODE") not in ("running", "single")}


def _described(kernel: Any) -> _Kernel | None:
    """A kernel whose pointers, named ``p_...``, come first, then its numbers and then its constants."""
    if (known := _KERNELS.get(id(kernel))) is not None:
        return known
    if not triton.__version__.startswith(_VERSIONS) or type(kernel) is not triton.JITFunction:
        return None
    order = [0 if p.name.startswith("p_") else 2 if p.is_constexpr else 1 for p in kernel.params]
    # A type in the signature would count instead of the argument's own.
    if order != sorted(order) or any(p.annotation and not p.is_constexpr for p in kernel.params):
        return None
    pointers, numbers = order.count(0), order.count(1)
    aligned = tuple(not p.do_not_specialize_on_alignment for p in kernel.params[:pointers])
    specialised = tuple(not p.do_not_specialize for p in kernel.params[pointers : pointers + numbers])
    known = _Kernel(kernel, aligned, specialised, tuple(kernel.arg_names[pointers + numbers :]), {})
    return _KERNELS.setdefault(id(kernel), known)


def _watched(kernel: Any) -> bool:
    """Whether something may want to see launches of a kernel: its hooks, or debugging and profiling.

    Those are settings of Triton that this process made. Those of its environment stay; hooks around all launches are
    called by compiled kernels too.
    """
    return bool(kernel.pre_run_hooks or vars(triton.knobs.runtime) or vars(triton.knobs.compilation))


def _kinds(pointers: tuple[Tensor | None, ...], aligned: tuple[bool, ...]) -> list[Any]:
    """What counts of pointers; empty if there is one of an unknown kind, or another number of them."""
    try:
        return [
            arg if arg is None else arg.dtype if not counts or arg.data_ptr() & 15 == 0 else (arg.dtype,)
            for arg, counts in zip(pointers, aligned, strict=True)
        ]
    except (AttributeError, ValueError):
        return []


def _kind_of_number(arg: Any, specialised: bool) -> Any:
    """Equal only where it is the same to Triton."""
    if type(arg) is float:
        return float
    if type(arg) is not int:
        raise TypeError(f"{type(arg)} is no number of a launch")
    counts = specialised and (2 if arg == 1 else arg & 15 == 0)
    if -_INT32 <= arg < _INT32:
        return counts
    if not -_INT64 <= arg < 2 * _INT64:
        raise TypeError(f"{arg} has more than 64 bits")
    return "int64" if arg < _INT64 else "uint64", specialised and arg & 15 == 0
