"""Where features come from: an array or tensor of rows, of which only the rows asked for are read."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
