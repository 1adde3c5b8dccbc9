"""Distances, reducers, regularizers and temperatures of the drop-in for PyTorch Metric Learning."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from parity import assert_parity, library, value_and_grads
from torch import Tensor, nn

from hyperkern.integrations import pytorch_metric_learning as ours

NAMES = ["NTXentLoss", "SupConLoss"]
REDUCERS = {"NTXentLoss": "MeanReducer", "SupConLoss": "AvgNonZeroReducer"}
LABELS = torch.arange(14) % 5


@pytest.fixture(scope="module")
def original():
    return library("pytorch_metric_learning.losses")


@pytest.fixture(params=["dense", "blocks"])
def _route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "blocks":
        monkeypatch.setattr(ours.sides, "DENSE", -1)


def of(module: str, name: str, **options: Any) -> Any:
    return getattr(library(f"pytorch_metric_learning.{module}"), name)(**options)


def features(n: int = 14, d: int = 6) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64) + 0.3


def named(x: Tensor) -> tuple[Tensor, ...]:
    return of("miners", "MultiSimilarityMiner")(x, LABELS)


def compared(original: Any, name: str, options: Callable[[], dict[str, Any]], largest_logit: float = 20.0) -> None:
    """With all pairs and with some, with objects of each loss's own."""
    pair = [getattr(m, name)(0.3, **options()) for m in (ours, original)]
    assert_parity(*(lambda x, loss=loss: loss(x, LABELS) for loss in pair), features(), largest_logit=largest_logit)
    x = features()
    some = named(x)
    assert_parity(*(lambda x, loss=loss: loss(x, LABELS, some) for loss in pair), x, largest_logit=largest_logit)
    pair[0].embedding_regularizer = None
    assert pair[0](x, torch.arange(14)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_spelt_out(original, name: str) -> None:
    def options() -> dict[str, Any]:
        return {
            "distance": of("distances", "CosineSimilarity"),
            "reducer": of("reducers", REDUCERS[name]),
            "embedding_regularizer": None,
            "embedding_reg_weight": 3,
            "collect_stats": True,
        }

    compared(original, name, options, largest_logit=10)
    loss = getattr(ours, name)(**options())
    assert loss(features(), LABELS) > 0
    assert loss.collect_stats is True
    assert loss.reset_stats() is None


DISTANCES = {
    "CosineSimilarity": {},
    "DotProductSimilarity": {},
    "DotProductSimilarity of rows as they are": {"normalize_embeddings": False},
    "DotProductSimilarity of rows as they are, p": {"normalize_embeddings": False, "p": 1},
}


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", NAMES)
def test_distances(original, name: str, distance: str) -> None:
    compared(original, name, lambda: {"distance": of("distances", distance.split()[0], **DISTANCES[distance])})


@pytest.mark.parametrize("name", NAMES)
def test_distances_that_are_refused(name: str) -> None:
    loss = getattr(ours, name)()
    for made in ("LpDistance", "SNRDistance"):
        distance = of("distances", made)
        with pytest.raises(NotImplementedError, match=rf"^distance={made}\(\) is not supported here"):
            getattr(ours, name)(distance=distance)
        with pytest.raises(NotImplementedError, match=rf"^distance={made}\(\) is not supported here"):
            loss.distance = distance
    for options in ({"p": 1}, {"power": 2}):
        ((option, value),) = options.items()
        with pytest.raises(NotImplementedError, match=rf"^distance=Cosine.* with {option}={value} is not supported"):
            getattr(ours, name)(distance=of("distances", "CosineSimilarity", **options))
        loss.distance = of("distances", "CosineSimilarity")
        setattr(loss.distance, option, value)
        with pytest.raises(NotImplementedError, match=rf"^distance=Cosine.* with {option}={value} is not supported"):
            loss(features(), LABELS)


class Mine:
    """A reducer of the user's own."""

    def __new__(cls) -> nn.Module:
        def element_reduction(self, losses: Tensor, indices: Tensor, embeddings: Tensor, labels: Tensor) -> Tensor:
            return losses.square().sum() + embeddings.sum()

        methods = {"element_reduction": element_reduction, "pos_pair_reduction": element_reduction}
        return type("Mine", (library("pytorch_metric_learning.reducers").BaseReducer,), methods)()


MAKERS: dict[str, Callable[[], Any]] = {
    "mean": lambda: of("reducers", "MeanReducer"),
    "sum": lambda: of("reducers", "SumReducer"),
    "non-zero": lambda: of("reducers", "AvgNonZeroReducer"),
    "threshold": lambda: of("reducers", "ThresholdReducer", low=1.2, high=3.0),
    "classes": lambda: of("reducers", "ClassWeightedReducer", weights=torch.arange(5) + 0.5),
    "anchors": lambda: of("reducers", "PerAnchorReducer", reducer=of("reducers", "AvgNonZeroReducer")),
    "several": lambda: of("reducers", "MultipleReducers", reducers={"loss": of("reducers", "SumReducer")}),
    "one's own": Mine,
}


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("reducer", MAKERS)
@pytest.mark.parametrize("name", NAMES)
def test_reducers(original, name: str, reducer: str) -> None:
    compared(original, name, lambda: {"reducer": MAKERS[reducer]()}, largest_logit=10)


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("name", NAMES)
def test_a_reducer_that_does_nothing(original, name: str) -> None:
    x, found = features(), []
    for m in (ours, original):
        loss = getattr(m, name)(reducer=of("reducers", "DoNothingReducer"))
        assert loss(x, torch.arange(14)) == {
            "loss": {"losses": 0, "indices": None, "reduction_type": "already_reduced"}
        }
        (terms,) = loss(x, LABELS).values()
        whose = terms["indices"] if isinstance(terms["indices"], tuple) else (terms["indices"],)
        order = sum(14**i * index for i, index in enumerate(reversed(whose))).argsort()
        found.append([terms["reduction_type"], *(index[order] for index in whose), terms["losses"][order]])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs) if isinstance(mine, Tensor) else None
        assert isinstance(mine, Tensor) or mine == theirs


@pytest.mark.parametrize("name", NAMES)
def test_statistics(original, name: str) -> None:
    x, other, found = features(), features(9), []
    for m in (ours, original):
        distance = of("distances", "CosineSimilarity", collect_stats=True)
        loss = getattr(m, name)(distance=distance, reducer=of("reducers", REDUCERS[name], collect_stats=True))
        loss(x, LABELS, None, other, LABELS[:9])
        norms = [getattr(loss.distance, s) for s in loss.distance._record_these_stats]
        found.append([loss.reducer.losses_size, *norms])
        assert loss._record_these == ["temperature"]
    assert found[0] == found[1]
    assert found[0][0] > 1
    assert found[0][1] != 0


@pytest.mark.parametrize("reducer", [None, "mean", "several", "sum"])
@pytest.mark.parametrize("name", NAMES)
def test_regularizers(original, name: str, reducer: str | None) -> None:
    def options() -> dict[str, Any]:
        made = None if reducer is None else MAKERS[reducer]()
        return {
            "reducer": made,
            "embedding_regularizer": of("regularizers", "LpRegularizer"),
            "embedding_reg_weight": 0.7,
        }

    compared(original, name, options, largest_logit=10)
    pair = [getattr(m, name)(**options()) for m in (ours, original)]
    x = features()
    torch.testing.assert_close(*(loss(x[:3], torch.arange(3)) for loss in pair))
    if reducer is None:
        for loss in pair:
            loss.reducer = of("reducers", "DoNothingReducer")
        mine, theirs = (loss(x, LABELS)["embedding_reg_loss"] for loss in pair)
        assert mine == theirs


@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_read_and_set(name: str) -> None:
    library("pytorch_metric_learning.losses")  # whose objects are read
    x = features()
    loss, plain = getattr(ours, name)(), getattr(ours, name)()
    assert (type(loss.distance).__name__, type(loss.reducer).__name__) == ("CosineSimilarity", REDUCERS[name])
    assert loss.distance is loss.distance
    assert loss(x, LABELS) == plain(x, LABELS)
    loss.distance = of("distances", "DotProductSimilarity", normalize_embeddings=False)
    assert loss(x, LABELS) != plain(x, LABELS)
    loss.distance = None
    assert loss(x, LABELS) == plain(x, LABELS)
    loss.set_reducer(of("reducers", "SumReducer"))
    assert loss(x, LABELS) != plain(x, LABELS)
    shared = of("reducers", "DoNothingReducer")
    loss.set_reducer(shared)
    assert loss.reducer is shared
    loss.reducer = None
    assert loss(x, LABELS) == plain(x, LABELS)
    assert list(loss.parameters()) == []


def test_a_default_that_is_read_where_the_library_is_not() -> None:
    program = (
        "import sys; sys.modules['pytorch_metric_learning'] = None\n"
        "from hyperkern.integrations.pytorch_metric_learning import NTXentLoss\n"
        "try: NTXentLoss().distance\n"
        "except AttributeError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.startswith(
        "NTXentLoss.distance is the original's CosineSimilarity, which needs pip install pytorch-m"
    )


@pytest.mark.usefixtures("_route")
@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("name", NAMES)
def test_a_temperature_that_is_learned(original, name: str, shape: tuple[int, ...]) -> None:
    temperature = torch.full(shape, 0.3, dtype=torch.float64)

    def of_both(m: Any, *others: Tensor, some: Any = None) -> Callable[..., Tensor]:
        return lambda t, x, *y: getattr(m, name)(t)(x, LABELS, some, *y, *others)

    assert_parity(*(of_both(m) for m in (ours, original)), temperature, features())
    assert_parity(*(of_both(m, LABELS[:9]) for m in (ours, original)), temperature, features(), features(9))
    some = named(features())
    assert_parity(*(of_both(m, some=some) for m in (ours, original)), temperature, features())
    loss = getattr(ours, name)(nn.Parameter(temperature))
    assert [key for key, _ in loss.named_parameters()] == ["temperature"]
    x = features()
    assert loss(x, LABELS) == getattr(ours, name)(temperature)(x, LABELS)


@pytest.mark.parametrize("name", NAMES)
def test_it_passes_for_the_original(original, name: str) -> None:
    loss = getattr(ours, name)(nn.Parameter(torch.tensor(0.3)), reducer=MAKERS["sum"]())
    assert isinstance(loss, getattr(original, name))
    assert isinstance(loss, getattr(ours, name))
    with pytest.raises(TypeError, match=f"^the class of a {name} cannot be changed"):
        loss.__class__ = nn.Module
    x = features().float()
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), copy.copy(loss)):
        assert type(again) is getattr(ours, name)
        assert again(x, LABELS) == loss(x, LABELS)
    assert copy.deepcopy(loss).temperature is not loss.temperature


@pytest.mark.parametrize("name", NAMES)
def test_a_subclass_is_shown_by_its_name(original, name: str) -> None:
    mine = type("Mine", (getattr(ours, name),), {})()
    assert isinstance(mine, getattr(original, name))
    assert repr(mine) == "Mine()"


@pytest.mark.parametrize("name", NAMES)
def test_wrappers(original, name: str) -> None:
    x, miner = features(), of("miners", "MultiSimilarityMiner")
    found = []
    for m in (ours, original):
        losses = [getattr(m, name)(), getattr(m, name)(0.4)]
        wrapped = original.MultipleLosses(losses, miners=[miner, None], weights=[2, 0.5])
        found.append(value_and_grads(lambda x, wrapped=wrapped: wrapped(x, LABELS), x))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
