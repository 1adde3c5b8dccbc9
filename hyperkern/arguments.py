"""What every loss does with its arguments: checks that name the argument and its value, reductions."""

import math
import numbers
import warnings

import torch
from torch import Tensor

from . import autograd
from .check.first_use import frames_of_libraries
from .distributed import Agreement, Ranks
from .spec import DTYPES

# PyTorch does not compare them with integers of other dtypes.
_WIDE_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def check_rows(name: str, x: Tensor, *, may_be_empty: bool = False, batched: bool = True) -> None:
    """Raises unless ``x`` is a floating tensor ``(N, D)`` or ``(B, N, D)`` without an empty dimension.

    With ``may_be_empty`` it may have no rows, without ``batched`` no leading dimension.
    """
    shapes = "(N, D) or (B, N, D)" if batched else "(N, D)"
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor of features {shapes}, got {type(x).__name__} (options are keyword-only)"
        )
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16 features, got {x.dtype}")
    if x.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.dim() != 2 and not (batched and x.dim() == 3):
        raise ValueError(f"{name} must have shape {shapes}, got {tuple(x.shape)}")
    if 0 in (x.shape[:-2] + x.shape[-1:] if may_be_empty else x.shape):
        raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")


def check_columns(
    name: str, y: Tensor, x: Tensor, *, same_rows: bool = False, may_be_empty: bool = False, of: str = "x"
) -> None:
    """Raises unless ``y`` is like ``x``, named ``of``, in dtype, device, batch and dimension, and in rows if asked."""
    if type(y) is type(x) and (y.shape, y.dtype, y.device, y.layout) == (x.shape, x.dtype, x.device, x.layout):
        return  # what x has passed
    check_rows(name, y, may_be_empty=may_be_empty)
    if y.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of {of}, {x.dtype}, got {y.dtype}: convert it by .to({of}.dtype)")
    if y.device != x.device:
        raise ValueError(f"{name} must be on the device of {of}, {x.device}, got {y.device}")
    if same_rows and y.shape != x.shape:
        raise ValueError(f"{name} must have the shape of {of}, {tuple(x.shape)}, got {tuple(y.shape)}")
    if y.dim() != x.dim() or y.shape[-1] != x.shape[-1] or y.shape[:-2] != x.shape[:-2]:
        expected = f"({', '.join([*map(str, x.shape[:-2]), 'N', str(x.shape[-1])])})"
        raise ValueError(f"{name} must have shape {expected} to go with {of} {tuple(x.shape)}, got {tuple(y.shape)}")


def check_hard_negatives(name: str, hard: Tensor, x: Tensor) -> None:
    """Raises unless ``hard`` has some rows for each row of ``x``, like it in dtype and device: one dimension more."""
    if not isinstance(hard, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(hard).__name__}")
    if hard.dtype != x.dtype:
        raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {hard.dtype}: convert it by .to(x.dtype)")
    if hard.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {hard.device}")
    if hard.dim() != x.dim() + 1 or 0 in hard.shape[-2:] or (*hard.shape[:-2], hard.shape[-1]) != tuple(x.shape):
        expected = f"({', '.join([*map(str, x.shape[:-1]), 'H', str(x.shape[-1])])})"
        raise ValueError(f"{name} must have shape {expected} to go with x {tuple(x.shape)}, got {tuple(hard.shape)}")


def check_pairs(name: str, x: Tensor, ranks: Ranks) -> None:
    """Raises unless the batch has two rows to make a pair of."""
    if ranks.total < 2:
        where = "" if ranks.alone else f" on {len(ranks.counts)} ranks together"
        raise ValueError(f"{name} must have at least 2 rows{where} to form a pair, got shape {tuple(x.shape)}")


def check_backend(backend: str | None, x: Tensor, agreed: Agreement) -> str | None:
    """Raises, where other ranks would wait, for a backend that cannot be had; every rank must name the same.

    Returns:
        The one to ask for from here on.
    """
    forced, backend = autograd.check_backend(backend, x)
    if x.is_cuda and agreed.may_be_empty and not torch.compiler.is_compiling():
        autograd.settle_backend(backend, x)
    agreed.also(backend=forced)
    return backend


def is_empty_queue(rows: Tensor | None) -> bool:
    """Whether a queue has no rows yet."""
    return rows is not None and rows.shape[-2] == 0


def check_vector(name: str, vector: Tensor, rows_name: str, rows: Tensor, *, integer: bool = False) -> None:
    """Raises unless ``vector`` has one number (one integer) for each row of ``rows``, on its device."""
    if not isinstance(vector, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(vector).__name__}")
    is_integer = not (vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool)
    if integer and vector.dtype in _WIDE_UNSIGNED:
        raise TypeError(f"{name} must be signed integers or uint8, got {vector.dtype}: convert it by .to(torch.int64)")
    if not (is_integer if integer else vector.is_floating_point()):
        raise TypeError(f"{name} must have {'an integer' if integer else 'a floating'} dtype, got {vector.dtype}")
    if vector.shape != rows.shape[:-1]:
        raise ValueError(
            f"{name} must have shape {tuple(rows.shape[:-1])}, one entry for each row of {rows_name}, "
            f"got {tuple(vector.shape)}"
        )
    if vector.device != rows.device:
        raise ValueError(f"{name} must be on the device of {rows_name}, {rows.device}, got {vector.device}")


def check_number(name: str, value: float) -> float:
    """The value in Python's own precision; raises unless it is a finite number."""
    value = _real(name, value)
    if not -math.inf < value < math.inf:  # math.isfinite does not compile for a number that changes
        raise ValueError(f"{name} must be a finite number, got {value}")
    return value


def check_positive(name: str, value: float) -> float:
    """The same; raises unless it is above 0 and float32 holds it, and its reciprocal too."""
    if type(value) is not float:
        value = _real(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {value}")
    if not 1e-30 <= value <= 1e30:
        raise ValueError(f"{name} must lie between 1e-30 and 1e30, got {value}")
    return value


def check_max_norm(value: float, normalize: bool) -> None:
    """Raises unless ``max_norm`` is a number above 0, for rows that are not normalised."""
    check_positive("max_norm", value)
    if normalize:
        raise ValueError(f"max_norm is for normalize=False: normalised rows have norm 1, got max_norm={value}")


def _real(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    # A reciprocal of NumPy's float16 has its three digits, and fractions do not multiply tensors.
    return value if isinstance(value, (int, float)) else float(value)


def check_integer(name: str, value: int, least: int, most: float = math.inf) -> None:
    """Raises unless ``value`` is an integer between the two."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises unless ``value`` is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_scale(name: str, value: float | Tensor, x: Tensor | None = None) -> float | Tensor:
    """The value; raises unless it is a positive number or a scalar tensor (which stays on its device, unread)."""
    if not isinstance(value, Tensor):
        return check_positive(name, value)
    if value.numel() != 1 or not value.is_floating_point():
        error = ValueError if value.is_floating_point() else TypeError
        got = f"{value.dtype} of shape {tuple(value.shape)}"
        raise error(f"{name} must be a number or a floating tensor with one element, got {got}")
    if x is not None and value.device != x.device and (value.dim() > 0 or value.device.type != "cpu"):
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")
    return value


def check_scalar(name: str, value: float | Tensor, x: Tensor) -> float | Tensor:
    """The value; raises unless it is a finite number or a scalar tensor (which stays on its device, unread)."""
    return check_scale(name, value, x) if isinstance(value, Tensor) else check_number(name, value)


def renamed(function: str, old: str, new: str, *given: object) -> None:
    """Warns who calls a public function with a name that an argument had; raises if one of the new is ``given`` too."""
    if any(value is not None for value in given):
        raise TypeError(f"{function}() got {new} and {old}, the old name: give {new} alone")
    text = f"{old} of {function} is now called {new}; the old name works for one more minor version"
    if not torch.compiler.is_compiling():  # PyTorch's compiler knows no warnings
        warnings.warn(text, DeprecationWarning, stacklevel=frames_of_libraries())


def accurate_dtype(x: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float64 if x.device.type != "mps" else x.dtype


def reduce_rows(values: Tensor, reduction: str, ranks: Ranks, per_row: int = 1) -> Tensor:
    """Reduces one value per anchor: ``(N,)`` to a scalar, ``(B, N)`` to ``(B,)``, over all ranks.

    ``per_row`` is the number of anchors for each row of the batch.
    """
    if reduction == "none":
        return values
    if ranks.alone:
        return values.mean(-1) if reduction == "mean" else values.sum(-1)
    total = autograd.sum_over_ranks(values.sum(-1), ranks)
    return total / (per_row * ranks.total) if reduction == "mean" else total


REDUCTIONS = ("mean", "sum", "none")
