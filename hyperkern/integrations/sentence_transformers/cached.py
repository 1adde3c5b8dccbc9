"""The ranking loss with the library's cache of gradients: a batch is encoded in parts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._options import DropIn
from ._library import StandsForOriginal, library
from .ranking import SYMMETRIC, MultipleNegativesRankingLoss, Similarity, warn_of_old_name

# The options that are those of the loss inside.
OF_LOSS = (
    "scale",
    "similarity_fct",
    "gather_across_devices",
    "directions",
    "partition_mode",
    "hardness_mode",
    "hardness_strength",
    "temperature",
)
_SIZES = ("mini_batch_size", "mini_batch_num_tokens")


class CachedMultipleNegativesRankingLoss(StandsForOriginal, DropIn):
    """The same loss, encoding a batch in parts: the activations of one part at a time live, not those of the batch.

    The cache is the library's own. Each part is encoded without a graph, the loss of all embeddings is computed and
    differentiated, and the backward pass encodes each part again, with the random numbers of the first time: dropout is
    the same. What a model changes when it is called, such as the statistics of batch normalisation, it changes twice. A
    learnable ``scale`` gets its gradient in the forward pass, without the factor of the backward pass, as the
    original's does.

    Args:
        model: as there.
        scale: as there.
        similarity_fct: as there.
        mini_batch_size: samples that are encoded together, > 0.
        mini_batch_num_tokens: > 0, tokens that are encoded together, instead of a number of samples; a sample that has
            more is alone.
        gather_across_devices: as there.
        directions: as there.
        partition_mode: as there.
        show_progress_bar: whether to show the parts as they are encoded, by ``tqdm``.
        hardness_mode: as there.
        hardness_strength: as there.

    Attributes:
        loss: the `MultipleNegativesRankingLoss` of all embeddings, which has the options.
        uses_gradient_cache: for the library's wrappers of losses.

    Raises:
        ImportError: Sentence Transformers is not installed.
        TypeError: as there, and a ``mini_batch_size`` or ``mini_batch_num_tokens`` that is no integer.
        ValueError: as there, and ``mini_batch_size <= 0``, ``mini_batch_num_tokens <= 0``, or a model whose inputs
            cannot be cut into parts, a ``StaticEmbedding``.

    Source:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
    """

    uses_gradient_cache = True
    loss: MultipleNegativesRankingLoss

    def __init__(
        self,
        model: nn.Module,
        scale: float | Tensor = 20.0,
        similarity_fct: Similarity | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ("query_to_doc",),
        partition_mode: str = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__()
        if library("base.losses").has_static_embedding_input(model):
            raise ValueError(
                "model must have inputs that can be cut into parts, got one with a StaticEmbedding: take "
                "MultipleNegativesRankingLoss"
            )
        self.model = model
        self.loss = MultipleNegativesRankingLoss(
            model,
            scale,
            similarity_fct,
            gather_across_devices,
            directions,
            partition_mode,
            hardness_mode,
            hardness_strength,
        )
        self.mini_batch_size, self.mini_batch_num_tokens = mini_batch_size, mini_batch_num_tokens
        self.show_progress_bar = show_progress_bar

    def __getattr__(self, name: str) -> Any:
        """An option of the loss inside, else what `torch.nn.Module` has."""
        return getattr(self.loss, name) if name in OF_LOSS else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an option, here or of the loss inside."""
        if name in OF_LOSS:
            setattr(self.loss, name, value)
        else:
            super().__setattr__(name, value)

    def _check_option(self, name: str, value: Any) -> None:
        if name in _SIZES and not (name == "mini_batch_num_tokens" and value is None):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value <= 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        elif name == "loss" and not isinstance(value, MultipleNegativesRankingLoss):
            raise NotImplementedError(f"loss={value!r} is not supported here: give a MultipleNegativesRankingLoss")

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The mean loss over the N samples of a batch, whose backward pass encodes the batch again.

        Args:
            sentence_features: features of the anchors, of the positives and of any columns of hard negatives.
            labels: not used; a trainer passes them.

        Returns:
            A scalar to go backward from once, which gives the parameters of the model their gradients.

        Raises:
            TypeError: as the loss of a whole batch.
            ValueError: likewise, and features without the tokens that ``mini_batch_num_tokens`` counts.
        """
        return self.forward_cached(sentence_features, labels)

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss from the embeddings of the parts of each column; a wrapper of the library may stand in for this.

        Args:
            reps: for each column its parts, ``(n, D)`` each.
            labels: not used.
            with_backward: whether to go backward from the loss too, up to the embeddings.

        Returns:
            A scalar; without a graph after the backward pass.
        """
        loss = self.loss.compute_loss_from_embeddings([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            torch.autograd.backward(loss)
            loss = loss.detach()
        return loss

    def embed_minibatch(self, *args: Any, **kwargs: Any) -> Any:
        """The embeddings of a part of a column and the state of the random numbers, by the library."""
        return library("base.losses").CachedLossMixin.embed_minibatch(self, *args, **kwargs)

    def embed_minibatch_iter(self, *args: Any, **kwargs: Any) -> Any:
        """`embed_minibatch` of each part of a column, by the library."""
        return library("base.losses").CachedLossMixin.embed_minibatch_iter(self, *args, **kwargs)

    def forward_cached(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """`forward`, by the library."""
        value: Tensor = library("base.losses").CachedLossMixin.forward_cached(self, sentence_features, labels)
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for a model card."""
        options = self.loss.get_config_dict()
        first = {name: options[name] for name in ("scale", "similarity_fct")}
        return {**first, **{name: getattr(self, name) for name in _SIZES}, **options}


class CachedMultipleNegativesSymmetricRankingLoss(CachedMultipleNegativesRankingLoss):
    """`CachedMultipleNegativesRankingLoss` in both directions, a softmax each: a name that the library deprecates."""

    def __init__(
        self,
        model: nn.Module,
        scale: float | Tensor = 20.0,
        similarity_fct: Similarity | None = None,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        warn_of_old_name(type(self).__name__, "CachedMultipleNegativesRankingLoss")
        super().__init__(
            model,
            scale,
            similarity_fct,
            mini_batch_size,
            mini_batch_num_tokens,
            gather_across_devices,
            show_progress_bar=show_progress_bar,
            **SYMMETRIC,
        )
