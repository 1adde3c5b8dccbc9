"""The drop-ins inside the library: how a batch is encoded, its own wrappers of losses, half precision."""

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import library, relative_error
from sentence_models import (
    Encoder,
    assert_same,
    gradient,
    gradients,
    new_features,
    new_model,
    run,
    tiny_model,
    tokenized,
)
from torch import Tensor, nn

from hyperkern.integrations import sentence_transformers as ours

NAMES = ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"]
ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")


@pytest.fixture(scope="module")
def original() -> ModuleType:
    return library("sentence_transformers.sentence_transformer.losses")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library("sentence_transformers")
    return tiny_model(tmp_path_factory.mktemp("bert")).double()


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest, original: ModuleType) -> Callable[..., list[nn.Module]]:
    """The same loss of ours and of the library; the cached one cuts batches into parts of 4."""

    def make(model: nn.Module, **options: Any) -> list[nn.Module]:
        sizes = {"mini_batch_size": 4} if request.param.startswith("Cached") else {}
        return [getattr(module, request.param)(model, **{**sizes, **options}) for module in (ours, original)]

    return make


# How a batch is encoded


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("count", [2, 4])
def test_the_same_calls_and_draws(count: int, dropout: float, both: Callable) -> None:
    model, features = new_model(dropout), new_features(count)
    for options in ({}, {"directions": ALL, "hardness_mode": "all_negatives", "hardness_strength": 5.0}):
        results, shapes, after = [], [], []
        for loss in both(model, **options):
            model[0].shapes.clear()
            results.append(run(loss, features))
            shapes.append(list(model[0].shapes))
            after.append(torch.rand(3))
        assert_same(*results)
        assert shapes[0] == shapes[1]
        assert torch.equal(*after)
    assert dropout == 0 or relative_error(run(both(new_model())[0], features)[0], results[0][0]) > 1e-3


@pytest.mark.parametrize("options", [{"mini_batch_size": 1}, {"mini_batch_size": 32}, {"mini_batch_num_tokens": 9}])
def test_parts(options: dict[str, int], original: ModuleType) -> None:
    model, features = new_model(dropout=0.5), new_features(3)
    losses = [module.CachedMultipleNegativesRankingLoss(model, **options) for module in (ours, original)]
    assert_same(*(run(loss, features) for loss in losses))
    assert losses[0].get_config_dict() == losses[1].get_config_dict()


def test_padding_of_a_part_is_dropped() -> None:
    library("sentence_transformers")
    model = new_model()
    lengths = torch.tensor([1, 2, 7, 1, 3, 3])
    mask = (torch.arange(7) < lengths[:, None]).long()
    column = {"input_ids": torch.randint(0, 40, (6, 7)), "attention_mask": mask}
    run(ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2), [column, column])
    once = [(2, 2), (2, 7), (2, 3)]
    assert model[0].shapes == 4 * once  # two columns, forward and backward


def test_activations_of_one_part_at_a_time() -> None:
    library("sentence_transformers")
    model, features = new_model(dropout=0.5), new_features(2)
    encoder = model[0]
    value = ours.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)(features)
    assert encoder.alive == 0
    assert len(encoder.alive_at_call) == 2 * 4
    value.backward()
    assert len(encoder.alive_at_call) == 4 * 4
    assert max(encoder.alive_at_call) <= 1  # that of the part before, until its name is given to this one
    assert "token_embeddings" not in features[0]
    value = ours.MultipleNegativesRankingLoss(model)(features)
    assert encoder.alive == 2


def test_without_gradients_a_batch_is_encoded_once(both: Callable) -> None:
    model, features = new_model(), new_features(2)
    values = []
    for loss in both(model):
        model[0].shapes.clear()
        with torch.no_grad():
            values.append(loss(features, None))
        assert len(model[0].shapes) == (6 if hasattr(loss, "mini_batch_size") else 2)
        assert not values[-1].requires_grad
        features = new_features(2)
    torch.testing.assert_close(*values)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    library("sentence_transformers")
    run(ours.CachedMultipleNegativesRankingLoss(new_model(), mini_batch_size=3), new_features(2))
    assert "Embed" not in capsys.readouterr().err
    run(
        ours.CachedMultipleNegativesRankingLoss(new_model(), mini_batch_size=3, show_progress_bar=True), new_features(2)
    )
    assert "Embed mini-batches" in capsys.readouterr().err


class Pictures(nn.Module):
    """Adds the patches of the pictures of each sample, of which there may be any number."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.patches = Encoder(0.2), nn.Linear(3, 6)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        embeddings = self.text(features)["sentence_embedding"]
        counts = features["num_images_per_sample"]
        sizes = features.get("image_grid_thw", torch.empty(0, 3, dtype=torch.int64)).prod(1)
        if len(sizes):
            samples = torch.arange(len(counts)).repeat_interleave(counts).repeat_interleave(sizes)
            embeddings = embeddings.index_add(0, samples, self.patches(features["pixel_values"]))
        return {**features, "sentence_embedding": embeddings}


def test_pictures_whose_patches_are_not_the_samples(both: Callable) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(Pictures()).double()
    features = new_features(3)
    for column in features:
        counts = torch.tensor([1, 0, 2, 0, 0, 0, 0, 1, 3, 0])  # a part has no picture at all
        grid = torch.tensor([1, 2, 2]).repeat(int(counts.sum()), 1)
        grid[0, 1] = 3
        patches = torch.randn(int(grid.prod(1).sum()), 3, dtype=torch.float64)
        column.update(num_images_per_sample=counts, image_grid_thw=grid, pixel_values=patches)
    assert_same(*(run(loss, features) for loss in both(model)))


class Flat(nn.Module):
    """Embeddings of sequences that are in one row, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.dropout = nn.Embedding(40, 6), nn.Dropout(0.3)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        tokens = self.dropout(self.words(features["input_ids"][0]))
        lengths = features["cu_seq_lens_q"].diff()
        samples = torch.arange(len(lengths)).repeat_interleave(lengths)
        sums = tokens.new_zeros(len(lengths), 6).index_add(0, samples, tokens)
        return {**features, "sentence_embedding": sums / lengths[:, None]}


def test_sequences_in_one_row(both: Callable) -> None:
    torch.manual_seed(1)
    model, features = nn.Sequential(Flat()).double(), []
    for _ in range(3):
        ends = torch.cat([torch.zeros(1, dtype=torch.int64), torch.randint(1, 6, (10,)).cumsum(0)])
        ids = torch.randint(0, 40, (1, int(ends[-1])))
        features.append({"input_ids": ids, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 5})
    assert_same(*(run(loss, features) for loss in both(model)))


def test_features_without_tokens_to_count(original: ModuleType) -> None:
    features = [{"input_ids": torch.ones(3, 2, dtype=torch.int64)} for _ in range(2)]
    for module in (ours, original):
        loss = module.CachedMultipleNegativesRankingLoss(new_model(), mini_batch_num_tokens=4)
        with pytest.raises(ValueError, match="mini_batch_num_tokens requires"):
            loss(features, None)


def test_a_model_that_cannot_be_cut(original: ModuleType) -> None:
    tokenizers = library("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    modules = library("sentence_transformers.sentence_transformer.modules")
    static = modules.StaticEmbedding(words, embedding_dim=4)
    model = library("sentence_transformers").SentenceTransformer(modules=[static], device="cpu")
    for module in (ours, original):
        with pytest.raises(ValueError, match="StaticEmbedding"):
            module.CachedMultipleNegativesRankingLoss(model)
    features = [model.preprocess(texts) for texts in (["a b", "b"], ["b b", "a"])]
    results = [run(module.MultipleNegativesRankingLoss(model), features) for module in (ours, original)]
    assert_same(*results, tolerance=1e-6)


# The library's wrappers of losses


WRAPPERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dimensions": ("MatryoshkaLoss", {"matryoshka_dims": [16, 8, 4], "matryoshka_weights": [1, 0.5, 2]}),
    "some dimensions": ("MatryoshkaLoss", {"matryoshka_dims": [16, 8, 4], "n_dims_per_step": 2}),
    "layers": ("AdaptiveLayerLoss", {"n_layers_per_step": -1}),
    "some layers": ("AdaptiveLayerLoss", {"kl_temperature": 0}),
    "both": ("Matryoshka2dLoss", {"matryoshka_dims": [16, 8]}),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(wrapper: str, count: int, bert: Any, both: Callable, original: ModuleType) -> None:
    name, options = WRAPPERS[wrapper]
    features = tokenized(bert, count)
    outcomes = []
    for loss in both(bert):
        with _warned_of(wrapper, loss):
            wrapped = getattr(original, name)(bert, loss, **options)
        random.seed(5)
        try:
            outcomes.append(run(wrapped, features))
        except KeyError as error:  # the library's own, of layers and a cache
            outcomes.append(error.args)
        assert wrapped.get_config_dict()["loss"] in (type(loss).__name__, "MatryoshkaLoss")
    if isinstance(outcomes[1], tuple):
        assert outcomes == [("all_layer_embeddings",)] * 2
    else:
        assert_same(*outcomes)


def _warned_of(wrapper: str, loss: Any) -> Any:
    """The library warns of layers and a cache."""
    if wrapper.endswith("dimensions") or not hasattr(loss, "mini_batch_size"):
        return pytest.MonkeyPatch.context()
    return pytest.warns(UserWarning, match="AdaptiveLayerLoss is not compatible with")


def test_dimensions_without_gradients(bert: Any, both: Callable, original: ModuleType) -> None:
    features, values = tokenized(bert, 2), []
    for loss in both(bert):
        torch.manual_seed(3)
        with torch.no_grad():
            values.append(original.MatryoshkaLoss(bert, loss, [16, 8])([dict(column) for column in features], None))
    assert_same(values[:1], values[1:])


# The backward pass


@pytest.mark.parametrize("make", [nn.Parameter, torch.Tensor.requires_grad_], ids=["parameter", "tensor"])
def test_a_learnable_scale(make: Callable, original: ModuleType) -> None:
    results = []
    for module in (ours, original):
        model, scale = new_model(dropout=0.2), make(torch.tensor(9.0, dtype=torch.float64))
        loss = module.CachedMultipleNegativesRankingLoss(model, mini_batch_size=3)
        loss.scale = scale
        results.append([*run(loss, new_features(2)), gradient(scale)])
        assert ("loss.scale" in loss.state_dict()) == (make is nn.Parameter)
    assert results[0][-1] != 0
    assert_same(*results)


def test_two_batches_before_the_backward_pass(both: Callable) -> None:
    model, batches = new_model(dropout=0.3), [new_features(2), new_features(3)]
    results = []
    for loss in both(model):
        torch.manual_seed(3)
        model.zero_grad()
        values = [loss([dict(column) for column in features], None) for features in batches]
        (0.5 * values[1] + 2 * values[0]).backward()
        results.append([*(value.detach() for value in values), gradients(model)])
    assert_same(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, both: Callable) -> None:
    results = []
    for loss in both(new_model(dropout=0.3).to(dtype), scale=5.0):
        results.append(run(loss, new_features(3), factor=64.0))
    assert results[0][0].dtype == torch.float32
    assert all(part.dtype == dtype for part in results[0][1:])
    assert_same(*results, tolerance=0.03)


def test_autocast(bert: Any, both: Callable) -> None:
    features = tokenized(bert, 3)
    losses = both(bert.float())
    truth = run(losses[1], features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [run(loss, features) for loss in losses]
    bert.double()
    for found, expected, true in zip(*results, truth, strict=True):
        assert relative_error(found, true) <= 1.5 * relative_error(expected, true) < 0.2
