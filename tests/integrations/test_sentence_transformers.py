"""The drop-ins for Sentence Transformers: against the library where it is installed, else against dense formulas."""

import copy
import itertools
import json
import logging
import math
import pickle
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, library, pretend
from sentence_models import assert_same, gradients, new_features, new_model, run
from torch import Tensor, nn

from hyperkern.integrations import sentence_transformers as ours

PER = {"partition_mode": "per_direction"}
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
    scale: float | Tensor = 20.0,
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
    truth = [expected.detach(), gradients(model)]
    assert_same(run(ours.MultipleNegativesRankingLoss(model), features), truth)


# More documents than anchors


@pytest.mark.parametrize("rows", [(4, 7), (4, 8), (4, 4, 9), (4, 6, 1, 3)], ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"directions": ("query_to_doc", QUERIES, TO_QUERY)}, {"directions": ("query_to_doc", TO_QUERY), **PER}],
    ids=name_of,
)
def test_columns_of_other_lengths(options: dict[str, Any], rows: tuple[int, ...], original: ModuleType) -> None:
    loss, reference = (module.MultipleNegativesRankingLoss(nn.Identity(), **options) for module in (ours, original))
    embeddings = [torch.randn(count, 5, dtype=torch.float64) for count in rows]

    def of(one: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: one.compute_loss_from_embeddings(list(x.split(rows)), None)

    assert_parity(of(loss), of(reference), torch.cat(embeddings), largest_logit=20.0)


# A scale with a gradient


@pytest.mark.parametrize("make", [nn.Parameter, torch.Tensor.requires_grad_], ids=["parameter", "tensor"])
@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("options", OPTIONS[:-2], ids=name_of)
def test_a_learnable_scale(options: dict[str, Any], hard: int, make: Callable, original: ModuleType) -> None:
    embeddings = [column.requires_grad_() for column in columns(hard)]

    def results(of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        scale = make(torch.tensor(11.0, dtype=torch.float64))
        value = of(scale)
        return [value.detach(), *torch.autograd.grad(value, [scale, *embeddings])]

    def of_module(module: ModuleType, scale: Tensor) -> Tensor:
        loss = module.MultipleNegativesRankingLoss(nn.Identity(), scale=scale, **options)
        assert loss.get_config_dict()["scale"] is scale
        assert loss.temperature == 1 / 11
        assert [name for name, _ in loss.named_parameters()] == ["scale"] * (make is nn.Parameter)
        return loss.compute_loss_from_embeddings(embeddings, None)

    found = results(partial(of_module, ours))
    assert_same(found, results(lambda scale: dense(embeddings, **{**options, "scale": scale})))
    if not {QUERIES, DOCUMENTS} & set(options.get("directions", ())):  # there the original's for the scale is nan
        assert_same(found, results(partial(of_module, original)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_learnable_scale_of_another_dtype(dtype: torch.dtype) -> None:
    embeddings = [column.float() for column in columns(1)]
    scale = nn.Parameter(torch.tensor([16.0], dtype=dtype))
    loss = ours.MultipleNegativesRankingLoss(nn.Identity())
    loss.scale = scale
    value = loss.compute_loss_from_embeddings(embeddings)
    value.backward()
    assert (value.dtype, scale.grad.dtype, scale.grad.shape) == (torch.float32, dtype, (1,))
    torch.testing.assert_close(value.double(), dense([c.double() for c in embeddings], scale=16.0), rtol=1e-6, atol=0)


# Options


BOTH = [ours.MultipleNegativesRankingLoss, ours.CachedMultipleNegativesRankingLoss]


def made(name: str) -> Callable[..., Any]:
    """A class of ours; the cached one needs the library."""
    if name.startswith("Cached"):
        library("sentence_transformers")
    return getattr(ours, name)


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_same_arguments(name: str, original: ModuleType) -> None:
    found, expected = (defaults(getattr(module, name).__init__) for module in (ours, original))
    assert list(found) == list(expected)
    assert expected.pop("similarity_fct").__name__ == "cos_sim"
    assert found.pop("similarity_fct") is None
    assert found == expected
    config, reference = (getattr(module, name)(new_model()).get_config_dict() for module in (ours, original))
    assert list(config.items()) == list(reference.items())
    assert json.dumps(config)
    assert getattr(ours, name)(new_model(), 8.0).temperature == 1 / 8


@pytest.mark.parametrize("name", [loss.__name__ for loss in BOTH])
def test_the_attributes_of_the_original(name: str, original: ModuleType) -> None:
    found, expected = (getattr(module, name)(new_model(), 8.0, partition_mode="joint") for module in (ours, original))
    attributes = {*vars(expected), *ours.cached.OF_LOSS, "citation", "uses_gradient_cache"} - set(vars(nn.Module()))
    for attribute in attributes:
        assert getattr(found, attribute, None) == getattr(expected, attribute, None), attribute
    assert isinstance(found, getattr(original, name))
    assert isinstance(found, getattr(ours, name))
    assert repr(found) == repr(expected)


@pytest.mark.parametrize("directions", [("query_to_doc", QUERIES, TO_QUERY, DOCUMENTS), ("query_to_doc", TO_QUERY)])
def test_the_citation_is_that_of_the_directions(directions: tuple[str, ...], original: ModuleType) -> None:
    options = {"directions": directions, **(PER if len(directions) == 2 else {})}
    found, expected = (
        module.MultipleNegativesRankingLoss(new_model(), **options).citation for module in (ours, original)
    )
    assert found == expected != original.MultipleNegativesRankingLoss(new_model()).citation


class Mine(ours.MultipleNegativesRankingLoss):
    """A user's own."""


def test_what_a_loss_says_it_is(original: ModuleType, util: ModuleType) -> None:
    name = "sentence_transformers.sentence_transformer.losses.multiple_negatives_ranking.MultipleNegativesRankingLoss"
    assert util.fullname(ours.MultipleNegativesRankingLoss(new_model())) == name
    mine = Mine(new_model())
    assert util.fullname(mine) == f"{__name__}.Mine"
    assert "oord2019" in mine.citation


@pytest.mark.parametrize("name", [*(loss.__name__ for loss in BOTH), "Mine"])
def test_copies(name: str) -> None:
    loss = (Mine if name == "Mine" else made(name))(new_model(), nn.Parameter(torch.tensor(7.0)))
    features = new_features(2)
    expected = run(loss, features)
    loss.model[0].activations.clear()  # weak references, which cannot be pickled
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(again) is type(loss)
        assert_same(run(again, features), expected, 0)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("MultipleNegativesSymmetricRankingLoss", "MultipleNegativesRankingLoss"),
        ("CachedMultipleNegativesSymmetricRankingLoss", "CachedMultipleNegativesRankingLoss"),
    ],
)
def test_the_old_names(name: str, plain: str, original: ModuleType) -> None:
    found, expected = (defaults(getattr(module, name).__init__) for module in (ours, original))
    assert (list(found), found.pop("similarity_fct")) == (list(expected), None)
    with pytest.warns(DeprecationWarning, match=f"^{name} is an old name: give {plain} directions="):
        loss = getattr(ours, name)(new_model(), 9.0)
    with pytest.warns(DeprecationWarning, match=f"{name} is deprecated"):
        reference = getattr(original, name)(new_model(), 9.0)
    assert loss.get_config_dict() == reference.get_config_dict()
    assert loss.citation == reference.citation
    assert_same(run(loss, new_features(3)), run(reference, new_features(3)))


def test_the_similarity_of_a_model(util: ModuleType) -> None:
    for similarity in (util.cos_sim, util.pytorch_cos_sim, None):
        loss = ours.MultipleNegativesRankingLoss(nn.Identity(), similarity_fct=similarity)
        assert loss.get_config_dict()["similarity_fct"] == "cos_sim"
        assert loss.similarity_fct is (similarity or util.cos_sim)
    model = library("sentence_transformers").SentenceTransformer(modules=[nn.Identity()], device="cpu")
    for name in ("cosine", "dot"):
        model.similarity_fn_name = name
        loss = ours.MultipleNegativesRankingLoss(model, similarity_fct=model.similarity)
        assert loss.get_config_dict()["similarity_fct"] == {"cosine": "cos_sim", "dot": "dot_score"}[name]
    model.similarity_fn_name = "euclidean"
    with pytest.raises(ValueError, match=r"^similarity_fct must be None.*bound method.*similarity"):
        ours.MultipleNegativesRankingLoss(model, similarity_fct=model.similarity)
    with pytest.raises(ValueError, match=r"^similarity_fct must be None, or cos_sim or dot_score.*manhattan_sim"):
        ours.MultipleNegativesRankingLoss(nn.Identity(), similarity_fct=util.manhattan_sim)


def cos_sim(x: Tensor, y: Tensor) -> Tensor:
    """Of the same name, but not of the library: it may be anything."""
    return x @ y.T


@pytest.mark.parametrize("loss", BOTH)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.0}, ValueError, "^scale must be a finite number > 0, got 0.0"),
        ({"scale": "20"}, TypeError, "^scale must be a number, got str"),
        ({"scale": torch.tensor(-1.0)}, ValueError, "^scale must be > 0, got -1.0"),
        ({"scale": torch.tensor(math.nan)}, ValueError, "^scale must be > 0, got nan"),
        ({"scale": torch.ones(2)}, ValueError, r"^scale must be a number or a floating tensor with one element"),
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
        made(loss.__name__)(new_model(), **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mini_batch_size": 0}, ValueError, "^mini_batch_size must be > 0, got 0"),
        ({"mini_batch_size": 2.0}, TypeError, "^mini_batch_size must be an integer, got 2.0"),
        ({"mini_batch_num_tokens": 0}, ValueError, "^mini_batch_num_tokens must be > 0, got 0"),
        ({"mini_batch_num_tokens": 2.5}, TypeError, "^mini_batch_num_tokens must be an integer, got 2.5"),
    ],
)
def test_wrong_options_of_the_cached(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        made("CachedMultipleNegativesRankingLoss")(new_model(), **options)


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("strength", [0.0, 0, 2.0])
@pytest.mark.parametrize("name", [loss.__name__ for loss in BOTH])
def test_a_hardness_without_strength_is_warned_of(
    name: str, strength: float, mode: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    made(name)(new_model(), hardness_mode=mode, hardness_strength=strength)
    logger = "hyperkern.integrations.sentence_transformers.ranking"
    expected = [] if mode is None or strength else [(logger, logging.WARNING)]
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
    loss = made(loss.__name__)
    assert_same(run(loss(new_model(), gather_across_devices=True), features), run(loss(new_model()), features), 0)


@pytest.mark.parametrize(
    ("embeddings", "error", "message"),
    [
        ([torch.ones(3, 2)], ValueError, "^sentence_features must have 2 or more columns.* got 1"),
        (
            [torch.ones(3, 2), torch.ones(2, 2)],
            ValueError,
            "^column 1 must have a positive for each of 3 anchors, got 2",
        ),
        ([torch.ones(3, 2), torch.ones(3, 4)], ValueError, "column 1 must have the dimension of column 0, 2, got 4"),
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
    ("options", "reason"),
    [
        ({"hardness_mode": "hard_negatives", "hardness_strength": 1.0}, "hardness_mode='hard_negatives'"),
        ({"directions": ("query_to_doc", DOCUMENTS)}, "the direction 'doc_to_doc'"),
    ],
)
def test_what_needs_columns_of_one_length(options: dict[str, Any], reason: str) -> None:
    loss = ours.MultipleNegativesRankingLoss(nn.Identity(), **options)
    embeddings = [torch.ones(3, 2), torch.ones(3, 2), torch.ones(4, 2)]
    with pytest.raises(ValueError, match=rf"^with {reason} all columns must have one row .* got \[3, 3, 4\] rows"):
        loss.compute_loss_from_embeddings(embeddings)
