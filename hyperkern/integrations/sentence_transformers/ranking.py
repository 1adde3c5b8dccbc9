"""Multiple negatives ranking: InfoNCE over the columns of a batch of sentences."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ... import autograd, losses
from ...arguments import check_choice, check_number, check_rows, check_scale
from ...distributed import Agreement
from ...losses.logits import merged, nll_from_excess
from ...spec import accumulate_dtype, product_precision
from .._distributed import all_processes
from .._options import DropIn
from ._library import StandsForOriginal, embed_columns, library
from .logits import Logits

logger = logging.getLogger(__name__)

_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
# Without the positive among its candidates a direction has no loss of its own.
_JOINT_ONLY = {"query_to_query", "doc_to_doc"}
_PARTITIONS = ("joint", "per_direction")
_HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")
# In both directions, a softmax each: the loss of the classes that the library has deprecated.
SYMMETRIC: dict[str, Any] = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}

Similarity = Callable[[Tensor, Tensor], Tensor]


class MultipleNegativesRankingLoss(StandsForOriginal, DropIn):
    r"""Each anchor picks its positive among the documents of the batch, positives and hard negatives of all anchors.

    With ``directions`` more similarities join the candidates. All are of unit rows times ``scale``, for anchor
    :math:`a_i`, positive :math:`p_i` and any document :math:`d_j` of the sample j:

    - ``"query_to_doc"``, always: :math:`a_i, d_j` for all documents;
    - ``"query_to_query"``: :math:`a_i, a_j` for :math:`j \ne i`;
    - ``"doc_to_query"``: :math:`p_i, a_j` for all j, the positive pair once more;
    - ``"doc_to_doc"``: :math:`p_i, d_j` for :math:`j \ne i`.

    Args:
        model: maps the features of a column to a dictionary with ``"sentence_embedding"``, ``(N, D)``.
        scale: > 0, of the similarities, the reciprocal of the temperature; a tensor with one element, such as an
            `torch.nn.Parameter`, has a gradient.
        similarity_fct: ``None`` or the library's ``cos_sim`` for the cosine, its ``dot_score`` for the inner product;
            a model's ``similarity`` where it is one of these.
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

    _not_here = ("cross_entropy_loss",)  # of the originals of earlier versions

    def __init__(
        self,
        model: nn.Module,
        scale: float | Tensor = 20.0,
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
            check_scale(name, value)
            if isinstance(value, Tensor) and value.device.type != "meta" and not value > 0:
                raise ValueError(f"scale must be > 0, got {value}")
        elif name == "similarity_fct":
            similarity_name(value)
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
            ValueError: fewer than two columns, embeddings that differ in dimension, dtype or device, fewer positives
                than anchors, numbers of rows that differ where a document is of a sample (with hardness,
                ``"doc_to_doc"`` or several processes), or arguments that differ between the processes that gather.
        """
        return self.compute_loss_from_embeddings(embed_columns(self.model, sentence_features), labels)

    def compute_loss_from_embeddings(self, embeddings: list[Tensor], labels: Tensor | None = None) -> Tensor:
        """`forward` from the embeddings of the columns, ``(N, D)`` each.

        The positive of anchor i is row i of column 1. Further rows of it, and any number of rows in the columns of hard
        negatives, are documents of no sample.
        """
        options = MultipleNegativesRankingLoss.get_config_dict(self)
        with Agreement(all_processes(self.gather_across_devices), "MultipleNegativesRankingLoss", **options) as agreed:
            self._check_columns(embeddings, gathers=agreed.may_be_empty)
            self._check_partition()
            agreed.shard(**{f"column {i}": column for i, column in enumerate(embeddings)})
        normalize, dtype = options["similarity_fct"] == "cos_sim", accumulate_dtype(embeddings[0].dtype)
        scale = self.scale.to(dtype).reshape(()) if isinstance(self.scale, Tensor) else self.scale
        if agreed.ranks.alone and self._is_one_way(embeddings):  # one autograd function instead of a composition
            anchors, positives, *hard = embeddings
            negatives = torch.cat(hard) if hard else None
            return losses.info_nce(anchors, positives, negatives=negatives, temperature=1 / scale, normalize=normalize)
        anchors, positives, *hard = (autograd.prepare(column, normalize=normalize) for column in embeddings)
        logits = Logits(scale, normalize, product_precision(embeddings[0]), agreed.ranks)
        others = self._others(logits, anchors, positives, hard)
        positive = logits.of_pairs(anchors, positives[: len(anchors)])
        if self.partition_mode == "per_direction":
            ways = [nll_from_excess(merged(*parts) - positive) for parts in others.values()]
            return torch.stack(ways).mean()
        excess = merged(*(part for parts in others.values() for part in parts)) - positive
        if "doc_to_query" not in self.directions:
            return nll_from_excess(excess).mean()
        # The positive is in both directions: -log(e^p / (2 e^p + e^o)).
        return (nll_from_excess(excess - math.log(2)) + math.log(2)).mean()

    def get_config_dict(self) -> dict[str, Any]:
        """The options, for a model card."""
        return {
            "scale": self.scale,
            "similarity_fct": similarity_name(self._similarity_fct),
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": self.hardness_mode,
            "hardness_strength": self.hardness_strength,
        }

    @property
    def similarity_fct(self) -> Similarity:
        """The library's function."""
        chosen: Similarity = self._similarity_fct or library("util").cos_sim
        return chosen

    @similarity_fct.setter
    def similarity_fct(self, value: Similarity | None) -> None:
        self._similarity_fct = value

    @property
    def temperature(self) -> float | Tensor:
        """The reciprocal of the scale."""
        return 1 / self.scale

    def _others(
        self, logits: Logits, anchors: Tensor, positives: Tensor, hard: list[Tensor]
    ) -> dict[str, list[Tensor]]:
        """For each direction the log-sum-exps over its candidates but the positive."""
        mode, strength = self.hardness_mode, self.hardness_strength
        own_positives = positives[: len(anchors)]
        to_anchors = None
        if mode is None or not strength:
            both = "doc_to_query" in self.directions
            by_positives, to_anchors = logits.lse(anchors, positives, with_own=False, both=both)
            to_documents = [by_positives]
            if hard:
                to_documents.append(logits.lse(anchors, *hard)[0])
        else:
            in_batch = 0.0 if mode == "hard_negatives" else strength
            own = 0.0 if mode == "in_batch_negatives" else strength
            to_documents = [logits.lse(anchors, positives, *hard, with_own=False, boost=in_batch)[0]]
            to_documents += [logits.of_pairs(anchors, column, boost=own) for column in hard]
        others = {"query_to_doc": to_documents}
        if "query_to_query" in self.directions:
            others["query_to_query"] = [logits.lse(anchors, with_own=False)[0]]
        if "doc_to_query" in self.directions:
            if to_anchors is None:
                to_anchors = logits.lse(own_positives, anchors, with_own=False)[0]
            others["doc_to_query"] = [to_anchors[: len(anchors)]]
        if "doc_to_doc" in self.directions:
            documents = (positives, *hard) if hard else ()
            others["doc_to_doc"] = [logits.lse(positives, *documents, with_own=False)[0]]
        return others

    def _is_one_way(self, embeddings: list[Tensor]) -> bool:
        """Whether the loss is InfoNCE: anchors among the documents, each of a sample or of none."""
        weighted = self.hardness_mode is not None and self.hardness_strength
        return self.directions == ("query_to_doc",) and not weighted and len(embeddings[0]) == len(embeddings[1])

    def _check_columns(self, embeddings: list[Tensor], *, gathers: bool) -> None:
        if len(embeddings) < 2:
            raise ValueError(
                f"sentence_features must have 2 or more columns, anchors and positives, got {len(embeddings)}"
            )
        first, positives, *_ = embeddings
        for i, column in enumerate(embeddings):
            name = f"the embeddings of column {i}"
            check_rows(name, column, batched=False)
            for what in ("dtype", "device"):
                if getattr(column, what) != getattr(first, what):
                    expected, found = (getattr(rows, what) for rows in (first, column))
                    raise ValueError(f"{name} must have the {what} of column 0, {expected}, got {found}")
            if column.shape[1] != first.shape[1]:
                raise ValueError(f"{name} must have the dimension of column 0, {first.shape[1]}, got {column.shape[1]}")
        if len(positives) < len(first):
            raise ValueError(f"column 1 must have a positive for each of {len(first)} anchors, got {len(positives)}")
        weighted = self.hardness_mode is not None and self.hardness_strength
        why = {
            f"hardness_mode={self.hardness_mode!r}": weighted,
            "the direction 'doc_to_doc'": "doc_to_doc" in self.directions,
            "gather_across_devices=True": gathers,
        }
        rows = [len(column) for column in embeddings]
        if len(set(rows)) > 1 and any(why.values()):
            reason = next(name for name, applies in why.items() if applies)
            raise ValueError(f"with {reason} all columns must have one row for each sample, got {rows} rows")


class MultipleNegativesSymmetricRankingLoss(MultipleNegativesRankingLoss):
    """`MultipleNegativesRankingLoss` in both directions, a softmax each: a name that the library has deprecated."""

    def __init__(
        self,
        model: nn.Module,
        scale: float | Tensor = 20.0,
        similarity_fct: Similarity | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        warn_of_old_name(type(self).__name__, "MultipleNegativesRankingLoss")
        super().__init__(model, scale, similarity_fct, gather_across_devices, **SYMMETRIC)


def warn_of_old_name(old: str, new: str) -> None:
    """Warns as the library does."""
    text = (
        f"{old} is an old name: give {new} directions=('query_to_doc', 'doc_to_query'), partition_mode='per_direction'"
    )
    warnings.warn(text, DeprecationWarning, stacklevel=3)


def similarity_name(similarity_fct: Similarity | None) -> str:
    """``"cos_sim"`` or ``"dot_score"``, by the name of the library's function."""
    if similarity_fct is None:
        return "cos_sim"
    name, module = getattr(similarity_fct, "__name__", ""), getattr(similarity_fct, "__module__", None) or ""
    if module.split(".")[0] == "sentence_transformers":
        if name == "similarity":  # of a model
            owner = getattr(similarity_fct, "__self__", None)
            name = {"cosine": "cos_sim", "dot": "dot_score"}.get(getattr(owner, "similarity_fn_name", ""), name)
        if name in ("cos_sim", "pytorch_cos_sim"):
            return "cos_sim"
        if name == "dot_score":
            return name
    raise ValueError(
        "similarity_fct must be None, or cos_sim or dot_score of sentence_transformers.util: other similarities have "
        f"no fused kernel, got {similarity_fct!r}"
    )
