"""What the autograd functions share: the leading batch dimension, `torch.func.vmap` by it, a cheap signature."""

import inspect
from typing import Any

from torch import Tensor
from torch.autograd import Function


def bound_once(function: type[Function]) -> type[Function]:
    """PyTorch looks up the signature of ``forward`` at every call; stored, it costs a tenth of a small batch less."""
    function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]
    return function


def batched(x: Tensor) -> Tensor:
    """With the leading batch dimension that every tensor here has."""
    return x if x.dim() == 3 else x.unsqueeze(0)


def vmap_by_batch(function: type[Function], info: Any, in_dims: tuple, args: tuple) -> tuple:
    """Folds the mapped dimension into the leading batch dimension that every tensor here has."""

    def fold(arg: Any, dim: int | None) -> Any:
        if not isinstance(arg, Tensor):
            return arg
        arg = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        return arg.flatten(0, 1)

    output = function.apply(*map(fold, args, in_dims))
    if isinstance(output, Tensor):
        return output.unflatten(0, (info.batch_size, -1)), 0
    return tuple(t.unflatten(0, (info.batch_size, -1)) for t in output), (0,) * len(output)
