"""Features in files, mapped or read slice by slice."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .sources import ArraySource, Source, TensorSource

_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# What files begin with: archives, as torch.save and numpy.savez write them, and tensors as torch.save once wrote them.
_ZIP = b"PK\x03\x04"
_OLD_TORCH = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)


def open_features(path: str | os.PathLike[str], *, key: str | None = None) -> Source:
    """Open a file of features ``(N, D)`` without reading it into memory.

    Args:
        path: ``.npy``, mapped; ``.pt`` or ``.pth``, a tensor or a dictionary of tensors, mapped and loaded without
            running code from the file; ``.safetensors``, read slice by slice.
        key: name of the tensor, where a file holds several; those of nested dictionaries are joined by dots.

    Returns:
        The features, for `hyperkern.evaluate`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the format needs a package that is not installed.
        TypeError: not a floating dtype.
        ValueError: an unknown suffix, a file that cannot be read, an unknown or missing ``key``, a wrong shape.
    """
    path = Path(path)
    openers = {".npy": _open_npy, ".pt": _open_torch, ".pth": _open_torch, ".safetensors": _open_safetensors}
    if path.suffix not in openers:
        raise ValueError(f"{path} must end in {', '.join(openers)}, got suffix {path.suffix!r}")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is no file")
    return openers[path.suffix](path, key)


def _start(path: Path) -> bytes:
    """What a file begins with."""
    with path.open("rb") as file:
        return file.read(16)


def _open_npy(path: Path, key: str | None) -> Source:
    try:
        import numpy as np
    except ImportError:
        raise ImportError("a .npy file needs NumPy; install with: pip install numpy") from None
    if key is not None:
        raise ValueError(f"{path} holds one array without a name, got key {key!r}")
    start = _start(path)
    try:
        if not start:
            raise ValueError("it is empty")
        if start.startswith(_ZIP):
            raise ValueError("it is an archive of arrays")
        if not start.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("it does not begin as one, it may be text or a pickle: write it with numpy.save")
        array = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a .npy file ({error})") from error
    return ArraySource(str(path), array)


def _open_torch(path: Path, key: str | None) -> Source:
    start = _start(path)
    try:
        if not start:
            raise ValueError("it is empty")
        if start.startswith(_OLD_TORCH):
            raise ValueError("it has the old format, save it again with _use_new_zipfile_serialization=True")
        if not start.startswith(_ZIP):
            raise ValueError("it does not begin as one, it may be another pickle")
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors, which could run code of its own"
        raise ValueError(f"{path} cannot be read as tensors saved by torch.save ({reason})") from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as tensors saved by torch.save ({reason})") from error
    if isinstance(content, Tensor):
        if key is not None:
            raise ValueError(f"{path} holds one tensor without a name, got key {key!r}")
        return TensorSource(str(path), content)
    try:
        tensors = _named_tensors(content)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as tensors by name ({error})") from error
    chosen = _chosen(path, key, {name: _shape(tensor) for name, tensor in tensors.items()})
    return TensorSource(f"{path}[{chosen}]", tensors[chosen])


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)  # a nested one has none


def _named_tensors(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in nested dictionaries, by their names joined with dots."""
    found: dict[str, Tensor] = {}
    if isinstance(content, Mapping):
        for name, value in content.items():
            here = (
                {f"{prefix}{name}": value} if isinstance(value, Tensor) else _named_tensors(value, f"{prefix}{name}.")
            )
            if twice := found.keys() & here.keys():
                raise ValueError(f"it holds two tensors that would both be called {min(twice)!r}")
            found |= here
    return found


def _open_safetensors(path: Path, key: str | None) -> Source:
    try:
        safetensors: Any = importlib.import_module("safetensors")  # without types of its own
    except ImportError:
        raise ImportError("a .safetensors file needs safetensors; install with: pip install safetensors") from None
    try:
        file = safetensors.safe_open(str(path), framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a .safetensors file ({error})") from error
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
    chosen = _chosen(path, key, {name: tuple(part.get_shape()) for name, part in slices.items()})
    return _SliceSource(f"{path}[{chosen}]", slices[chosen])


class _SliceSource(Source):
    """A tensor of a safetensors file."""

    def __init__(self, name: str, part: Any) -> None:
        dtype = part.get_dtype()
        super().__init__(name, tuple(part.get_shape()), _SAFETENSORS_DTYPES.get(dtype, dtype))
        self._part = part

    def read(self, start: int, stop: int) -> Tensor:
        rows: Tensor = self._part[start:stop]
        return rows


def _chosen(path: Path, key: str | None, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The tensor that is meant."""
    shown = [f"{name} {shape}" for name, shape in list(shapes.items())[:8]]
    listed = ", ".join(shown) + (f" and {len(shapes) - len(shown)} more" if len(shapes) > len(shown) else "")
    if not shapes:
        raise ValueError(f"{path} holds no tensor")
    if key is None:
        if len(shapes) > 1:
            raise ValueError(f"{path} holds {len(shapes)} tensors, choose one by its key: {listed}")
        return next(iter(shapes))
    if key not in shapes:
        raise ValueError(f"{path} holds no tensor of key {key!r}, it has {listed}")
    return key
