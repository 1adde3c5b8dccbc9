"""Options that are set after construction: honoured as the original does, or refused."""

import contextlib
import copy
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import assert_parity, library
from torch import Tensor, nn

from hyperkern.integrations import lightly, open_clip, pytorch_metric_learning, sentence_transformers

MODULES = {
    "lightly": (lightly, "lightly.loss"),
    "hypersphere": (lightly, "lightly.loss.hypersphere_loss"),
    "metric learning": (pytorch_metric_learning, "pytorch_metric_learning.losses"),
    "open_clip": (open_clip, "open_clip.loss"),
    "ranking": (sentence_transformers, "sentence_transformers.sentence_transformer.losses"),
}
LOSSES = [
    ("lightly", "NTXentLoss"),
    ("lightly", "DCLLoss"),
    ("lightly", "DCLWLoss"),
    ("hypersphere", "HypersphereLoss"),
    ("metric learning", "NTXentLoss"),
    ("metric learning", "SupConLoss"),
    ("open_clip", "ClipLoss"),
    ("open_clip", "SigLipLoss"),
    ("ranking", "MultipleNegativesRankingLoss"),
    ("ranking", "CachedMultipleNegativesRankingLoss"),
]
LABELS = torch.arange(12) % 4


class Encoder(nn.Module):
    """Embeddings as they come."""

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        return {"sentence_embedding": features["input_ids"]}


def made(of: str, name: str, module: ModuleType) -> nn.Module:
    if name.startswith("Cached"):  # whose cache is the library's
        library("sentence_transformers")
    return getattr(module, name)(*[nn.Sequential(Encoder())] * (of == "ranking"))


def called(of: str, loss: nn.Module) -> Callable[..., Tensor]:
    """The loss as a function of two tensors of features."""
    if of == "metric learning":
        return lambda x, y: loss(torch.cat([x, y]), LABELS)
    if of == "open_clip":
        return lambda x, y: loss(x, y, 3.0, None)
    if of == "ranking":  # the cached original has gradients for the parameters of a model alone
        return lambda x, y: getattr(loss, "loss", loss).compute_loss_from_embeddings([x, y])
    return loss


def both(of: str, name: str) -> list[nn.Module]:
    module, original = MODULES[of]
    return [made(of, name, module), made(of, name, library(original))]


# What callers of the original may set without an effect on its value either.
WITHOUT_EFFECT = {
    "eps": "read in the constructor alone",
    "prev_num_logits": "when to make labels again",
}


@pytest.mark.parametrize(("of", "name"), LOSSES)
def test_no_attribute_of_the_original_is_ignored(of: str, name: str) -> None:
    loss, original = both(of, name)
    known = set(vars(nn.Module()))
    theirs = {*vars(original), *original._modules, *original._buffers} - known - WITHOUT_EFFECT.keys()
    if name == "SigLipLoss":
        theirs.remove("labels")  # never read
    for attribute in theirs - {*vars(loss), *loss._modules}:
        with pytest.raises((NotImplementedError, AttributeError, ValueError)):
            setattr(loss, attribute, object())


def weight_fn(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum(1)


HONOURED: list[tuple[str, str, dict[str, Any]]] = [
    ("lightly", "NTXentLoss", {"temperature": 0.2}),
    ("lightly", "NTXentLoss", {"temperature": 2.0, "gather_distributed": True}),
    ("lightly", "DCLLoss", {"temperature": 0.5}),
    ("lightly", "DCLLoss", {"weight_fn": weight_fn}),
    ("lightly", "DCLWLoss", {"temperature": 0.5}),
    ("lightly", "DCLWLoss", {"weight_fn": weight_fn}),
    ("lightly", "DCLWLoss", {"weight_fn": None}),
    ("hypersphere", "HypersphereLoss", {"t": 3.0, "lam": 0.4, "alpha": 1.5}),
    ("metric learning", "NTXentLoss", {"temperature": 0.3}),
    ("metric learning", "SupConLoss", {"temperature": 0.3}),
    ("open_clip", "ClipLoss", {"local_loss": True, "gather_with_grad": True, "cache_labels": True, "rank": 3}),
    ("open_clip", "SigLipLoss", {"dist_impl": "gather", "cache_labels": True, "rank": 3}),
    ("ranking", "MultipleNegativesRankingLoss", {"scale": 3.0}),
    ("ranking", "MultipleNegativesRankingLoss", {"similarity_fct": "dot_score", "scale": 0.5}),
    ("ranking", "MultipleNegativesRankingLoss", {"directions": ["query_to_doc", "doc_to_doc"]}),
    (
        "ranking",
        "MultipleNegativesRankingLoss",
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    ),
    ("ranking", "MultipleNegativesRankingLoss", {"hardness_mode": "in_batch_negatives", "hardness_strength": 5.0}),
]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # the original's own
@pytest.mark.parametrize(
    ("of", "name", "options"), HONOURED, ids=lambda value: value if isinstance(value, str) else ",".join(value)
)
def test_what_is_honoured(of: str, name: str, options: dict[str, Any]) -> None:
    pair = both(of, name)
    for loss in pair:
        for option, value in options.items():
            setattr(loss, option, library("sentence_transformers.util").dot_score if value == "dot_score" else value)
    functions = [called(of, loss) for loss in pair]
    if of == "ranking":
        functions = [lambda x, y, loss=loss: loss.compute_loss_from_embeddings([x, y], None) for loss in pair]
    x, y = torch.randn(2, 6, 5, dtype=torch.float64)
    assert_parity(*functions, x, y, largest_logit=20.0)


def test_the_cached_ranking_loss_honours_what_is_set() -> None:
    pair = both("ranking", "CachedMultipleNegativesRankingLoss")
    columns = [{"input_ids": torch.randn(6, 5, dtype=torch.float64)} for _ in range(2)]
    values = []
    for loss in pair:
        loss.scale, loss.directions, loss.mini_batch_size = 3.0, ("query_to_doc", "doc_to_query"), 2
        loss.hardness_mode, loss.hardness_strength = "all_negatives", 2.0
        with torch.no_grad():
            values.append(loss([dict(column) for column in columns], torch.empty(0)))
    torch.testing.assert_close(*values)


def test_the_width_of_the_weights_of_lightly() -> None:
    # The original keeps it in the function alone.
    x, y = torch.randn(2, 6, 5)
    loss = lightly.DCLWLoss()
    loss.sigma = 0.2
    assert loss.sigma == loss.weight_fn.sigma == 0.2
    assert loss(x, y) == lightly.DCLWLoss(sigma=0.2)(x, y) != lightly.DCLWLoss()(x, y)
    loss.weight_fn = weight_fn
    assert loss.sigma is None
    assert loss(x, y) == lightly.DCLLoss(weight_fn=weight_fn)(x, y)
    with pytest.raises(ValueError, match=r"^sigma must be a finite number > 0, got 0"):
        loss.sigma = 0


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))], ids=["copy", "pickle"]
)
def test_copies_keep_their_options(again: Callable) -> None:
    x, y = torch.randn(2, 6, 5)
    loss = again(lightly.DCLWLoss(sigma=0.2))
    assert loss(x, y) == lightly.DCLWLoss(sigma=0.2)(x, y)
    assert again(pytorch_metric_learning.SupConLoss(0.3)).temperature == 0.3


REFUSED: list[tuple[str, str, str, Any, type[Exception], str]] = [
    ("lightly", "NTXentLoss", "cross_entropy", nn.CrossEntropyLoss(label_smoothing=0.1), NotImplementedError, ""),
    ("lightly", "NTXentLoss", "temperature", 1e-9, ValueError, "at least 1e-08, got 1e-09"),
    ("lightly", "MACLLoss", "temperature", 0, ValueError, "> 0, got 0"),
    ("lightly", "MACLLoss", "alpha", 2.0, ValueError, "between 0 and 1, got 2.0"),
    ("lightly", "MACLLoss", "A_0", float("nan"), ValueError, "got nan"),
    ("lightly", "DCLLoss", "temperature", -1.0, ValueError, "> 0, got -1.0"),
    ("lightly", "DCLLoss", "weight_fn", 0.5, TypeError, "got 0.5"),
    ("hypersphere", "HypersphereLoss", "t", torch.ones(2), ValueError, "one element"),
    ("hypersphere", "HypersphereLoss", "lam", float("inf"), ValueError, "got inf"),
    ("hypersphere", "HypersphereLoss", "alpha", 0, ValueError, "> 0, got 0"),
    *(
        ("metric learning", name, option, value, NotImplementedError, "")
        for name in ("NTXentLoss", "SupConLoss")
        for option, value in (
            ("distance", nn.Identity()),
            ("distance", nn.Sequential()),  # a module without a length is false
            ("reducer", nn.Identity()),
            ("embedding_regularizer", nn.Identity()),
            ("loss_method", print),
        )
    ),
    ("open_clip", "ClipLoss", "labels", {"cpu": torch.zeros(6)}, NotImplementedError, ""),
    ("open_clip", "ClipLoss", "get_logits", print, NotImplementedError, ""),
    ("open_clip", "SigLipLoss", "get_ground_truth", print, NotImplementedError, ""),
    ("open_clip", "SigLipLoss", "dist_impl", "ring", ValueError, "one of 'bidir', .* got 'ring'"),
    *(
        ("ranking", name, option, value, error, message)
        for name in ("MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss")
        for option, value, error, message in (
            ("scale", 0.0, ValueError, "> 0, got 0.0"),
            ("similarity_fct", nn.CosineSimilarity(), ValueError, "got CosineSimilarity"),
            ("directions", "query_to_doc", TypeError, "got 'query_to_doc'"),
            ("directions", ("query_to_query",), ValueError, "'query_to_doc'"),
            ("partition_mode", "both", ValueError, "got 'both'"),
            ("hardness_mode", "hard", ValueError, "got 'hard'"),
            ("hardness_strength", -1.0, ValueError, "got -1.0"),
        )
    ),
    ("ranking", "CachedMultipleNegativesRankingLoss", "mini_batch_size", 0, ValueError, "> 0, got 0"),
    ("ranking", "CachedMultipleNegativesRankingLoss", "mini_batch_num_tokens", 0, ValueError, "> 0, got 0"),
    ("ranking", "CachedMultipleNegativesRankingLoss", "loss", nn.Identity(), NotImplementedError, ""),
]


@pytest.mark.parametrize(("of", "name", "option", "value", "error", "message"), REFUSED, ids=str)
def test_what_is_refused(of: str, name: str, option: str, value: Any, error: type[Exception], message: str) -> None:
    if option == "similarity_fct":  # of which the default is the library's
        library("sentence_transformers")
    loss = made(of, name, MODULES[of][0])
    before = getattr(loss, option, None)
    with pytest.raises(error, match=f"{option}.*{message}"):
        setattr(loss, option, value)
    assert getattr(loss, option, None) == before
    x, y = torch.randn(2, 6, 5)
    assert called(of, loss)(x, y) == called(of, made(of, name, MODULES[of][0]))(x, y)


def test_what_means_the_default_is_not_refused() -> None:
    for name in ("NTXentLoss", "SupConLoss"):
        loss = getattr(pytorch_metric_learning, name)()
        loss.distance = loss.reducer = loss.embedding_regularizer = None
        loss.collect_stats = False
        assert loss(torch.randn(12, 5), LABELS).isfinite()


@pytest.mark.parametrize("first", ["use_horovod", "world_size"])
def test_horovod(first: str) -> None:
    values = {"use_horovod": True, "world_size": 2}
    loss = open_clip.ClipLoss()
    setattr(loss, first, values.pop(first))
    (last,) = values
    with pytest.raises(NotImplementedError, match=r"^use_horovod=True with world_size=2: .*use_horovod=False"):
        setattr(loss, last, values[last])


def test_directions_that_do_not_fit_the_partition() -> None:
    loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity())
    loss.partition_mode, loss.directions = "per_direction", ("query_to_doc", "doc_to_doc")
    embeddings = list(torch.randn(2, 6, 5))
    with pytest.raises(ValueError, match=r"^partition_mode='per_direction' needs the positive in every .*'doc_to_doc'"):
        loss.compute_loss_from_embeddings(embeddings)
    loss.directions = ("query_to_doc",)
    assert loss.compute_loss_from_embeddings(embeddings).isfinite()


OVERRIDDEN = [
    (pytorch_metric_learning.NTXentLoss, "get_default_distance"),
    (pytorch_metric_learning.SupConLoss, "_compute_loss"),
    (open_clip.ClipLoss, "get_logits"),
    (open_clip.SigLipLoss, "get_ground_truth"),
]


@pytest.mark.parametrize(("loss", "method"), OVERRIDDEN, ids=str)
def test_a_method_that_only_the_original_calls(loss: type[nn.Module], method: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^Mine overrides {method}, which this replacement never calls"):
        type("Mine", (loss,), {method: lambda self: None})
    assert type("Mine", (loss,), {"help": lambda self: None}) is not None


@pytest.mark.parametrize(("of", "name"), LOSSES)
def test_other_attributes_are_the_callers_own(of: str, name: str) -> None:
    loss = made(of, name, MODULES[of][0])
    loss.note = "mine"
    assert loss.note == "mine"
    assert not loss.eval().training
    with contextlib.suppress(AttributeError):
        del loss.note
    assert not hasattr(loss, "note")
