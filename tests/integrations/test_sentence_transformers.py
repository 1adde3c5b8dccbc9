"""The drop-ins for Sentence Transformers: against the library where it is installed, else against dense formulas."""

import itertools
import json
import logging
import weakref
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, library, pretend, relative_error
from torch import Tensor, nn

from hyperkern.integrations import sentence_transformers as ours

TO_QUERY, QUERIES, DOCUMENTS = "doc_to_query", "query_to_query", "doc_to_doc"
MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")

# Every choice of directions, and every hardness mode, with the default of the others and with all of them.
OPTIONS: list[dict[str, Any]] = [
    *(
        {"directions": ("query_to_doc", *more)}
        for count in range(4)
        for more in itertools.combinations((QUERIES, TO_QUERY, DOCUMENTS), count)
    ),
    {"directions": ("query_to_doc", TO_QUERY), "partition_mode": "per_direction"},
    *({"hardness_mode": mode, "hardness_strength": 5.0} for mode in MODES),
    *(
        {"hardness_mode": mode, "hardness_strength": 9.0, "directions": ("query_to_doc", QUERIES, TO_QUERY, DOCUMENTS)}
        for mode in MODES
    ),
    {
        "hardness_mode": "all_negatives",
        "hardness_strength": 5.0,
        "directions": (TO_QUERY, "query_to_doc"),
        "partition_mode": "per_direction",
    },
    {"hardness_mode": "in_batch_negatives"},  # without strength
    {"scale": 1.0},
    {"scale": 100.0},
]


def name_of(options: dict[str, Any]) -> str:
    return "-".join("+".join(v) if isinstance(v, tuple) else str(v) for v in options.values())


def columns(hard: int, n: int = 9, d: int = 5) -> list[Tensor]:
    anchors, *others = torch.randn(2 + hard, n, d, dtype=torch.float64)
    return [2 * anchors, *(anchors + other for other in others)]


def assert_same_loss(ours: Callable, original: Callable, embeddings: list[Tensor], largest_logit: float) -> None:
    """Value and gradients of all columns together, since a column may matter little beside the others."""
    stacked = torch.stack(embeddings)
    if largest_logit <= 20:  # those of the default: as close as those of smaller logits
        largest_logit = 10.0
    assert_parity(lambda x: ours(list(x)), lambda x: original(list(x)), stacked, largest_logit=largest_logit)


def dense(
    embeddings: list[Tensor],
    *,
    scale: float = 20.0,
    cosine: bool = True,
    directions: tuple[str, ...] = ("query_to_doc",),
    partition_mode: str = "joint",
    hardness_mode: str | None = None,
    hardness_strength: float = 0.0,
) -> Tensor:
    """All matrices of logits, as the documentation of the library describes them."""
    rows = [F.normalize(column, dim=1) if cosine else column for column in embeddings]
    anchors, positives, documents = rows[0], rows[1], torch.cat(rows[1:])
    n, hard = len(anchors), len(rows) - 2
    own = torch.eye(n, dtype=torch.bool)
    own_documents = own.repeat(1, 1 + hard)
    own_hard = torch.cat([torch.zeros_like(own), *[own] * hard], 1)
    similarity = anchors @ documents.T
    boosted = {
        None: torch.zeros_like(own_documents),
        "in_batch_negatives": ~own_documents,
        "hard_negatives": own_hard,
        "all_negatives": ~own_documents | own_hard,
    }[hardness_mode]
    logits = {
        "query_to_doc": scale * similarity + hardness_strength * boosted * similarity.detach(),
        "query_to_query": (scale * anchors @ anchors.T).masked_fill(own, -torch.inf),
        "doc_to_query": scale * positives @ anchors.T,
        "doc_to_doc": (scale * positives @ documents.T).masked_fill(own_documents, -torch.inf),
    }
    positive = scale * (anchors * positives).sum(1)
    chosen = [logits[direction] for direction in directions]
    if partition_mode == "per_direction":
        return torch.stack([part.logsumexp(1) - positive for part in chosen]).mean()
    return (torch.cat(chosen, 1).logsumexp(1) - positive).mean()


class Encoder(nn.Module):
    """Like a module of the library it adds what it computes to the features; it shows what is alive of it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.hidden, self.dropout, self.out = nn.Linear(12, 12), nn.Dropout(dropout), nn.Linear(12, 6)
        self.activations: list[weakref.ref] = []
        self.alive_at_call: list[int] = []

    @property
    def alive(self) -> int:
        return sum(activation() is not None for activation in self.activations)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        self.alive_at_call.append(self.alive)
        assert "token_embeddings" not in features
        mask = features["attention_mask"].unsqueeze(-1)
        tokens = self.dropout(torch.tanh(self.hidden(self.words(features["input_ids"]))))
        self.activations.append(weakref.ref(tokens))
        features["token_embeddings"] = tokens
        features["sentence_embedding"] = self.out((tokens * mask).sum(1) / mask.sum(1))
        return features


def new_model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(Encoder(dropout)).double()


def new_features(count: int, samples: int = 10, shortest: int = 1) -> list[dict[str, Any]]:
    torch.manual_seed(2)
    features = []
    for _ in range(count):
        mask = (torch.arange(7) < torch.randint(shortest, 8, (samples, 1))).long()
        ids = torch.randint(0, 40, (samples, 7))
        features.append({"input_ids": ids, "attention_mask": mask, "prompt_length": torch.tensor([1]), "task": "sts"})
    return features


def run(loss: nn.Module, features: list[dict[str, Any]]) -> list[Tensor]:
    """The loss and the gradients of the model, with the same random numbers each time."""
    torch.manual_seed(3)
    loss.zero_grad()
    value = loss([dict(column) for column in features], torch.empty(0))
    value.backward()
    return [value.detach(), *(parameter.grad.clone() for parameter in loss.model.parameters())]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for actual, truth in zip(found, expected, strict=True):
        assert relative_error(actual, truth) <= tolerance


@pytest.fixture(scope="module")
def original() -> ModuleType:
    return library("sentence_transformers.sentence_transformer.losses")


@pytest.fixture(scope="module")
def util() -> ModuleType:
    return library("sentence_transformers.util")


# Values


@pytest.mark.parametrize("hard", [0, 1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_values_are_those_of_the_dense_formula(options: dict[str, Any], hard: int) -> None:
    loss = ours.MultipleNegativesRankingLoss(nn.Identity(), **options)
    largest_logit = loss.scale + loss.hardness_strength
    dense_loss = partial(dense, **options)
    assert_same_loss(loss.compute_loss_from_embeddings, dense_loss, columns(hard), largest_logit)


@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
@pytest.mark.parametrize("hard", [0, 1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_values_are_those_of_the_library(
    options: dict[str, Any], hard: int, similarity: str, original: ModuleType, util: ModuleType
) -> None:
    options = {"similarity_fct": getattr(util, similarity), "scale": 20.0 if similarity == "cos_sim" else 1.0} | options
    loss, reference = (module.MultipleNegativesRankingLoss(nn.Identity(), **options) for module in (ours, original))
    embeddings = columns(hard)
    largest = 1.0 if similarity == "cos_sim" else max(column.square().sum(1).max().item() for column in embeddings)
    assert_same_loss(
        partial(loss.compute_loss_from_embeddings, labels=None),
        partial(reference.compute_loss_from_embeddings, labels=None),
        embeddings,
        largest * (loss.scale + loss.hardness_strength),
    )
    assert loss.get_config_dict() == reference.get_config_dict()


@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
def test_one_sample(options: dict[str, Any]) -> None:
    for hard in (0, 1):
        embeddings = [column.requires_grad_() for column in columns(hard, n=1)]
        loss = ours.MultipleNegativesRankingLoss(nn.Identity(), **options).compute_loss_from_embeddings(embeddings)
        torch.testing.assert_close(loss, dense(embeddings, **options))
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss, embeddings))


def test_half_precision_embeddings() -> None:
    embeddings = [column.bfloat16() for column in columns(1)]
    loss = ours.MultipleNegativesRankingLoss(nn.Identity()).compute_loss_from_embeddings(embeddings)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), dense([column.double() for column in embeddings]), rtol=0.02, atol=0)


# The model


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_model_is_called_for_each_column(count: int) -> None:
    model, features = new_model(), new_features(count)
    embeddings = [model(dict(column))["sentence_embedding"] for column in features]
    expected = dense(embeddings)
    expected.backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    for loss in (
        ours.MultipleNegativesRankingLoss(model),
        ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3),
    ):
        assert_same(run(loss, features), [expected.detach(), *grads])


@pytest.mark.parametrize("options", [{}, OPTIONS[7], OPTIONS[-5]], ids=name_of)
@pytest.mark.parametrize("size", [1, 3, 10, 32])
def test_cached_with_dropout(size: int, options: dict[str, Any]) -> None:
    class InParts(ours.MultipleNegativesRankingLoss):
        """What is cached, without a cache."""

        def embed(self, features: dict[str, Any]) -> Tensor:
            parts = list(ours._mini_batches(features, size))
            return torch.cat([self.model(part)["sentence_embedding"] for part in parts])

    model, features = new_model(dropout=0.5), new_features(3)
    cached = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=size, **options)
    found, expected = run(cached, features), run(InParts(model, **options), features)
    assert_same(found, expected)
    if size >= 10:
        assert_same(found, run(ours.MultipleNegativesRankingLoss(model, **options), features))
    other = ours.CachedMultipleNegativesRankingLoss(new_model(dropout=0.0), mini_batch_size=size, **options)
    assert relative_error(run(other, features)[0], found[0]) > 1e-3  # dropout matters here


def test_cached_keeps_the_random_numbers_in_order() -> None:
    features = new_features(2)
    after = []
    for loss in (ours.MultipleNegativesRankingLoss, ours.CachedMultipleNegativesRankingLoss):
        run(loss(new_model(dropout=0.5)), features)
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_cached_has_the_activations_of_one_part_at_a_time() -> None:
    model, features = new_model(dropout=0.5), new_features(2)
    encoder = model[0]
    loss = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
    value = loss(features)
    assert encoder.alive == 0
    assert len(encoder.alive_at_call) == 2 * 4
    value.backward()
    assert len(encoder.alive_at_call) == 4 * 4
    assert max(encoder.alive_at_call) == 0
    assert "token_embeddings" not in features[0]
    value = ours.MultipleNegativesRankingLoss(model)(features)
    assert encoder.alive == 2


def test_cached_without_gradients_encodes_once() -> None:
    model, features = new_model(), new_features(2)
    loss = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    with torch.no_grad():
        value = loss(features)
    assert len(model[0].alive_at_call) == 2 * 3
    torch.testing.assert_close(value, loss(features).detach())


def test_cached_shows_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []

    class Tqdm(ModuleType):
        @staticmethod
        def tqdm(parts: list, desc: str) -> list:
            shown.append((desc, len(parts)))
            return parts

    monkeypatch.setitem(__import__("sys").modules, "tqdm", Tqdm("tqdm"))
    ours.CachedMultipleNegativesRankingLoss(new_model(), mini_batch_size=3, show_progress_bar=True)(new_features(2))
    assert shown == [("Embed mini-batches", 4)] * 2


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_the_whole_loss_is_that_of_the_library(count: int, dropout: float, original: ModuleType) -> None:
    # Of a model that is built here. The library joins columns, and cuts the padding of a part: dropout then differs.
    sentence_transformers = library("sentence_transformers")
    features = new_features(count, shortest=7 if dropout else 1)
    torch.manual_seed(1)
    model = sentence_transformers.SentenceTransformer(modules=[Encoder(dropout)], device="cpu").double().train()
    if count == 2 or dropout == 0:
        found, expected = (run(module.MultipleNegativesRankingLoss(model), features) for module in (ours, original))
        assert_same(found, expected)
    for size in (3, 32):
        found, expected = (
            run(module.CachedMultipleNegativesRankingLoss(model, mini_batch_size=size), features)
            for module in (ours, original)
        )
        assert_same(found, expected)


# Options


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_same_arguments(name: str, original: ModuleType) -> None:
    found, expected = (defaults(getattr(module, name).__init__) for module in (ours, original))
    assert list(found) == list(expected)
    assert expected.pop("similarity_fct").__name__ == "cos_sim"
    assert found.pop("similarity_fct") is None
    assert found == expected
    config, reference = (getattr(module, name)(new_model()).get_config_dict() for module in (ours, original))
    assert config == reference
    assert json.dumps(config)
    assert getattr(ours, name)(new_model(), 8.0).temperature == 1 / 8


def test_the_similarity_of_a_model(util: ModuleType) -> None:
    for similarity in (util.cos_sim, util.pytorch_cos_sim, None):
        loss = ours.MultipleNegativesRankingLoss(nn.Identity(), similarity_fct=similarity)
        assert loss.get_config_dict()["similarity_fct"] == "cos_sim"
    with pytest.raises(ValueError, match=r"^similarity_fct must be None, or cos_sim or dot_score.*manhattan_sim"):
        ours.MultipleNegativesRankingLoss(nn.Identity(), similarity_fct=util.manhattan_sim)


def cos_sim(x: Tensor, y: Tensor) -> Tensor:
    """Of the same name, but not of the library: it may be anything."""
    return x @ y.T


BOTH = [ours.MultipleNegativesRankingLoss, ours.CachedMultipleNegativesRankingLoss]


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "^scale must be a finite number > 0, got 0.0"),
        ({"scale": "20"}, TypeError, "^scale must be a number, got str"),
        ({"similarity_fct": cos_sim}, ValueError, "^similarity_fct must be None, or cos_sim .* got <function cos_sim"),
        ({"directions": "query_to_doc"}, TypeError, "^directions must be a tuple of names, got 'query_to_doc'"),
        ({"directions": ("query_to_doc", "x")}, ValueError, "^directions must be one of .*got 'x'"),
        ({"directions": ()}, ValueError, r"^directions must contain 'query_to_doc'.* got \(\)"),
        ({"directions": (TO_QUERY,)}, ValueError, r"^directions must contain .* got \('doc_to_query',\)"),
        ({"partition_mode": "both"}, ValueError, "^partition_mode must be one of 'joint', .* got 'both'"),
        (
            {"partition_mode": "per_direction", "directions": ("query_to_doc", DOCUMENTS)},
            ValueError,
            "^partition_mode='per_direction' needs the positive in every direction.*'doc_to_doc'",
        ),
        ({"hardness_mode": "hard"}, ValueError, "^hardness_mode must be one of 'in_batch_negatives'.* got 'hard'"),
        ({"hardness_strength": -1.0}, ValueError, "^hardness_strength must be >= 0, got -1.0"),
        ({"hardness_strength": float("nan")}, ValueError, "^hardness_strength must be a finite number, got nan"),
    ],
)
def test_wrong_options(loss: Callable, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss(nn.Identity(), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mini_batch_size": 0}, ValueError, "^mini_batch_size must be > 0, got 0"),
        ({"mini_batch_size": 2.0}, TypeError, "^mini_batch_size must be an integer, got 2.0"),
        ({"mini_batch_num_tokens": 512}, NotImplementedError, "^mini_batch_num_tokens=512 is not supported"),
    ],
)
def test_wrong_options_of_the_cached(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ours.CachedMultipleNegativesRankingLoss(nn.Identity(), **options)


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("strength", [0.0, 0, 2.0])
@pytest.mark.parametrize("name", [loss.__name__ for loss in BOTH])
def test_a_hardness_without_strength_is_warned_of(
    name: str, strength: float, mode: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    getattr(ours, name)(nn.Identity(), hardness_mode=mode, hardness_strength=strength)
    expected = [] if mode is None or strength else [("hyperkern.integrations.sentence_transformers", logging.WARNING)]
    assert [record[:2] for record in caplog.record_tuples] == expected
    assert all(f"hardness_mode={mode!r}" in message for message in caplog.messages)


@pytest.mark.parametrize("name", [loss.__name__ for loss in BOTH])
def test_the_library_warns_alike(original: ModuleType, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for options in ({}, {"hardness_mode": MODES[0]}, {"hardness_mode": MODES[0], "hardness_strength": 2.0}):
        levels = []
        for module in (ours, original):
            caplog.clear()
            getattr(module, name)(new_model(), **options)
            levels.append([record.levelno for record in caplog.records])
        assert levels[0] == levels[1]


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize("loss", BOTH)
def test_one_process_has_nothing_to_gather(
    loss: type[nn.Module], processes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = new_features(2)
    if processes is not None:
        pretend(monkeypatch, processes)
    assert_same(run(loss(new_model(), gather_across_devices=True), features), run(loss(new_model()), features), 0)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        ([torch.ones(3, 2)], ValueError, "^sentence_features must have 2 or more columns.* got 1"),
        ([torch.ones(3, 2), torch.ones(4, 2)], ValueError, r"column 1 must have the shape of column 0, .*\[3, 2\].*4"),
        ([torch.ones(3, 2)] * 2 + [torch.ones(3, 2).half()], ValueError, "column 2 must have the dtype of column 0"),
        ([torch.ones(3, 2).long()] * 2, TypeError, "column 0 must be float64.* got torch.int64"),
        ([torch.ones(3)] * 2, ValueError, "column 0 must have shape"),
        ([torch.ones(2, 3, 2)] * 2, ValueError, r"column 0 must have shape \(N, D\), got \(2, 3, 2\)"),
    ],
)
def test_wrong_embeddings(embeddings: list[Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ours.MultipleNegativesRankingLoss(nn.Identity()).compute_loss_from_embeddings(embeddings)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"offsets": torch.arange(10)}, "^features with 'offsets' have no row for each sample"),
        ({"cu_seq_lens_q": torch.arange(11)}, "^features with 'cu_seq_lens_q' have no row"),
        ({"pixel_values": torch.ones(40, 2)}, r"^features\['pixel_values'\] of shape \(40, 2\) has no row .* 10 "),
    ],
)
def test_features_that_cannot_be_cut(extra: dict[str, Tensor], message: str) -> None:
    features = [{**column, **extra} for column in new_features(2)]
    with pytest.raises(NotImplementedError, match=message):
        ours.CachedMultipleNegativesRankingLoss(new_model())(features)
