"""What is asked of objects of the original library, which is not imported for it: who has one has imported it."""

import importlib
import sys
from types import ModuleType
from typing import Any

from torch import Tensor

NAME = "pytorch_metric_learning"


def loaded(module: str) -> ModuleType | None:
    """A module of the library if the program has imported it."""
    return sys.modules.get(f"{NAME}.{module}")


def made(owner: object, option: str, module: str, name: str) -> Any:
    """An object of the library, for who reads an option that was left to its default.

    Raises:
        AttributeError: the library is not installed.
    """
    try:
        return getattr(importlib.import_module(f"{NAME}.{module}"), name)()
    except ImportError as error:
        raise AttributeError(
            f"{type(owner).__name__}.{option} is the original's {name}, which needs pip install pytorch-metric-learning"
        ) from error


def is_a(value: object, module: str, *names: str) -> bool:
    """Whether it is an instance of one of these classes of the library."""
    found = loaded(module)
    return found is not None and isinstance(value, tuple(getattr(found, name) for name in names))


def is_plain(value: Any, module: str, *names: str) -> bool:
    """Whether it is an instance of one of these very classes, in which nothing is overridden."""
    found = loaded(module)
    return found is not None and type(value) in [getattr(found, name) for name in names]


def normalizes(distance: Any) -> bool:
    """Whether a distance, ``None`` for the default, is the product of unit rows rather than of rows as they are.

    Raises:
        NotImplementedError: it is neither.
    """
    if distance is None:
        return True
    if not is_plain(distance, "distances", "CosineSimilarity", "DotProductSimilarity"):
        raise NotImplementedError(
            f"distance={distance!r} is not supported here: only CosineSimilarity and DotProductSimilarity are"
        )
    unit = bool(distance.normalize_embeddings)
    for option, expected, counts in (("p", 2, unit), ("power", 1, True), ("is_inverted", True, True)):
        value = getattr(distance, option)
        if counts and value != expected:
            raise NotImplementedError(f"distance={distance!r} with {option}={value} is not supported here")
    return unit


def record_norms(distance: Any, x: Tensor, y: Tensor) -> None:
    """The statistics of a distance that collects some: the norms of its rows, before and after it has scaled them."""
    if distance is not None and distance.collect_stats:
        distance.reset_stats()
        distance.set_default_stats(x, y, distance.maybe_normalize(x), distance.maybe_normalize(y))
