"""The metrics against the dense truth, and what TorchMetrics asks of a metric."""

import copy
import doctest
import math
import pickle
from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from parity import library
from torch import Tensor

torchmetrics = library("torchmetrics")

from hyperkern.integrations import torchmetrics as module  # noqa: E402, it imports the library
from hyperkern.integrations.torchmetrics import Alignment, NormStatistics, Uniformity, UniformityLimit  # noqa: E402
from hyperkern.metrics import uniformity_limit  # noqa: E402

DIM = 6
SIZES = (5, 1, 0, 8, 3)  # of batches
ALL = [
    Alignment,
    Uniformity,
    lambda: Uniformity(reservoir=16, standard_error=True),
    lambda: Uniformity(pairs="batch"),
    UniformityLimit,
    NormStatistics,
]
every_metric = pytest.mark.parametrize("make", ALL, ids=["alignment", "exact", "reservoir", "batch", "limit", "norm"])


def features(seed: int = 0, rows: int = sum(SIZES), dtype: torch.dtype = torch.float64) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, DIM, generator=draw, dtype=torch.float64).to(dtype) + 0.3


def views(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = features(dtype=dtype)
    return x, x + 0.5 * features(1, dtype=dtype)


def batches(x: Tensor) -> list[Tensor]:
    return list(x.split(SIZES))


def updated(metric: Any, x: Tensor, y: Tensor | None = None) -> Any:
    for own, partner in zip(batches(x), batches(x if y is None else y), strict=True):
        metric.update(own, partner) if isinstance(metric, Alignment) else metric.update(own)
    return metric


def numbers(value: Tensor | dict[str, Tensor]) -> list[float]:
    return [v.item() for v in (value.values() if isinstance(value, dict) else [value])]


def assert_near(actual: Any, truth: Any, tolerance: float = 1e-6) -> None:
    assert numbers(actual) == pytest.approx(numbers(truth), rel=tolerance, abs=tolerance, nan_ok=True)


def pooled(x: Tensor, **options: Any) -> Tensor:
    """Over the pairs within batches."""
    parts = [part for part in batches(x) if len(part) > 1]
    pairs = torch.tensor([len(part) * (len(part) - 1) / 2 for part in parts], dtype=x.dtype)
    logs = torch.stack([oracle.uniformity(part, **options) for part in parts])
    return (logs + pairs.log()).logsumexp(0) - pairs.sum().log()


# --- values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
class TestValues:
    def test_alignment(self, normalize: bool, dtype: torch.dtype) -> None:
        x, y = views(dtype)
        for alpha in (2, 1.0, 3.5):
            truth = oracle.alignment(x.double(), y.double(), alpha=alpha, normalize=normalize)
            assert_near(updated(Alignment(alpha, normalize), x, y).compute(), truth)

    @pytest.mark.parametrize("t", [0.5, 2, 40.0])
    def test_uniformity(self, t: float, normalize: bool, dtype: torch.dtype) -> None:
        x = features(dtype=dtype)
        truth = oracle.uniformity(x.double(), t=t, normalize=normalize)
        for options in ({}, {"reservoir": 17}, {"reservoir": 1000, "standard_error": True}):
            found = updated(Uniformity(t, normalize, **options), x).compute()
            if "standard_error" in options:
                assert found["uniformity_error"] == 0
                found = found["uniformity"]
            assert_near(found, truth, 1e-6 * max(1, t))
        # What comes in half precision is multiplied in it, as in the loss.
        lost = 0 if x.itemsize > 2 else 0.02 * t
        found = updated(Uniformity(t, normalize, "batch"), x).compute()
        assert found.item() == pytest.approx(pooled(x.double(), t=t, normalize=normalize).item(), abs=1e-6 * t + lost)

    def test_norms(self, normalize: bool, dtype: torch.dtype) -> None:
        norms = torch.linalg.vector_norm(features(dtype=dtype).double(), dim=1)
        truth = {"mean": norms.mean(), "min": norms.min(), "max": norms.max(), "std": norms.std(correction=0)}
        found = updated(NormStatistics(), features(dtype=dtype)).compute()
        assert list(found) == [f"norm_{name}" for name in truth]
        assert_near(found, truth)


def test_limit() -> None:
    metric = UniformityLimit(3)
    metric.update(features())
    assert metric.compute().item() == pytest.approx(uniformity_limit(DIM, 3))


def test_float64_on_request() -> None:
    x, y = views()
    for metric, truth in (
        (Alignment(), oracle.alignment(x, y)),
        (Uniformity(), oracle.uniformity(x)),
        (Uniformity(reservoir=100), oracle.uniformity(x)),
        (Uniformity(pairs="batch"), pooled(x)),
    ):
        value = updated(metric.set_dtype(torch.float64), x, y).compute()
        assert value.dtype == torch.float64
        assert_near(value, truth, 1e-12)


def whole(metric: Any, x: Tensor) -> Any:
    metric.update(x)
    return metric


# --- what the library asks of a metric


def batch_value(make: Callable[[], Any], x: Tensor, y: Tensor) -> Any:
    metric = make()
    metric.update(x, y) if isinstance(metric, Alignment) else metric.update(x)
    return metric.compute()


def call(metric: Any, x: Tensor, y: Tensor) -> Any:
    return metric(x, y) if isinstance(metric, Alignment) else metric(x)


@every_metric
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
class TestConventions:
    def test_forward_gives_the_batch_and_adds_it(self, make: Callable[[], Any]) -> None:
        metric, (x, y) = make(), views()
        for own, partner in zip(batches(x), batches(y), strict=True):
            assert_near(call(metric, own, partner), batch_value(make, own, partner))
        whole_value = updated(make(), x, y).compute()
        # More rows than the reservoir has: whose turn it was is the same.
        assert_near(metric.compute(), whole_value)

    def test_reset(self, make: Callable[[], Any]) -> None:
        metric, (x, y) = make(), views()
        updated(metric, y, x).compute()
        metric.reset()
        assert not metric.update_called
        assert_near(metric.compute(), make().compute())
        assert_near(call(metric, x[:7], y[:7]), batch_value(make, x[:7], y[:7]))
        assert_near(metric.compute(), batch_value(make, x[:7], y[:7]))

    def test_copies_go_on_alike(self, make: Callable[[], Any]) -> None:
        metric, (x, y) = updated(make(), *views()), views()
        copies = [pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone()]
        truth = updated(metric, 2 * y, -x).compute()
        for other in copies:
            assert_near(updated(other, 2 * y, -x).compute(), truth, 0)

    def test_state_dict(self, make: Callable[[], Any]) -> None:
        metric, restored = updated(make(), *views()), make()
        assert not metric.state_dict()
        metric.persistent(True)
        state = copy.deepcopy(metric.state_dict())
        restored.load_state_dict(state)
        restored._update_count = 1
        assert_near(restored.compute(), metric.compute(), 0)
        # What comes next is drawn apart from what was restored.
        assert all(math.isfinite(v) for v in numbers(updated(restored, *views()).compute()))

    def test_half_precision_does_not_reach_the_states(self, make: Callable[[], Any]) -> None:
        x, y = views(torch.float32)
        truth = updated(make(), x, y).compute()
        for convert in (
            lambda metric: metric.half(),
            lambda metric: metric.set_dtype(torch.half),
            lambda metric: torch.nn.ModuleList([metric]).to(torch.bfloat16)[0],
        ):
            before, within = convert(make()), make()
            assert_near(updated(before, x, y).compute(), truth)
            for index, (own, partner) in enumerate(zip(batches(x), batches(y), strict=True)):
                within = convert(within) if index == 2 else within
                call(within, own, partner)
            assert_near(within.compute(), truth)

    def test_half_inputs(self, make: Callable[[], Any]) -> None:
        x, y = views(torch.bfloat16)
        values = updated(make(), x, y).compute()
        assert_near(values, updated(make(), x.float(), y.float()).compute(), 0.05)
        for value in values.values() if isinstance(values, dict) else [values]:
            assert value.dtype == torch.float32

    def test_merge_state(self, make: Callable[[], Any]) -> None:
        (x, y), metric = views(), make()
        if getattr(metric, "reservoir", None):
            other, metric = Uniformity(reservoir=40, seed=1), Uniformity(reservoir=40)
        else:
            other = make()
        for part, (start, stop) in ((metric, (0, 9)), (other, (9, 17))):
            call(part, x[start:stop], y[start:stop])
        metric.merge_state(other)
        truth = updated(make(), x, y).compute() if not isinstance(metric, Uniformity) else None
        if truth is not None:
            assert_near(metric.compute(), truth)
        elif metric.pairs == "all":
            assert_near(metric.compute(), oracle.uniformity(x))

    def test_plot(self, make: Callable[[], Any]) -> None:
        matplotlib = library("matplotlib")
        matplotlib.use("Agg")
        from matplotlib import pyplot

        x, y = views()
        metric = updated(make(), x, y)
        figure, axis = metric.plot()
        assert figure is not None
        assert len(axis.lines) >= len(numbers(metric.compute()))
        _, axis = pyplot.subplots()
        values = [call(metric, x[:4], y[:4]), call(metric, x[4:], y[4:])]
        figure, drawn = metric.plot(values, axis)
        assert figure is None
        assert drawn is axis
        assert any(len(line.get_xdata()) == 2 for line in axis.lines)
        pyplot.close("all")

    def test_differentiable_as_it_says(self, make: Callable[[], Any]) -> None:
        metric, (x, y) = make(), views()
        x.requires_grad_()
        value = call(metric, x, y)
        value = next(iter(value.values())) if isinstance(value, dict) else value
        assert metric.is_differentiable is value.requires_grad
        for state in metric.metric_state.values():
            assert not any(part.requires_grad for part in (state if isinstance(state, list) else [state]))

    def test_nothing_seen(self, make: Callable[[], Any]) -> None:
        metric = make()
        with pytest.warns(UserWarning, match="was called before the ``update`` method"):
            values = numbers(metric.compute())
        assert all(map(math.isnan, values))
        metric = make()
        call(metric, torch.ones(0, DIM), torch.ones(0, DIM))
        if not isinstance(metric, UniformityLimit):
            assert all(map(math.isnan, numbers(metric.compute())))

    def test_inputs_that_are_none(self, make: Callable[[], Any]) -> None:
        for wrong, error, message in (
            ([[1.0]], TypeError, "x must be a torch.Tensor"),
            (torch.ones(3, DIM, dtype=torch.int64), TypeError, "x must be float64, float32"),
            (torch.ones(3), ValueError, r"x must have shape \(N, D\), got \(3,\)"),
            (torch.ones(2, 3, DIM), ValueError, r"x must have shape \(N, D\), got \(2, 3, 6\)"),
        ):
            with pytest.raises(error, match=message):
                call(make(), wrong, wrong)

    def test_options_stay(self, make: Callable[[], Any]) -> None:
        metric = make()
        for name in metric._options:
            with pytest.raises(AttributeError, match=f"is made with its {name}"):
                setattr(metric, name, getattr(metric, name))

    def test_states_on_the_cpu(self, make: Callable[[], Any]) -> None:
        metric = make()
        metric.compute_on_cpu = True
        assert_near(updated(metric, *views()).compute(), updated(make(), *views()).compute())


def test_class_attributes() -> None:
    for metric in (Alignment(), Uniformity()):
        assert metric.higher_is_better is False
        assert metric.full_state_update is False
    assert (Alignment.is_differentiable, Uniformity.is_differentiable) == (True, False)
    assert Alignment.plot_lower_bound == 0
    assert (Uniformity(3).plot_lower_bound, Uniformity.plot_upper_bound) == (-12, 0)
    assert Uniformity(normalize=False).plot_lower_bound is None


def test_alignment_of_a_batch_has_a_gradient() -> None:
    x, y = views()
    metric = Alignment().set_dtype(torch.float64)
    metric.update(y, x)
    assert torch.autograd.gradcheck(lambda x, y: metric(x, y), [v[:3].clone().requires_grad_() for v in (x, y)])


def test_counts_beyond_half_precision() -> None:
    metrics = [metric.set_dtype(torch.half) for metric in (Alignment(), NormStatistics(), Uniformity(pairs="batch"))]
    x, y = (view.repeat(50, 1).half() for view in views())
    for _ in range(80):
        for metric in metrics:
            call(metric, x, y)
    assert int(metrics[0].count) == 80 * len(x) > 65504
    for metric in metrics:
        assert_near(metric.compute(), batch_value(lambda metric=metric: metric.clone(), x, y), 1e-4)


def test_a_view_is_not_kept_alive_nor_followed() -> None:
    x = features()
    metric = whole(Uniformity().set_dtype(torch.float64), x)
    x.zero_()
    assert_near(metric.compute(), oracle.uniformity(features()))


def test_pairs_of_an_unbounded_range() -> None:
    x = 100 * features()
    assert_near(updated(Uniformity(1.0, False, "batch"), x).compute(), pooled(x, t=1.0, normalize=False))


def test_a_width_that_changes() -> None:
    metric = whole(Uniformity(), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(N, 3\) like the rows seen before, got \(2, 4\)"):
        metric.update(torch.ones(2, 4))
    metric(torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"x must have rows of one width in all batches and processes, got \[3, 4\]"):
        metric.compute()


def test_partners_that_do_not_fit() -> None:
    x = torch.ones(3, 2)
    for y, error, message in (
        (x[:2], ValueError, "y must have the shape of x"),
        (x.double(), TypeError, "y must have the dtype of x"),
        (None, TypeError, "y must be a torch.Tensor"),
    ):
        with pytest.raises(error, match=message):
            Alignment().update(x, y)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alignment(alpha=0), "alpha must be a finite number > 0, got 0"),
        (lambda: Uniformity(t=-1), "t must be a finite number > 0, got -1"),
        (lambda: UniformityLimit(t=0), "t must be a finite number > 0, got 0"),
        (lambda: Uniformity(pairs="some"), "pairs must be one of 'all', 'batch', got 'some'"),
        (lambda: Uniformity(reservoir=15), "reservoir must be at least 16, got 15"),
        (lambda: Uniformity(seed=-1), "seed must be at least 0, got -1"),
        (lambda: Uniformity(pairs="batch", reservoir=20), "reservoir is for pairs='all'.*got reservoir=20"),
        (lambda: Uniformity(pairs="batch", standard_error=True), "standard_error is for pairs='all'"),
        (lambda: Uniformity(unknown=1), "Unexpected keyword arguments: `unknown`"),
    ],
)
def test_options_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- collections


def test_a_collection_is_updated_by_keywords() -> None:
    x, y = views()
    metrics = torchmetrics.MetricCollection(
        [Alignment(), Uniformity(reservoir=64, standard_error=True), UniformityLimit(), NormStatistics()], prefix="val/"
    )
    for own, partner in zip(batches(x), batches(y), strict=True):
        metrics.update(x=own, y=partner)
    found = metrics.compute()
    names = ["Alignment", "uniformity", "uniformity_error", "UniformityLimit"]
    assert set(found) == {f"val/{name}" for name in [*names, "norm_mean", "norm_min", "norm_max", "norm_std"]}
    assert_near(found["val/Alignment"], oracle.alignment(x, y))
    assert_near(found["val/uniformity"], oracle.uniformity(x))


def test_metrics_share_states_only_where_that_is_right() -> None:
    # The first batch has collapsed: all sums are equal, whatever the options.
    first, (x, y) = torch.ones(4, DIM), views(torch.float32)
    made = {
        "a1": Alignment(1),
        "a2": Alignment(2),
        "raw": Alignment(2, False),
        "t1": Uniformity(1.0, pairs="batch"),
        "t4": Uniformity(4.0, pairs="batch"),
        "all1": Uniformity(1.0),
        "all4": Uniformity(4.0),
        "few": Uniformity(reservoir=16),
        "many": Uniformity(reservoir=64),
    }
    alone = {name: metric.clone() for name, metric in made.items()}
    collection = torchmetrics.MetricCollection(made)
    for own, partner in ((first, first), (x, y), (y, x)):
        collection.update(x=own, y=partner)
        for metric in alone.values():
            call(metric, own, partner)
    assert ["all1", "all4"] in [sorted(group) for group in collection.compute_groups.values()]
    assert len(collection.compute_groups) == len(made) - 1
    for name, value in collection.compute().items():
        assert_near(value, alone[name].compute())


# --- the text


def test_the_examples() -> None:
    # The classes are of other files of the package.
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    found = [runner.run(test) for name in module.__all__ for test in finder.find(getattr(module, name), name)]
    assert sum(result.attempted for result in found) > 10
    assert sum(result.failed for result in found) == 0


@pytest.mark.parametrize(
    ("option", "ours", "theirs"),
    [
        ("alpha", Alignment(alpha=2), Alignment(alpha=1)),
        ("t", Uniformity(t=2), Uniformity(t=3)),
        ("reservoir", Uniformity(reservoir=16, seed=1), Uniformity(reservoir=32, seed=2)),
        ("pairs", Uniformity(pairs="batch"), Uniformity()),
    ],
)
def test_metrics_of_other_options_are_not_merged(option: str, ours: Any, theirs: Any) -> None:
    for metric in (ours, theirs):
        metric.update(*[features()] * (2 if option == "alpha" else 1))
    with pytest.raises(ValueError, match=f"^merged metrics must have the same {option}, got "):
        ours.merge_state(theirs)
