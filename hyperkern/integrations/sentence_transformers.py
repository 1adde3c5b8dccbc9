"""Drop-in for two losses of Sentence Transformers, whose module of losses has the same names.

`MultipleNegativesRankingLoss` and `CachedMultipleNegativesRankingLoss` take the constructor arguments of the originals
(those of version 6.2) and a trainer calls them alike. All directions, partitions and hardness modes have the values and
gradients of the original, without a matrix of all pairs. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the embeddings;
- ``similarity_fct`` is ``None`` or the library's ``cos_sim``, both the cosine, or its ``dot_score``;
- each column of a batch is encoded on its own, where the original may join columns: the same up to dropout;
- options that are set after construction are checked like those that are given to it.

With ``gather_across_devices=True`` and several processes a loss is the mean over the anchors of its own process, with
the columns of all processes as candidates. As the original's, its gradient is that of the sum of the losses of all
processes, for the embeddings of this one: after `DistributedDataParallel` has averaged, that of the mean. No gradient
travels for it. Processes may have different numbers of samples, but not none.

This module does not import Sentence Transformers.
"""

import importlib
import logging
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import autograd
from ..arguments import check_choice, check_number, check_positive, check_rows
from ..distributed import Agreement, Ranks
from ..losses.logits import merged, nll_from_excess, positive_logits
from ..spec import PairSpec, PairTerms, is_bounded, product_precision
from ._distributed import all_processes
from ._options import DropIn

logger = logging.getLogger(__name__)

_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
# Without the positive among its candidates a direction has no loss of its own.
_JOINT_ONLY = {"query_to_query", "doc_to_doc"}
_PARTITIONS = ("joint", "per_direction")
_HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")

Similarity = Callable[[Tensor, Tensor], Tensor]


class MultipleNegativesRankingLoss(DropIn):
    r"""Each anchor picks its positive among the documents of the batch, positives and hard negatives of all anchors.

    With ``directions`` more similarities join the candidates. All are of unit rows times ``scale``, for anchor
    :math:`a_i`, positive :math:`p_i` and any document :math:`d_j` of the sample j:

    - ``"query_to_doc"``, always: :math:`a_i, d_j` for all documents;
    - ``"query_to_query"``: :math:`a_i, a_j` for :math:`j \ne i`;
    - ``"doc_to_query"``: :math:`p_i, a_j` for all j, the positive pair once more;
    - ``"doc_to_doc"``: :math:`p_i, d_j` for :math:`j \ne i`.

    Args:
        model: maps the features of a column to a dictionary with ``"sentence_embedding"``, ``(N, D)``.
        scale: > 0, of the similarities, the reciprocal of the temperature.
        similarity_fct: ``None`` or the library's ``cos_sim`` for the cosine, its ``dot_score`` for the inner product.
        gather_across_devices: whether the columns of all processes are candidates.
        directions: see above; with ``"query_to_doc"``.
        partition_mode: ``"joint"``, one softmax over all candidates, or ``"per_direction"``, the mean of one loss for
            each direction, of the two that contain the positive.
        hardness_mode: which logits of the anchor's documents grow by ``hardness_strength`` times the similarity, as a
            constant: ``"in_batch_negatives"``, those of other samples, ``"hard_negatives"``, the anchor's own hard
            negatives, or ``"all_negatives"``, both; ``None`` for none.
        hardness_strength: >= 0; with 0 a mode has no effect, which is logged as a warning.

    Raises:
        TypeError: a number that is none.
        ValueError: ``scale <= 0``, ``hardness_strength < 0``, an unknown direction, partition, hardness mode or
            similarity, ``"query_to_doc"`` missing, a direction that ``"per_direction"`` does not have.

    Source:
        Henderson et al., "Efficient Natural Language Response Suggestion for Smart Reply", 2017, Section 4.4.
        Directions: Li et al., "Towards General Text Embeddings with Multi-stage Contrastive Learning", 2023.
        Hardness: Lan et al., "LLaVE", 2025, Eq. 5.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Similarity | None = None,
        gather_across_devices: bool = False,
        directions: tuple[str, ...] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.scale, self.similarity_fct = model, scale, similarity_fct
        self.gather_across_devices = gather_across_devices
        self.directions = directions if isinstance(directions, str) else tuple(directions)
        self.partition_mode = partition_mode
        self._check_partition()
        self.hardness_mode, self.hardness_strength = hardness_mode, hardness_strength
        if hardness_mode is not None and hardness_strength == 0:
            logger.warning(
                "hardness_mode=%r has no effect with hardness_strength=0: give a strength > 0", hardness_mode
            )

    def _check_option(self, name: str, value: Any) -> None:
        if name == "scale":
            check_positive(name, value)
        elif name == "similarity_fct":
            _similarity_name(value)
        elif name == "directions":
            if isinstance(value, str):
                raise TypeError(f"directions must be a tuple of names, got {value!r}")
            for direction in value:
                check_choice(name, direction, _DIRECTIONS)
            if "query_to_doc" not in value:
                raise ValueError(f"directions must contain 'query_to_doc', which has the positive, got {value!r}")
        elif name == "partition_mode":
            check_choice(name, value, _PARTITIONS)
        elif name == "hardness_mode" and value is not None:
            check_choice(name, value, _HARDNESS)
        elif name == "hardness_strength":
            check_number(name, value)
            if value < 0:
                raise ValueError(f"hardness_strength must be >= 0, got {value}")

    def _check_partition(self) -> None:
        """Two options that have to fit together, in whatever order they were set."""
        if self.partition_mode == "per_direction" and _JOINT_ONLY & set(self.directions):
            raise ValueError(
                "partition_mode='per_direction' needs the positive in every direction, "
                f"got directions={self.directions!r}"
            )

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """The mean loss over the N samples of a batch.

        Args:
            sentence_features: features of the anchors, of the positives and of any columns of hard negatives.
            labels: not used; a trainer passes them.

        Returns:
            A scalar.

        Raises:
            TypeError: embeddings of no floating dtype.
            ValueError: fewer than two columns, embeddings that differ in shape, dtype or device, or arguments that
                differ between the processes that gather.
        """
        return self.compute_loss_from_embeddings([self.embed(features) for features in sentence_features], labels)

    def embed(self, features: dict[str, Any]) -> Tensor:
        """The embeddings of a column."""
        embeddings: Tensor = self.model(features)["sentence_embedding"]
        return embeddings

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """`forward` from the embeddings of the columns, ``(N, D)`` each."""
        options = MultipleNegativesRankingLoss.get_config_dict(self)
        with Agreement(all_processes(self.gather_across_devices), "MultipleNegativesRankingLoss", **options) as agreed:
            _check_columns(embeddings)
            self._check_partition()
            agreed.shard(**{f"column {i}": column for i, column in enumerate(embeddings)})
        normalize = _similarity_name(self.similarity_fct) == "cos_sim"
        logits = _Logits(self.scale, normalize, product_precision(embeddings[0]), agreed.ranks)
        anchors, positives, *hard = (autograd.prepare(column, normalize=normalize) for column in embeddings)
        others = self._others(logits, anchors, positives, hard)
        positive = logits.of_pairs(anchors, positives)
        if self.partition_mode == "per_direction":
            losses = [nll_from_excess(merged(*parts) - positive) for parts in others.values()]
            return torch.stack(losses).mean()
        excess = merged(*(part for parts in others.values() for part in parts)) - positive
        if "doc_to_query" not in self.directions:
            return nll_from_excess(excess).mean()
        # The positive is in both directions: -log(e^p / (2 e^p + e^o)).
        return (nll_from_excess(excess - math.log(2)) + math.log(2)).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for a model card."""
        return {
            "scale": self.scale,
            "similarity_fct": _similarity_name(self.similarity_fct),
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }

    @property
    def temperature(self) -> float:
        """The reciprocal of the scale."""
        return 1 / self.scale

    def _others(
        self, logits: "_Logits", anchors: Tensor, positives: Tensor, hard: list[Tensor]
    ) -> dict[str, list[Tensor]]:
        """For each direction the log-sum-exps over its candidates but the positive."""
        documents = torch.cat([positives, *hard])
        mode, strength = self.hardness_mode, self.hardness_strength
        to_anchors = None
        if mode is None or not strength:
            both = "doc_to_query" in self.directions
            by_positives, to_anchors = logits.lse(anchors, positives, with_own=False, both=both)
            to_documents = [by_positives]
            if hard:
                to_documents.append(logits.lse(anchors, torch.cat(hard))[0])
        else:
            in_batch = 0.0 if mode == "hard_negatives" else strength
            own = 0.0 if mode == "in_batch_negatives" else strength
            to_documents = [logits.lse(anchors, documents, with_own=False, boost=in_batch)[0]]
            to_documents += [logits.of_pairs(anchors, column, boost=own) for column in hard]
        others = {"query_to_doc": to_documents}
        if "query_to_query" in self.directions:
            others["query_to_query"] = [logits.lse(anchors, None, with_own=False)[0]]
        if "doc_to_query" in self.directions:
            if to_anchors is None:
                to_anchors = logits.lse(positives, anchors, with_own=False)[0]
            others["doc_to_query"] = [to_anchors]
        if "doc_to_doc" in self.directions:
            others["doc_to_doc"] = [logits.lse(positives, documents if hard else None, with_own=False)[0]]
        return others


class CachedMultipleNegativesRankingLoss(MultipleNegativesRankingLoss):
    """The same loss, encoding a batch in parts: the activations of one part at a time live, not those of the batch.

    The backward pass encodes each part again, with the random numbers of the first time, so dropout is the same and
    values and gradients are those of `MultipleNegativesRankingLoss` on embeddings that were made in parts. What a model
    changes when it is called, such as the statistics of batch normalisation, it changes twice. Every tensor of the
    features must have one row for each sample, or one element. Not for wrappers that exchange the model's forward
    during the call, as the library's ``MatryoshkaLoss`` does.

    Args:
        model: as there.
        scale: as there.
        similarity_fct: as there.
        mini_batch_size: samples that are encoded together, > 0.
        mini_batch_num_tokens: not supported.
        gather_across_devices: as there.
        directions: as there.
        partition_mode: as there.
        show_progress_bar: whether to show the parts as they are encoded, by ``tqdm``.
        hardness_mode: as there.
        hardness_strength: as there.

    Raises:
        NotImplementedError: ``mini_batch_num_tokens`` is given.
        TypeError: as there, and a ``mini_batch_size`` that is no integer.
        ValueError: as there, and ``mini_batch_size <= 0``.

    Source:
        Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021. Chen et al.,
        "Training Deep Nets with Sublinear Memory Cost", 2016.
    """

    _not_here = ("loss", "calculate_loss", "embed_minibatch", "embed_minibatch_iter", "forward_cached")

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
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
        super().__init__(
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

    def _check_option(self, name: str, value: Any) -> None:
        super()._check_option(name, value)
        if name == "mini_batch_size":
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"mini_batch_size must be an integer, got {value!r}")
            if value <= 0:
                raise ValueError(f"mini_batch_size must be > 0, got {value}")
        elif name == "mini_batch_num_tokens" and value is not None:
            raise NotImplementedError(f"mini_batch_num_tokens={value!r} is not supported here: give mini_batch_size")

    def embed(self, features: dict[str, Any]) -> Tensor:
        """The embeddings of a column, whose activations are made again in the backward pass, part by part.

        Raises:
            NotImplementedError: features whose samples cannot be told apart by rows.
        """
        parts: Iterable[dict[str, Any]] = list(_mini_batches(features, self.mini_batch_size))
        if self.show_progress_bar:
            parts = importlib.import_module("tqdm").tqdm(parts, desc="Embed mini-batches")
        return torch.cat([self._embed_part(part) for part in parts])

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for a model card."""
        sizes = {"mini_batch_size": self.mini_batch_size, "mini_batch_num_tokens": self.mini_batch_num_tokens}
        return {**super().get_config_dict(), **sizes}

    def _embed_part(self, part: dict[str, Any]) -> Tensor:
        model = self.model

        def embed(features: dict[str, Any]) -> Tensor:
            # A copy: a model may add what it computes to the features, which would stay alive and be there next time.
            embeddings: Tensor = model(dict(features))["sentence_embedding"]
            return embeddings

        if not torch.is_grad_enabled():
            return embed(part)
        embeddings: Tensor = checkpoint(embed, part, use_reentrant=False, preserve_rng_state=True)
        return embeddings


class _Logits:
    """Scaled similarities of prepared rows.

    Args:
        scale: of the similarities.
        unit: whether the rows have unit length.
        precision: `PairSpec.precision`.
        ranks: the processes whose rows are columns.
    """

    def __init__(self, scale: float, unit: bool, precision: str, ranks: Ranks) -> None:
        self.scale, self.unit, self.precision, self.ranks = scale, unit, precision, ranks

    def of_pairs(self, x: Tensor, y: Tensor, *, boost: float = 0.0) -> Tensor:
        """The logit of each row of ``x`` and the same row of ``y``; ``boost`` as below."""
        logits = positive_logits(x, y, PairSpec(self.scale))
        return logits if not boost else logits + (boost / self.scale) * logits.detach()

    def lse(
        self, x: Tensor, y: Tensor | None, *, with_own: bool = True, boost: float = 0.0, both: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The log-sum-exp of each row of ``x`` over those of ``y`` on all ranks, and of ``y`` if asked for ``both``.

        Args:
            x: ``(N, D)``.
            y: ``(K N, D)``, those of the same sample N apart; ``None`` for ``x``.
            with_own: whether rows of the same sample count.
            boost: added to the scale, without a gradient: the logits are larger, their slope is that of the scale.
            both: whether the other side is wanted.
        """
        scale, count = self.scale + boost, len(x) if y is None else len(y)
        # Of one row for each sample, as the anchors are.
        columns_here = x.split(len(x)) if y is None else y.split(len(x))
        remotes = [autograd.share(self.ranks, column) for column in columns_here]
        exclude, terms = "none", None
        if not with_own:
            exclude = "self"
            if count != len(x):
                samples = torch.arange(len(x), device=x.device)
                exclude, terms = "same_id", PairTerms(row_ids=samples, col_ids=samples.repeat(count // len(x)))
        candidates = max(count, len(x)) // len(x) * self.ranks.total
        bounded = self.unit and is_bounded(scale, candidates, x.dtype)
        spec = PairSpec(scale, bounded, exclude, precision=self.precision)
        rows, columns = autograd.row_lse(x, y, spec=spec, terms=terms, need_cols=both)
        spec = spec._replace(exclude="none")  # on other ranks there are other samples
        there = [
            autograd.remote_row_lse(x, None if y is None else column, remote, spec=spec, need_cols=both)
            for column, remote in zip(columns_here, remotes, strict=True)
            if remote is not None
        ]
        rows = merged(rows, *(part.row_lse for part in there))
        if there and both:
            columns = merged(columns, torch.cat([part.col_lse for part in there]))
        if not boost:
            return rows, columns
        # The derivative by a logit is its softmax weight, whatever made the logit: only its slope must be put right.
        share = self.scale / scale
        return share * rows + (1 - share) * rows.detach(), share * columns + (1 - share) * columns.detach()


def _similarity_name(similarity_fct: Similarity | None) -> str:
    """``"cos_sim"`` or ``"dot_score"``, by the name of the library's function."""
    if similarity_fct is None:
        return "cos_sim"
    name, module = getattr(similarity_fct, "__name__", ""), getattr(similarity_fct, "__module__", None) or ""
    if module.split(".")[0] == "sentence_transformers":
        if name in ("cos_sim", "pytorch_cos_sim"):
            return "cos_sim"
        if name == "dot_score":
            return name
    raise ValueError(
        "similarity_fct must be None, or cos_sim or dot_score of sentence_transformers.util: other similarities have "
        f"no fused kernel, got {similarity_fct!r}"
    )


def _check_columns(embeddings: list[Tensor]) -> None:
    if len(embeddings) < 2:
        raise ValueError(f"sentence_features must have 2 or more columns, anchors and positives, got {len(embeddings)}")
    for i, column in enumerate(embeddings):
        name, first = f"the embeddings of column {i}", embeddings[0]
        check_rows(name, column, batched=False)
        for what in ("shape", "dtype", "device"):
            if getattr(column, what) != getattr(first, what):
                expected, found = (getattr(rows, what) for rows in (first, column))
                raise ValueError(f"{name} must have the {what} of column 0, {expected}, got {found}")


def _mini_batches(features: dict[str, Any], size: int) -> Iterable[dict[str, Any]]:
    """The features of ``size`` samples at a time."""
    for key in ("offsets", "cu_seq_lens_q"):
        if key in features:
            raise NotImplementedError(f"features with {key!r} have no row for each sample and cannot be cut into parts")
    tensors = {key: value for key, value in features.items() if isinstance(value, Tensor) and value.numel() != 1}
    named = [tensors[key] for key in ("input_ids", "attention_mask") if key in tensors]
    count = next((len(value) for value in (*named, *tensors.values()) if value.dim()), 1)
    for key, value in tensors.items():
        if value.dim() == 0 or len(value) != count:
            raise NotImplementedError(
                f"features[{key!r}] of shape {tuple(value.shape)} has no row for each of the {count} samples and "
                "cannot be cut into parts"
            )
    for begin in range(0, max(1, count), size):
        yield {**features, **{key: value[begin : begin + size] for key, value in tensors.items()}}
