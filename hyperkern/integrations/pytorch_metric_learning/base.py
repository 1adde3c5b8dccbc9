"""What both losses have of the original: its call, its options, how their terms become a loss."""

import copy
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...arguments import check_columns, check_rows, check_scale
from ...spec import accumulate_dtype
from .._options import DropIn
from . import library
from .named import Named, as_pairs, check_range, checked
from .sides import Sides

# What the original's losses take beside the temperature.
_OPTIONS = ("distance", "reducer", "embedding_regularizer", "embedding_reg_weight", "collect_stats")
_REDUCED = "already_reduced"


class Terms(NamedTuple):
    """Terms of a loss.

    Attributes:
        values: of any shape.
        indices: whose they are, each to be expanded to that shape: anchors, or anchors and positives.
        present: which of them there are; ``None`` for all.
    """

    values: Tensor
    indices: tuple[Tensor, ...]
    present: Tensor | None = None

    def flat(self) -> list[Tensor]:
        """Those that there are, ``(P,)``, and their indices."""
        every = [self.values, *(index.expand(self.values.shape) for index in self.indices)]
        return [t.flatten() if self.present is None else t[self.present] for t in every]


class Found(NamedTuple):
    """All terms of a loss, and of how many pairs they are."""

    terms: list[Terms]
    positive: int
    negative: int

    @property
    def counts(self) -> bool:
        """Whether the original computes a loss: it does not either where there is one pair of each kind at most."""
        return min(self.positive, self.negative) > 0 and max(self.positive, self.negative) > 1


class Loss(DropIn):
    """A loss under the name of the original's."""

    _not_here = (
        "loss_method",
        "get_default_distance",
        "get_default_reducer",
        "compute_loss",
        "_compute_loss",
        "mat_based_loss",
        "pair_based_loss",
        "sub_loss_names",
        "_sub_loss_names",
        "all_regularization_loss_names",
        "regularization_loss_names",
        "zero_loss",
        "zero_losses",
        "add_embedding_regularization_to_loss_dict",
        "embedding_regularization_loss",
    )
    # The name of the original, that of its default reducer, and what it calls its terms.
    _original: ClassVar[str]
    _reducer: ClassVar[str]
    _kind: ClassVar[str]

    def __init__(self, temperature: float | Tensor, options: dict[str, Any]) -> None:
        super().__init__()
        for name in options:
            if name not in _OPTIONS:
                raise TypeError(f"{type(self).__name__} has no option {name!r}")
        self.temperature = temperature
        self.collect_stats = bool(options.get("collect_stats"))
        self.embedding_regularizer = options.get("embedding_regularizer")
        self.embedding_reg_weight = options.get("embedding_reg_weight", 1)
        self.distance = options.get("distance")
        self.set_reducer(options.get("reducer"))
        self._record_these = ["temperature"]  # what loggers of the original read

    def set_reducer(self, reducer: Any) -> None:
        """As the original does: copies a reducer, unless several losses are to share it; ``None`` is the default."""
        shared = library.is_a(reducer, "reducers", "MultipleReducers", "DoNothingReducer")
        self.reducer = reducer if shared else copy.deepcopy(reducer)

    def reset_stats(self) -> None:
        """Forgets the statistics of the loss itself, of which there are none."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of labelled features, or of pairs that are named.

        Args:
            embeddings: ``(N, D)`` anchors; they are normalised here, unless the distance leaves them as they are. N may
                be 0.
            labels: ``(N,)`` their classes, of any dtype and on any device.
            indices_tuple: ``(anchors, positives, negatives)`` or ``(anchors, positives, anchors, negatives)``, indices
                of the rows of ``embeddings`` and, for positives and negatives, of those of ``ref_emb`` if there are
                any: these pairs count instead of those that the labels make.
            ref_emb: ``(M, D)`` other features as the candidates instead of those of ``embeddings``.
            ref_labels: ``(M,)`` their classes. By default, and as in the original if this is the very tensor that is
                passed as ``labels``, they are ``labels``, and row i of ``ref_emb`` is then no positive of row i; pass
                ``labels.clone()`` if it is one.

        Returns:
            A scalar; 0, with gradient 0, where there is no positive or no negative pair. With a ``DoNothingReducer``
            what that one returns, a dictionary.

        Raises:
            IndexError: ``indices_tuple`` names rows that there are not.
            NotImplementedError: an option was set on ``distance`` that is not supported.
            TypeError: an input is no tensor or of a wrong dtype, or the dtypes differ.
            ValueError: neither ``labels`` nor ``indices_tuple``, wrong shapes, or, of `SupConLoss`, a pair that is
                named both positive and negative.
        """
        self.reset_stats()
        check_rows("embeddings", embeddings, batched=False, may_be_empty=True)
        if labels is None and indices_tuple is None:
            raise ValueError("labels must be given, or the pairs in indices_tuple, got None for both")
        if ref_emb is not None:
            check_columns("ref_emb", ref_emb, embeddings, may_be_empty=True, of="embeddings")
        if labels is not None:
            labels = labels_of("labels", labels, "embeddings", embeddings)
        if indices_tuple is not None:
            named = as_pairs(checked(indices_tuple, embeddings.device))
            check_range(named, len(embeddings), len(embeddings if ref_emb is None else ref_emb))
            return self.reduced(self.of_pairs(embeddings, ref_emb, named), embeddings, labels)
        assert labels is not None
        if ref_emb is None:
            ref_labels = labels
        else:
            name, ref_labels = ("labels", labels) if ref_labels is None else ("ref_labels", ref_labels)
            ref_labels = labels_of(name, ref_labels, "ref_emb", ref_emb)
        found = self.of_labels(embeddings, labels, ref_emb, ref_labels, itself=ref_labels is labels)
        return self.reduced(found, embeddings, labels)

    def of_labels(self, x: Tensor, labels: Tensor, y: Tensor | None, y_labels: Tensor, *, itself: bool) -> Found:
        """The terms of all pairs; with ``itself`` column i is row i, and no positive of it."""
        return self._of_labels(self._sides(x, y), labels, y_labels, itself)

    def of_pairs(self, x: Tensor, y: Tensor | None, named: Named) -> Found:
        """The terms of some pairs."""
        return self._of_pairs(self._sides(x, y), named)

    def default_sum(self, found: Found) -> tuple[Tensor, Tensor | int]:
        """What the default reducer averages: the sum, and of how many."""
        raise NotImplementedError

    def has_defaults(self) -> bool:
        """Whether the loss is the mean that the default reducer makes, and no more."""
        return self.embedding_regularizer is None and self._reduces_by_default()

    def _of_labels(self, sides: Sides, labels: Tensor, y_labels: Tensor, itself: bool) -> Found:
        raise NotImplementedError

    def _of_pairs(self, sides: Sides, named: Named) -> Found:
        raise NotImplementedError

    def _sides(self, x: Tensor, y: Tensor | None) -> Sides:
        distance = self._modules.get("distance")
        normalize = library.normalizes(distance)
        library.record_norms(distance, x, x if y is None else y)
        return Sides.of(x, y, temperature=check_scale("temperature", self.temperature, x), normalize=normalize)

    def _reduces_by_default(self) -> bool:
        reducer: Any = self._modules.get("reducer")
        if reducer is None:
            return True
        if not library.is_plain(reducer, "reducers", self._reducer) or reducer.collect_stats:
            return False
        return self._reducer == "MeanReducer" or (reducer.low, reducer.high) == (0, None)

    def reduced(self, found: Found, x: Tensor, labels: Tensor | None) -> Tensor:
        """The loss that the reducer makes of the terms, with what the regularizer adds."""
        reducer: Any = self._modules.get("reducer")
        loss: Tensor
        regularized = None
        if self.embedding_regularizer is not None:
            regularized = self.embedding_regularizer(x) * self.embedding_reg_weight
        if self._reduces_by_default():
            if found.counts:
                total, number = self.default_sum(found)
                loss = total / (number.clamp_min(1) if isinstance(number, Tensor) else number)
            else:
                loss = zero(x)
            return loss if regularized is None else loss + regularized
        terms: dict[str, Any] = {"losses": 0, "indices": None, "reduction_type": _REDUCED}
        if found.counts:
            parts = zip(*(some.flat() for some in found.terms), strict=True)
            values, *indices = [torch.cat(part) for part in parts]
            whose = tuple(indices) if len(indices) > 1 else indices[0]
            terms = {"losses": values, "indices": whose, "reduction_type": self._kind}
        of_losses = {"loss": terms}
        several = library.is_a(reducer, "reducers", "MultipleReducers", "DoNothingReducer")
        if regularized is not None and several:
            of_losses["embedding_reg_loss"] = {"losses": regularized, "indices": None, "reduction_type": _REDUCED}
        loss = reducer(of_losses, x, labels)
        return loss if regularized is None or several else loss + regularized

    def _check_option(self, name: str, value: Any) -> None:
        if name == "temperature":
            check_scale(name, value)
        if name == "distance":
            library.normalizes(value)
        for option, module, kind in (
            ("reducer", "reducers", "BaseReducer"),
            ("embedding_regularizer", "regularizers", "BaseRegularizer"),
        ):
            if name == option and value is not None and not library.is_a(value, module, kind):
                raise NotImplementedError(f"{name}={value!r} is not supported here: only a {kind} of the original is")

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an option that may have this value; ``None`` is the default of the original."""
        if name in ("distance", "reducer") and value is None:
            self._modules.pop(name, None)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """The original's own objects for what was left to its defaults: they may be read, and set further."""
        defaults = {"distance": "CosineSimilarity", "reducer": self._reducer}
        if name in defaults and name not in self._modules:
            setattr(self, name, library.made(self, name, f"{name}s", defaults[name]))
        return super().__getattr__(name)

    @property
    def __class__(self) -> type[Any]:
        """The original's, as `unittest.mock` does: its ``DistributedLossWrapper`` takes no others.

        Of a user's subclass too, for the same reason: `type` tells its own class.
        """
        module = library.loaded("losses")
        return type(self) if module is None else getattr(module, self._original)

    @__class__.setter
    def __class__(self, value: type[Any]) -> None:
        raise TypeError(f"the class of a {type(self).__name__} cannot be changed, got {value}")

    def _get_name(self) -> str:
        """What `repr` shows: the own name of a user's subclass too."""
        return type(self).__name__

    def __reduce_ex__(self, protocol: Any) -> Any:
        """For copies and files, which would ask for the class otherwise."""
        return object.__new__, (type(self),), self.__dict__


def labels_of(name: str, labels: Tensor, rows_name: str, rows: Tensor) -> Tensor:
    """The labels on the device of their rows."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(labels).__name__}")
    if labels.shape != rows.shape[:1]:
        expected = f"({rows.shape[0]},), one label for each row of {rows_name}"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(labels.shape)}")
    return labels.to(rows.device)


def zero(x: Tensor) -> Tensor:
    """The loss of no pairs, with a gradient."""
    return (0 * x).sum(dtype=accumulate_dtype(x.dtype))
