"""Every option of every class that has a drop-in replacement, with values to try: the table of docs/conventions.md.

``python tests/integrations/original_options.py`` writes the table anew, where the libraries are installed. Whether a
value does what is said of it here is tested in test_original_options.py, which also fails for an option of an installed
library that has no row here.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from parity import library
from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs" / "conventions.md"
BEGIN, END = "<!-- options of the originals -->\n", "<!-- end -->\n"

ROWS, DIM = 8, 5
LABELS = torch.arange(2 * ROWS) % 5


class Made(NamedTuple):
    """A value that is made when it is needed, most of them by the library."""

    make: Callable[[], Any]


class Values(NamedTuple):
    """What an option may be, with the original's value and gradients, and what it may not be.

    Attributes:
        same: values to try.
        refused: values that raise an error which names the option.
        refused_are: what these are, in the table.
        untried: why there is nothing to try.
    """

    same: tuple[Any, ...] = ()
    refused: tuple[Any, ...] = ()
    refused_are: str = ""
    untried: str = ""


def same(*values: Any) -> Values:
    return Values(values)


def of(value: Any) -> Any:
    return value.make() if isinstance(value, Made) else value


@dataclass(frozen=True, kw_only=True)
class Original:
    """A class of a library, how it is made and called, and what its options may be.

    Attributes:
        distribution: the library's name at the package index.
        module: where the library has the class.
        ours: the module of ``hyperkern.integrations``.
        name: of the class, here and there.
        call: the loss as it is made, and arguments by name, to a function of the features with a scalar.
        constructor: the options, and what they may be.
        forward: arguments of the call beside those which every call has.
        given: the parameters that are no options: a model, the features.
        method: what takes these arguments.
        features: how many tensors ``(ROWS, DIM)`` the function takes.
        needed: what the constructor cannot do without, made anew for each loss, of the module that has the class.
        with_it: other options without which one has no effect.
    """

    distribution: str
    module: str
    ours: str
    name: str
    call: Callable[..., Callable[..., Tensor]]
    constructor: dict[str, Values]
    forward: dict[str, Values] = field(default_factory=dict)
    given: frozenset[str] = frozenset()
    method: str = "forward"
    features: int = 2
    needed: Callable[[ModuleType], dict[str, Any]] = lambda _: {}
    with_it: dict[str, dict[str, Any]] = field(default_factory=dict)

    def theirs(self) -> ModuleType:
        if self.distribution == "gradcache":  # it imports itself by another name than that of its package
            sys.modules.setdefault("grad_cache", library("gradcache"))
        return library(self.module)

    def here(self) -> ModuleType:
        return import_module(f"hyperkern.integrations.{self.ours}")

    def parameters(self) -> tuple[set[str], set[str]]:
        """The options that the installed class has, of the constructor and of the call."""
        constructor: set[str] = set()
        original = getattr(self.theirs(), self.name)
        for cls in original.__mro__:  # ``**kwargs`` are handed to the parents
            if cls is nn.Module:
                break
            if "__init__" not in vars(cls):
                continue
            parameters = inspect.signature(cls.__init__).parameters.values()
            constructor |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
            if not any(p.kind == p.VAR_KEYWORD for p in parameters):
                break
        forward = set(inspect.signature(getattr(original, self.method)).parameters)
        left_out = {"self", "args", "kwargs", *self.given}
        return constructor - left_out, forward - left_out


def scalar(result: Any) -> Tensor:
    """One number of what a loss returns: a tensor, several of them or a mapping."""
    if isinstance(result, dict):
        result = tuple(result.values())
    return sum(result) if isinstance(result, tuple) else result


def of_views(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    return lambda *views: loss(*views, **arguments)


def of_clip(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    arguments = {"logit_scale": 3.0, **arguments}
    return lambda x, y: scalar(loss(F.normalize(x), F.normalize(y), **arguments))


CAPTIONS = (
    torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    torch.arange(12).view(3, 4) % 6,
)


def of_bank(bank: Any, **arguments: Any) -> Callable[..., Tensor]:
    """The products with what a memory bank holds, before and after rows of a batch may have been written."""

    def of(x: Tensor) -> Tensor:
        found = [bank(x, **arguments)[1] for _ in range(2)]
        return scalar(tuple((x @ (rows if len(rows) == DIM else rows.T)).square().sum() for rows in found))

    return of


def of_captions(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    logits, labels = CAPTIONS
    return of_clip(loss, **{"logits": logits, "labels": labels, **arguments})


def of_signs(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    return of_clip(loss, **{"logit_bias": None, **arguments})


TEACHER = torch.randn(2, ROWS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_teacher(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    images, texts = TEACHER
    arguments = {"dist_image_features": images, "dist_text_features": texts, **arguments}
    return of_clip(loss, **{"dist_logit_scale": 2.0, **arguments})


REFERENCES = torch.randn(7, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def of_labels(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    arguments = {"labels": LABELS, **arguments}
    return lambda x, y: loss(torch.cat([x, y]), **arguments)


def of_memory(loss: Any, **arguments: Any) -> Callable[..., Tensor]:
    """After a batch that is in the memory then."""
    arguments = {"labels": LABELS, **arguments}

    def of(x: Tensor, y: Tensor) -> Tensor:
        loss(torch.cat([REFERENCES, REFERENCES]).to(x.dtype), torch.arange(14) % 3)
        return loss(torch.cat([x, y]), **arguments)

    return of


class Encoder(nn.Module):
    """Embeddings as they come."""

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        return {"sentence_embedding": features["input_ids"]}


def of_columns(loss: Any, labels: Tensor | None = None) -> Callable[..., Tensor]:
    mask = torch.ones(ROWS, DIM, dtype=torch.int64)  # of whose ones the cached loss makes its parts
    return lambda *columns: loss([{"input_ids": column, "attention_mask": mask} for column in columns], labels)


def of_chunks(cache: Any, **arguments: Any) -> Callable[..., Tensor]:
    """A step of GradCache, which has gone backward when it returns."""

    def step(*views: Tensor) -> Tensor:
        value = cache(*views, **arguments)
        return value.detach() + 0 * sum(view.sum() for view in views)

    return step


def contrast(x: Tensor, y: Tensor, factor: float = 1.0) -> Tensor:
    return factor * F.cross_entropy(x @ y.T, torch.arange(len(x)))


def distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(1)


def similarity(name: str) -> Made:
    return Made(lambda: getattr(library("sentence_transformers.util"), name))


def metric_learning(path: str, **options: Any) -> Made:
    """An object of PyTorch Metric Learning, such as ``distances.CosineSimilarity``."""
    module, name = path.split(".")
    return Made(lambda: getattr(library(f"pytorch_metric_learning.{module}"), name)(**options))


# What several losses share.
LIGHTLY = {"temperature": same(0.2, 3), "gather_distributed": same(True)}
PROCESSES = {"cache_labels": same(True), "rank": same(1), "world_size": same(1)}
CLIP = {
    **PROCESSES,
    "local_loss": same(True),
    "gather_with_grad": same(True),
    "use_horovod": same(True),
}
SCALE = same(7.5, torch.tensor(2.0))

TARGET = torch.tensor([3, 0, -100, 1, 7, 7, 2, 5])  # -100 is of a query that does not count
METRIC_LEARNING = {
    "temperature": same(0.3, torch.tensor(0.3)),
    "reducer": same(
        None,
        *(metric_learning(f"reducers.{name}") for name in ("MeanReducer", "SumReducer", "AvgNonZeroReducer")),
        metric_learning("reducers.ThresholdReducer", low=0.1),
        metric_learning("reducers.PerAnchorReducer"),
    ),
    "distance": Values(
        (None, metric_learning("distances.CosineSimilarity"), metric_learning("distances.DotProductSimilarity")),
        (metric_learning("distances.LpDistance"), metric_learning("distances.SNRDistance")),
        "other than inner products",
    ),
    "embedding_regularizer": same(None, metric_learning("regularizers.LpRegularizer")),
    "embedding_reg_weight": same(0.5),
    "collect_stats": same(True),
}
# Pairs as a miner names them: anchors and positives, anchors and negatives.
PAIRS = tuple(torch.tensor(rows) for rows in ([0, 1, 5], [5, 6, 0], [0, 1, 1, 2], [3, 4, 8, 9]))
LABELLED = {
    "labels": same(LABELS % 3, LABELS.float()),
    "indices_tuple": same(PAIRS, (*(rows[:2] for rows in PAIRS[:2]), torch.tensor([3, 4]))),
    "ref_emb": same(REFERENCES),
    "ref_labels": same(torch.arange(7) % 3),
}
RANKING = {
    "scale": SCALE,
    "similarity_fct": Values(
        (similarity("cos_sim"), similarity("dot_score")),
        (similarity("euclidean_sim"), similarity("manhattan_sim")),
        "other than `cos_sim`, `dot_score`",
    ),
    "gather_across_devices": same(True),
    "directions": same(("query_to_doc", "doc_to_query"), ("query_to_doc", "query_to_query", "doc_to_doc")),
    "partition_mode": same("joint", "per_direction"),
    "hardness_mode": same("in_batch_negatives", "hard_negatives", "all_negatives"),
    "hardness_strength": same(3.0),
}
SYMMETRIC = {name: RANKING[name] for name in ("scale", "similarity_fct", "gather_across_devices")}
CACHED = {"mini_batch_size": same(3, 32), "mini_batch_num_tokens": same(12), "show_progress_bar": same(True)}
RANKING_WITH = {
    "partition_mode": {"directions": ("query_to_doc", "doc_to_query")},
    "hardness_mode": {"hardness_strength": 2.0},
    "hardness_strength": {"hardness_mode": "in_batch_negatives"},
}
ranking = {
    "distribution": "sentence-transformers",
    "module": "sentence_transformers.sentence_transformer.losses",
    "ours": "sentence_transformers",
    "call": of_columns,
    "forward": {"labels": same(LABELS)},
    "given": frozenset({"model", "sentence_features"}),
    "features": 3,
    "needed": lambda _: {"model": nn.Sequential(Encoder())},
    "with_it": RANKING_WITH,
}
lightly = {
    "distribution": "lightly",
    "module": "lightly.loss",
    "ours": "lightly",
    "call": of_views,
    "given": frozenset({"out0", "out1"}),
}
open_clip = {
    "distribution": "open-clip-torch",
    "module": "open_clip.loss",
    "ours": "open_clip",
    "call": of_clip,
    "given": frozenset({"image_features", "text_features"}),
}
grad_cache = {
    "distribution": "gradcache",
    "module": "gradcache.loss",
    "ours": "grad_cache",
    "method": "__call__",
    "call": of_views,
}
labelled = {
    "distribution": "pytorch-metric-learning",
    "module": "pytorch_metric_learning.losses",
    "ours": "pytorch_metric_learning",
    "call": of_labels,
    "given": frozenset({"embeddings", "mat_based_loss"}),
    "with_it": {
        "embedding_reg_weight": {"embedding_regularizer": metric_learning("regularizers.LpRegularizer")},
        "ref_emb": {"ref_labels": torch.arange(7) % 3},
        "ref_labels": {"ref_emb": REFERENCES},
    },
}

ORIGINALS = (
    Original(name="NTXentLoss", **lightly, constructor={**LIGHTLY, "memory_bank_size": same(0)}),
    Original(name="DCLLoss", **lightly, constructor={**LIGHTLY, "weight_fn": same(distance)}),
    Original(name="DCLWLoss", **lightly, constructor={**LIGHTLY, "sigma": same(0.3)}),
    Original(
        name="MemoryBankModule",
        **{
            **lightly,
            "module": "lightly.models.modules.memory_bank",
            "given": frozenset({"output"}),
            "call": of_bank,
            "features": 1,
        },
        constructor={
            "size": same((11, DIM), [2 * ROWS, DIM]),
            "gather_distributed": same(True),
            "feature_dim_first": same(False),
        },
        forward={"labels": same(LABELS), "update": same(True)},
        needed=lambda _: {"size": (11, DIM)},
    ),
    Original(
        name="DirectCLRLoss",
        **lightly,
        constructor={**LIGHTLY, "memory_bank_size": same(0), "loss_dim": same(2, 3)},
    ),
    Original(
        name="MACLLoss",
        **{**lightly, "given": frozenset({"z0", "z1"})},
        constructor={"temperature": same(0.2, 3), "alpha": same(0, 0.8), "A_0": same(0.1)},
    ),
    Original(
        name="HypersphereLoss",
        **{**lightly, "module": "lightly.loss.hypersphere_loss", "given": frozenset({"z_a", "z_b"})},
        constructor={"t": same(3), "lam": same(0, 0.4), "alpha": same(1, 1.5)},
    ),
    Original(name="NTXentLoss", **labelled, constructor=METRIC_LEARNING, forward=LABELLED),
    Original(name="SupConLoss", **labelled, constructor=METRIC_LEARNING, forward=LABELLED),
    Original(
        name="CrossBatchMemory",
        **{**labelled, "given": frozenset({"embeddings", "loss"}), "with_it": {}, "call": of_memory},
        constructor={
            "embedding_size": same(DIM),
            "memory_size": same(2 * ROWS, 3 * ROWS),
            "miner": same(metric_learning("miners.MultiSimilarityMiner")),
            "collect_stats": same(True),
        },
        forward={
            "labels": same(LABELS % 3, LABELS.float()),
            "indices_tuple": same(PAIRS),
            "enqueue_mask": same(torch.arange(2 * ROWS) < 5),
        },
        needed=lambda module: {"loss": module.NTXentLoss(), "embedding_size": DIM, "memory_size": 4 * ROWS},
    ),
    Original(
        name="ClipLoss",
        **open_clip,
        constructor=CLIP,
        forward={"logit_scale": SCALE, "logit_bias": same(-2.0), "output_dict": same(True)},
    ),
    Original(
        name="SigLipLoss",
        **{**open_clip, "call": of_signs},
        constructor={**PROCESSES, "dist_impl": same("bidir", "shift", "reduce", "gather")},
        forward={"logit_scale": SCALE, "logit_bias": same(-2.0, torch.tensor(-1.0)), "output_dict": same(True)},
    ),
    Original(
        name="CoCaLoss",
        **{**open_clip, "call": of_captions},
        constructor={**CLIP, "caption_loss_weight": same(0.5), "clip_loss_weight": same(0.5), "pad_id": same(3)},
        forward={
            "logits": same(CAPTIONS[0].flip(0)),
            "labels": same(CAPTIONS[1].flip(0)),
            "logit_scale": SCALE,
            "output_dict": same(True),
        },
        needed=lambda _: {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0},
    ),
    Original(
        name="DistillClipLoss",
        **{**open_clip, "call": of_teacher},
        constructor=CLIP,
        forward={
            "logit_scale": SCALE,
            "dist_image_features": same(TEACHER[0].flip(0)),
            "dist_text_features": same(TEACHER[1].flip(0)),
            "dist_logit_scale": SCALE,
            "output_dict": same(True),
        },
    ),
    Original(
        name="GradCache",
        distribution="gradcache",
        module="gradcache.grad_cache",
        ours="grad_cache",
        method="cache_step",
        call=of_chunks,
        constructor={
            "loss_fn": same(contrast),
            "chunk_sizes": same(8, [2, 4]),
            "split_input_fn": same(lambda rows, size: [rows[i : i + size] for i in range(0, len(rows), size)]),
            "get_rep_fn": same(torch.tanh),
            "fp16": Values((), (True,), "without a `scaler`"),
            "scaler": Values(untried="`fp16` needs a GPU"),
        },
        forward={"no_sync_except_last": Values((), (True,), "for models without DistributedDataParallel")},
        given=frozenset({"models", "model_inputs", "loss_kwargs"}),
        needed=lambda _: {"models": [nn.Identity(), nn.Identity()], "chunk_sizes": 3, "loss_fn": contrast},
    ),
    Original(
        name="SimpleContrastiveLoss",
        **grad_cache,
        constructor={"n_hard_negatives": Values((0,), (-1,), "below 0")},
        forward={"target": same(TARGET), "reduction": same("sum")},
        given=frozenset({"x", "y"}),
    ),
    Original(
        name="ContrastiveLossWithQueryClosure",
        **grad_cache,
        constructor={"n_hard_negatives": Values((0,), (-1,), "below 0")},
        forward={
            "query_closure": Values((), (lambda: REFERENCES,), "with queries"),
            "target": same(TARGET),
            "reduction": same("sum"),
        },
        given=frozenset({"reps"}),
    ),
    Original(
        name="DistributedContrastiveLoss",
        **grad_cache,
        constructor={"n_hard_negatives": Values(untried="needs several processes")},
        given=frozenset({"x", "y"}),
    ),
    Original(name="MultipleNegativesRankingLoss", **ranking, constructor=RANKING),
    Original(
        name="CachedMultipleNegativesRankingLoss",
        **ranking,
        constructor={**RANKING, **CACHED},
    ),
    Original(name="MultipleNegativesSymmetricRankingLoss", **ranking, constructor=SYMMETRIC),
    Original(name="CachedMultipleNegativesSymmetricRankingLoss", **ranking, constructor={**SYMMETRIC, **CACHED}),
)


def version(original: Original) -> str:
    return f"{original.distribution} {metadata.version(original.distribution)}"


def table() -> Iterator[str]:
    """The lines of the table."""
    yield "| class | with the original's numbers | refused by an error that names it |"
    yield "| --- | --- | --- |"
    for original in ORIGINALS:
        options = [*original.constructor.items(), *original.forward.items()]
        accepted = ", ".join(
            f"`{name}`" + (f" (not tried: {values.untried})" if values.untried else "")
            for name, values in options
            if values.same or values.untried
        )
        refused = "; ".join(f"`{name}`: {values.refused_are}" for name, values in options if values.refused)
        yield f"| {original.distribution} `{original.name}` | {accepted} | {refused} |"


def written() -> str:
    """The page with the table as it is to be."""
    before, rest = PAGE.read_text().split(BEGIN)
    return before + BEGIN + "".join(f"{line}\n" for line in table()) + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(written())
