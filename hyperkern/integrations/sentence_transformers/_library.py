"""What is taken from Sentence Transformers itself, when it is needed: nothing here imports it before."""

import importlib
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

_LOSSES = "sentence_transformers.sentence_transformer.losses"


def library(module: str) -> ModuleType:
    """A module of the library.

    Raises:
        ImportError: the library is not installed, or too old to have it.
    """
    try:
        return importlib.import_module(f"sentence_transformers.{module}")
    except ImportError as error:
        raise ImportError(
            f"sentence_transformers.{module} is needed here: pip install 'sentence-transformers>=6.2' ({error})"
        ) from error


def embed_columns(model: nn.Module, features: Iterable[dict[str, Any]]) -> list[Tensor]:
    """The embeddings of each column, joined into calls of the model as the library joins them.

    A model that is not of the library, without which it may be used, is called for each column.
    """
    if "sentence_transformers" in sys.modules:
        embeddings: list[Tensor] = library("base.losses.merged_forward").embed_columns(model, features)
        return embeddings
    return [model(column)["sentence_embedding"] for column in features]


class StandsForOriginal:
    """An object that says it is of the library's class of its name, once the library is there.

    A model card names and links the class that an object says it is of, and `isinstance` believes it.
    """

    @property
    def __class__(self) -> Any:
        """The original; of a user's own subclass this very class."""
        own = type(self)
        originals = sys.modules.get(_LOSSES)
        return getattr(originals, own.__name__, own) if own.__module__.startswith(f"{__package__}.") else own

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise TypeError(f"__class__ of a {type(self).__name__} cannot be set, got {value!r}")

    @property
    def citation(self) -> str:
        """The papers that the original cites, in BibTeX, for a model card."""
        name = next(c.__name__ for c in type(self).__mro__ if c.__module__.startswith(f"{__package__}."))
        cited: str = getattr(library("sentence_transformer.losses"), name).citation.__get__(self)
        return cited

    def __reduce__(self) -> tuple[Any, ...]:
        """By the real class: pickle compares it with the one that an object says it is of."""
        return _blank, (type(self),), dict(vars(self))


def _blank(cls: type[StandsForOriginal]) -> StandsForOriginal:
    return cls.__new__(cls)
