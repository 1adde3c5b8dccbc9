"""The estimate: what it promises of its interval, and how much better than a plain sample it is."""

import math

import pytest
import torch
from scipy import stats

import hyperkern as hk
from hyperkern.evaluation.estimate import columns_design, controlled_mean, student_quantile

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are not of unit length", "ignore:.*rows are zero")

ROWS, DIM, COLUMNS, DRAWS = 1200, 32, 64, 200


def uniform() -> torch.Tensor:
    return torch.randn(ROWS, DIM)


def clusters(count: int, spread: float, power: float) -> torch.Tensor:
    """Clusters whose sizes fall with a power of their rank."""
    which = torch.multinomial(torch.arange(1.0, count + 1) ** -power, ROWS, True)
    centers = torch.nn.functional.normalize(torch.randn(count, DIM))
    return centers[which] + spread * torch.nn.functional.normalize(torch.randn(ROWS, DIM))


def with_duplicates() -> torch.Tensor:
    x = uniform()
    x[:12] = x[0]
    return x


FEATURES = {
    "uniform": uniform,
    "unequal clusters": lambda: clusters(20, 0.5, 1.0),
    "equal clusters": lambda: clusters(10, 0.5, 0.0),
    "a few duplicates": with_duplicates,
    "narrow cone": lambda: uniform() * torch.arange(1, DIM + 1) ** -0.5 + 0.3,
}


def plain_variance(x: torch.Tensor, t: float = 2.0) -> float:
    """Relative variance of the mean of columns drawn uniformly, without replacement."""
    unit = torch.nn.functional.normalize(x.double())
    means = (torch.exp(2 * t * (unit @ unit.T - 1)).sum(1) - 1) / (len(x) - 1)
    return (means.var() / means.mean() ** 2 * (1 - COLUMNS / len(x)) / COLUMNS).item()


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_interval_covers_at_its_rate_and_the_variance_is_small(features) -> None:
    x = features()
    exact = hk.evaluate(x.double()).uniformity
    results = [hk.evaluate(x, method="estimate", columns=COLUMNS, seed=seed) for seed in range(DRAWS)]
    covered = sum(low <= exact <= high for low, high in (result.interval for result in results))
    # Three standard deviations of a binomial count; a leave-one-out error may be a little too large.
    assert stats.binom.ppf(0.001, DRAWS, 0.95) <= covered
    assert covered <= stats.binom.ppf(0.9995, DRAWS, 0.97)
    errors = torch.tensor([result.uniformity - exact for result in results], dtype=torch.float64)
    scatter = errors.std().item()
    assert abs(errors.mean().item()) < 4 * scatter / DRAWS**0.5 + 0.1 * scatter
    claimed = math.sqrt(sum(result.standard_error**2 for result in results) / DRAWS)
    assert claimed == pytest.approx(scatter, rel=0.2)
    assert plain_variance(x) > 5 * scatter**2


def test_a_plain_sample_would_not_know_of_duplicates() -> None:
    # What the choice of columns is for: the interval of a uniform sample covers in a third of the draws.
    x = torch.nn.functional.normalize(with_duplicates().double())
    means = (torch.exp(4 * (x @ x.T - 1)).sum(1) - 1) / (ROWS - 1)
    moments = torch.stack([(x @ x.sum(0) - 1), ((x @ (x.T @ x)) * x).sum(1) - 1], 1) / (ROWS - 1)
    covered = 0
    for seed in range(DRAWS):
        drawn = torch.randperm(ROWS, generator=torch.Generator().manual_seed(seed))[:COLUMNS]
        mean = controlled_mean(means[drawn], moments[drawn] - moments.mean(0))
        covered += abs(mean.value - means.mean().item()) <= student_quantile(0.975, 60) * mean.standard_error
    assert covered < 0.6 * DRAWS


@pytest.mark.parametrize("weighted", [False, True])
def test_weights_zero_rows_and_two_sides(weighted: bool) -> None:
    x = clusters(10, 0.5, 0.5).double()
    x[:40] = 0
    y = x + 0.2 * torch.randn_like(x)
    weights = torch.rand(ROWS).double() ** 2 if weighted else None
    if weights is not None:
        weights[100:150] = 0
    exact = hk.evaluate(x, y, weights=weights)
    options = {"method": "estimate", "columns": COLUMNS, "weights": weights, "block_rows": 500}
    results = [hk.evaluate(x, y, seed=seed, **options) for seed in range(100)]
    covered = sum(low <= exact.uniformity <= high for low, high in (result.interval for result in results))
    assert stats.binom.ppf(0.001, 100, 0.95) <= covered
    assert results[0].alignment == pytest.approx(exact.alignment, rel=1e-14)
    first = results[0]
    assert first.uniformity == sum(side.uniformity for side in first.sides) / 2
    assert first.standard_error == pytest.approx(math.hypot(*(side.standard_error for side in first.sides)) / 2)


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_other_confidence(confidence: float) -> None:
    x = uniform()
    exact = hk.evaluate(x.double()).uniformity
    options = {"method": "estimate", "columns": COLUMNS, "confidence": confidence}
    intervals = [hk.evaluate(x, seed=seed, **options).interval for seed in range(150)]
    covered = sum(low <= exact <= high for low, high in intervals)
    assert stats.binom.ppf(0.001, 150, confidence) <= covered
    assert covered <= stats.binom.ppf(0.9999, 150, min(1.0, confidence + 0.02))


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("t", [1e-3, 0.5, 2.0, 30.0])
def test_few_dimensions(dim: int, t: float) -> None:
    # Some moments are constant there.
    x = torch.randn(500, dim, dtype=torch.float64)
    exact = hk.evaluate(x, t=t).uniformity
    result = hk.evaluate(x, t=t, method="estimate", columns=100)
    assert abs(result.uniformity - exact) < 5 * result.standard_error + 1e-12


@pytest.mark.parametrize("rows", [torch.ones(60, 5), torch.zeros(60, 5), torch.eye(60)], ids=["same", "zero", "apart"])
def test_nothing_to_estimate(rows: torch.Tensor) -> None:
    exact = hk.evaluate(rows).uniformity
    result = hk.evaluate(rows, method="estimate", columns=20)
    assert result.uniformity == pytest.approx(exact, abs=1e-6)
    assert result.standard_error < 1e-6


def test_one_weight_dominates() -> None:
    x = torch.randn(200, 6, dtype=torch.float64)
    weights = torch.full((200,), 1e-18, dtype=torch.float64)
    weights[3] = 1.0
    exact = hk.evaluate(x, weights=weights).uniformity
    result = hk.evaluate(x, weights=weights, method="estimate", columns=100)
    assert abs(result.uniformity - exact) < 5 * result.standard_error


def test_same_seed_same_result_another_seed_another() -> None:
    x = uniform()
    a, b, c = (hk.evaluate(x, method="estimate", columns=20, seed=seed) for seed in (3, 3, 4))
    assert a.uniformity == b.uniformity
    assert a.interval == b.interval
    assert a.uniformity != c.uniformity


def test_block_size_does_not_matter() -> None:
    x = uniform().double()
    options = {"method": "estimate", "columns": 50}
    a, b = (hk.evaluate(x, block_rows=rows, **options) for rows in (7, 1200))
    assert a.uniformity == pytest.approx(b.uniformity, rel=1e-12)
    assert a.standard_error == pytest.approx(b.standard_error, rel=1e-8)


def test_as_many_columns_as_rows_is_exact() -> None:
    x = torch.randn(50, 4)
    result = hk.evaluate(x, method="estimate", columns=50)
    assert result.method == "exact"
    assert result.uniformity == hk.evaluate(x).uniformity


def test_too_noisy_an_estimate_is_said_to_be() -> None:
    with pytest.warns(UserWarning, match="too large for its interval to be trusted"):
        hk.evaluate(uniform(), t=40.0, method="estimate", columns=20)


def test_design_draws_what_stands_out() -> None:
    table = torch.cat([torch.full((100, 1), 99.0), torch.randn(100, 3)], 1).double()
    table[7, 2] = 1e4
    design = columns_design(torch.ones(100).double(), table)
    probability = design.base / design.ratio
    assert probability.sum().item() == pytest.approx(1, rel=1e-12)
    assert probability.min() >= 0.5 / 100
    assert probability[7] > 0.1
    features = design.features
    assert torch.allclose(design.base @ features, torch.zeros(3).double(), atol=1e-10)
    assert torch.allclose(features.T @ (design.base[:, None] * features), torch.eye(3).double(), atol=1e-8)


def test_controlled_mean_is_least_squares() -> None:
    controls = torch.randn(40, 3).double()
    draws = 5 + controls @ torch.tensor([1.0, -2.0, 0.5]).double() + 0.1 * torch.randn(40).double()
    design = torch.cat([torch.ones(40, 1).double(), controls, torch.zeros(40, 1).double()], 1)[:, :4]
    solution = torch.linalg.lstsq(design, draws).solution
    inverse = torch.linalg.inv(design.T @ design)
    hat = (design @ inverse * design).sum(1)
    scores = design * ((draws - design @ solution) / (1 - hat)).unsqueeze(1)
    covariance = inverse @ (scores.T @ scores) @ inverse
    mean = controlled_mean(draws, torch.cat([controls, torch.zeros(40, 1).double()], 1))
    assert mean.value == pytest.approx(solution[0].item(), rel=1e-12)
    assert mean.standard_error == pytest.approx(covariance[0, 0].sqrt().item(), rel=1e-10)
    assert mean.degrees == 36


def test_controls_that_hide_the_mean_are_left_out() -> None:
    draws = torch.randn(20).double()
    mean = controlled_mean(draws, torch.full((20, 1), 0.3).double())
    assert mean.value == pytest.approx(draws.mean().item(), rel=1e-14)
    assert mean.standard_error == pytest.approx(draws.std().item() / 20**0.5, rel=1e-14)


@pytest.mark.parametrize("degrees", [11, 27.5, 123, 1e4])
@pytest.mark.parametrize("probability", [0.75, 0.9, 0.975, 0.995])
def test_student_quantile(degrees: float, probability: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=2e-4)
