"""Compiled kernels, kept so that a launch need not look for its own among Triton's.

An ordinary launch binds and specialises every argument anew, which takes several times as long as all the rest. What
Triton specialises on is looked at here too; whatever is out of the ordinary is left to Triton.
"""

from typing import Any, NamedTuple

import triton

# Of these it is known what they specialise on, and how a compiled kernel is launched.
_VERSIONS = ("3.6.", "3.7.", "3.8.", "3.9.")
_INT32, _INT64 = 1 << 31, 1 << 63


class _Launch(NamedTuple):
    """A compiled kernel, the constants that it takes behind the arguments, and the source and cache that it is of."""

    compiled: Any
    constants: tuple[Any, ...]
    source: str | None
    cache: Any


class _Kernel(NamedTuple):
    """What is known of a kernel.

    Attributes:
        function: the kernel itself: while it lives, no other has its ``id``.
        pointers: how many arguments are pointers, or absent; they are the first.
        specialised: for each of the numbers behind them whether it counts that it is 1, or a multiple of 16.
        constants: the names of the compile-time arguments, which are the last.
        launches: by their keys.
    """

    function: Any
    pointers: int
    specialised: tuple[bool, ...]
    constants: tuple[str, ...]
    launches: dict[tuple[Any, ...], _Launch]


_KERNELS: dict[int, _Kernel] = {}


def relaunch(
    kernel: Any, programs: int, device: int, args: tuple[Any, ...], choice: Any, constants: dict[str, Any]
) -> bool:
    """Launches on the current stream what was kept of a launch of the same kind, if anything.

    Args:
        kernel: the kernel.
        programs: how many programs.
        device: the index of the current device.
        args: the arguments in the order of their declaration.
        choice: a hashable value that decides, together with the constants, on the options of the compiler.
        constants: the compile-time arguments by name.

    Returns:
        Whether there was anything. If not, an ordinary launch has to do it; `keep` what it returns.
    """
    known = _known(kernel)
    found = None if known is None else known.launches.get(_key(known, device, args, choice, constants))
    # New source, and caches that somebody cleared, are for Triton to see.
    if found is None or found.source != kernel.hash or found.cache is not kernel.device_caches.get(device):
        return False
    stream = triton.runtime.driver.active.get_current_stream(device)
    found.compiled[programs, 1, 1](*args, *found.constants, stream=stream)
    return True


def keep(
    kernel: Any, device: int, args: tuple[Any, ...], choice: Any, constants: dict[str, Any], compiled: Any
) -> None:
    """Keeps what an ordinary launch has returned, for `relaunch`."""
    known = _known(kernel)
    if known is None or constants.keys() != {*known.constants}:
        return
    key, cache = _key(known, device, args, choice, constants), kernel.device_caches.get(device)
    if key and cache is not None and isinstance(compiled, triton.compiler.CompiledKernel):
        values = tuple(constants[name] for name in known.constants)
        known.launches[key] = _Launch(compiled, values, kernel.hash, cache)


def _known(kernel: Any) -> _Kernel | None:
    """What is known of a kernel; None if it is an unusual one, or if something may want to see its launches."""
    known = _KERNELS.get(id(kernel)) or _described(kernel)
    if known is None:
        return None
    # Hooks of the kernel, and settings of Triton that this process made, for debugging or profiling. Those of its
    # environment stay; hooks around all launches are called by compiled kernels too.
    knobs = triton.knobs
    return None if kernel.pre_run_hooks or vars(knobs.runtime) or vars(knobs.compilation) else known


def _described(kernel: Any) -> _Kernel | None:
    """A kernel whose pointers, named ``p_...``, come first, then its numbers and then its constants."""
    if not triton.__version__.startswith(_VERSIONS) or type(kernel) is not triton.JITFunction:
        return None
    order = [0 if p.name.startswith("p_") else 2 if p.is_constexpr else 1 for p in kernel.params]
    # A type in the signature would count instead of the argument's own.
    if order != sorted(order) or any(p.annotation and not p.is_constexpr for p in kernel.params):
        return None
    pointers, numbers = order.count(0), order.count(1)
    specialised = tuple(not p.do_not_specialize for p in kernel.params[pointers : pointers + numbers])
    known = _Kernel(kernel, pointers, specialised, tuple(kernel.arg_names[pointers + numbers :]), {})
    return _KERNELS.setdefault(id(kernel), known)


def _key(known: _Kernel, device: int, args: tuple[Any, ...], choice: Any, constants: dict[str, Any]) -> tuple[Any, ...]:
    """Equal only where Triton launches the same compiled kernel; empty if there is an argument of an unknown kind."""
    if len(args) != known.pointers + len(known.specialised):
        return ()
    try:
        pointers = [
            arg if arg is None else arg.dtype if arg.data_ptr() & 15 == 0 else (arg.dtype,)
            for arg in args[: known.pointers]
        ]
        numbers = [
            (not specialised or (2 if arg == 1 else arg & 15 == 0))
            if type(arg) is int and -_INT32 <= arg < _INT32
            else _other_number(arg, specialised)
            for arg, specialised in zip(args[known.pointers :], known.specialised, strict=True)
        ]
    except (AttributeError, TypeError):
        return ()
    return (device, choice, *constants, *constants.values(), *pointers, *numbers)


def _other_number(arg: Any, specialised: bool) -> Any:
    """What counts of a float, or of an integer that takes 64 bits."""
    if type(arg) is float:
        return float
    if type(arg) is not int:
        raise TypeError(f"{type(arg)} is no number of a launch")
    return "int64" if arg < _INT64 else "uint64", specialised and arg & 15 == 0
