"""Where features come from: a tensor, an array or a file of rows, of which only the rows asked for are read."""

from __future__ import annotations

import importlib
import mmap
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..spec import DTYPES

if TYPE_CHECKING:
    import numpy as np

_SAFETENSORS_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# What files begin with: archives, as torch.save and numpy.savez write them, and tensors as torch.save once wrote them.
_ZIP = b"PK\x03\x04"
_OLD_TORCH = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2)


class Source:
    """Rows of features.

    Attributes:
        name: what an error or a report calls them.
        rows: how many.
        dim: feature dimension D.
        dtype: float64, float32, bfloat16 or float16.
        device: where `read` returns them.
    """

    device = torch.device("cpu")

    def __init__(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Refuse what cannot be features.

        Args:
            name: what errors call them.
            shape: must be (N, D), not empty.
            dtype: a torch dtype, or what else names the one found.

        Raises:
            TypeError: not a floating dtype that the losses take.
            ValueError: not two dimensions, or empty.
        """
        if dtype not in DTYPES:
            raise TypeError(f"{name} must be float64, float32, bfloat16 or float16 features, got {dtype}")
        if len(shape) != 2:
            raise ValueError(f"{name} must have shape (N, D), got {tuple(shape)}")
        if 0 in shape:
            raise ValueError(f"{name} must not be empty, got shape {tuple(shape)}")
        self.name, self.dtype = name, dtype
        self.rows, self.dim = shape

    def read(self, start: int, stop: int) -> Tensor:
        """The rows ``start`` to ``stop``, ``(stop - start, D)``, not to be written to."""
        raise NotImplementedError

    def take(self, index: Tensor) -> Tensor:
        """The rows of an ``int64`` index on the CPU."""
        return torch.cat([self.read(i, i + 1) for i in index.tolist()])


class TensorSource(Source):
    """A tensor on any device, one that is mapped from a file included."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        """Take the tensor; nothing is copied."""
        check_dense(name, tensor)
        super().__init__(name, tuple(tensor.shape), tensor.dtype)
        self._tensor, self.device = tensor.detach(), tensor.device

    def read(self, start: int, stop: int) -> Tensor:
        """A view."""
        return self._tensor[start:stop]

    def take(self, index: Tensor) -> Tensor:
        """A copy."""
        return self._tensor[index.to(self.device)]


class ArraySource(Source):
    """A NumPy array, in memory or mapped from a file."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        """Take the array; nothing is copied."""
        native = array.dtype.newbyteorder("=")
        known = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16}
        super().__init__(name, array.shape, known.get(native.name, native.name))
        self._array, self._native = array, native
        self._mapping = _read_only_mapping(array)

    def read(self, start: int, stop: int) -> Tensor:
        """A copy in the machine's byte order."""
        return self._copied(slice(start, stop))

    def take(self, index: Tensor) -> Tensor:
        """A copy."""
        return self._copied(index.numpy())

    def _copied(self, index: Any) -> Tensor:
        copied = torch.from_numpy(self._array[index].astype(self._native, order="C", copy=True))
        if self._mapping is not None:
            # Pages that were read count as resident memory as long as nobody else wants it: gigabytes of a large file.
            self._mapping.madvise(mmap.MADV_DONTNEED)
        return copied


def _read_only_mapping(array: np.ndarray) -> mmap.mmap | None:
    """The mapping of an array whose pages can be forgotten and read again; of a writable one changes would be lost."""
    import numpy as np

    if not isinstance(array, np.memmap) or array.mode != "r" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse a tensor without a value in each place.

    Raises:
        ValueError: it is nested, sparse, or on the meta device.
    """
    if tensor.is_nested:
        raise ValueError(f"{name} must be a dense tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the meta device")


def check_unmasked(name: str, array: object) -> None:
    """Refuse a masked array, whose mask would be ignored.

    Raises:
        TypeError: it is one.
    """
    if any(kind.__name__ == "MaskedArray" for kind in type(array).__mro__):
        raise TypeError(f"{name} must not be a masked array, got one: leave masked rows out, or fill them")


def as_source(name: str, features: Any) -> Source:
    """The rows of a tensor or an array; a source is one already.

    Raises:
        TypeError: neither, a masked array, or of a dtype that the losses do not take.
        ValueError: not two dimensions, empty, or not dense.
    """
    check_unmasked(name, features)
    if isinstance(features, Source):
        return features
    if isinstance(features, Tensor):
        return TensorSource(name, features)
    if type(features).__module__.split(".")[0] == "numpy" and hasattr(features, "dtype"):
        return ArraySource(name, features)
    raise TypeError(
        f"{name} must be a tensor, a NumPy array or a hyperkern.evaluation.Source (see open_features for a file), "
        f"got {type(features).__name__}"
    )


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
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it holds more than tensors, which could run code of its own"
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
