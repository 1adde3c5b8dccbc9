"""The compiled operators: where the library lies, and the namespace that serves a device.

``kernels.so`` is the CUDA extension; in a build for the kernels hub it is a module that the package has imported.
``emulator.so`` holds the same kernels compiled for the CPU, with the GPU's instructions emulated: for tests, like
Triton's interpreter.
"""

import functools
import threading
from pathlib import Path
from typing import Any

import torch

from ..._ops import add_op_namespace_prefix
from ..._ops import ops as of_package

_FOLDER = Path(__file__).parent
_NAMESPACE = "hyperkern_cuda"
# Operators that only write into their arguments.
_FILLING = (
    *("sums", "contract", "normalize_rows", "normalize_rows_backward", "prepare_views", "combine", "finish_views"),
    *("prepare_loss", "head", "finish_loss"),
)
_NEEDS = {"cuda": "with nvcc on the PATH", "cpu": "with a C++ compiler"}
_LIBRARIES = {
    "cuda": (_FOLDER / "kernels.so", _NAMESPACE, "HYPERKERN_BUILD_CUDA=1"),
    "cpu": (_FOLDER / "emulator.so", f"{_NAMESPACE}_emulated", "HYPERKERN_BUILD_EMULATOR=1"),
}

# Of two threads that load a library at once only one may register.
_registering = threading.Lock()
_registered: set[str] = set()


def ops(device: torch.device) -> Any:
    """The operators for a device.

    Raises:
        RuntimeError: the library is not built, or this PyTorch cannot load it.
    """
    found = _loaded(device.type)
    if isinstance(found, str):
        raise RuntimeError(f"the library of the CUDA C++ backend {found}")
    return found


def objection(device_type: str) -> str | None:
    """Why there are no operators for a type of device; ``None`` where there are."""
    found = _loaded(device_type)
    return found if isinstance(found, str) else None


@functools.cache
def _loaded(device_type: str) -> Any:
    """The operators, or why there are none."""
    if device_type not in _LIBRARIES:
        return f"needs a CUDA device, got {device_type}"
    path, namespace, build = _LIBRARIES[device_type]
    found, prefix = getattr(torch.ops, namespace), f"{namespace}::"
    if device_type == "cuda" and hasattr(of_package, "runs_on"):
        found, prefix = of_package, add_op_namespace_prefix("")
    elif not path.exists():
        command = f"{build} pip install --no-build-isolation --editable ."
        return f"is not built: in a checkout, {_NEEDS[device_type]}, `{command}` or `make build`"
    else:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            return f"cannot be loaded by PyTorch {torch.__version__} ({error.__cause__ or error})"
    if missing := [name for name in (*_FILLING, "runs_on") if not hasattr(found, name)]:
        return f"was built from other sources, without {', '.join(missing)}: build it again (`make build`)"
    with _registering:
        if prefix not in _registered:
            for name in _FILLING:
                torch.library.register_fake(prefix + name, _returns_nothing)
            _registered.add(prefix)
    return found


def _returns_nothing(*_args: Any) -> None:
    """The fake of such an operator."""
