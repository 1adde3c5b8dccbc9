"""The reservoir of the uniformity metric: a uniform sample of all that was seen, and what its value may be off by."""

import oracle
import pytest
import torch
from parity import library
from ranks import Ranks
from torch import Tensor

library("torchmetrics")

from hyperkern.integrations.torchmetrics import Uniformity  # noqa: E402
from hyperkern.integrations.torchmetrics.sampling import draw_keys, sampling_error, smallest  # noqa: E402

DIM = 5


def features(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbered(start: int, stop: int) -> Tensor:
    """Rows that tell who they are."""
    return torch.arange(start, stop, dtype=torch.float64)[:, None].expand(-1, DIM) + 1


def kept(metric: Uniformity) -> list[int]:
    """The numbers of the rows that a metric looks at."""
    metric.compute()
    (rows,) = metric.rows
    return [int(row) - 1 for row in rows[:, 0]]


def filled(seed: int, parts: list[int], size: int = 16, *, forward: bool = False) -> Uniformity:
    metric, start = Uniformity(reservoir=size, seed=seed), 0
    for part in parts:
        (metric.forward if forward else metric.update)(numbered(start, start + part))
        start += part
    return metric


# --- which rows


@pytest.mark.parametrize("forward", [False, True])
def test_every_row_is_as_likely_and_every_pair(forward: bool) -> None:
    trials, parts, size = 150, [7, 20, 1, 12, 8], 16
    rows = sum(parts)
    counts, pairs = torch.zeros(rows), torch.zeros(rows, rows)
    for seed in range(trials):
        sample = kept(filled(seed, parts, size, forward=forward))
        assert len(set(sample)) == size
        assert sorted(sample) == sorted(set(sample))
        indicator = torch.zeros(rows)
        indicator[sample] = 1
        counts += indicator
        pairs += torch.outer(indicator, indicator)
    # Four or five standard deviations of a binomial count.
    for found, chance in ((counts, size / rows), (pairs[~torch.eye(rows, dtype=bool)], _of_pair(size, rows))):
        assert (found - trials * chance).abs().max() < 5 * (trials * chance * (1 - chance)) ** 0.5


def _of_pair(size: int, rows: int) -> float:
    return size * (size - 1) / (rows * (rows - 1))


def test_the_seed_decides() -> None:
    parts = [30, 30, 30]
    assert kept(filled(0, parts)) == kept(filled(0, parts))
    assert kept(filled(0, parts)) == kept(filled(0, [90]))
    assert kept(filled(0, parts)) != kept(filled(1, parts))


@pytest.mark.parametrize("forward", [False, True])
def test_rows_keep_their_order_and_few_are_kept(forward: bool) -> None:
    metric = filled(0, [30] * 20, 32, forward=forward)
    assert sum(map(len, metric.rows)) == 32
    assert kept(metric) == sorted(kept(metric))
    assert int(metric.seen) == 600


def test_draws_go_on_after_a_reset() -> None:
    metric = filled(0, [60])
    before = kept(metric)
    metric.reset()
    metric.update(numbered(0, 60))
    assert kept(metric) != before


def test_merged_metrics_are_a_sample_of_what_both_saw() -> None:
    trials, size, first, second = 150, 16, 20, 60
    counts = torch.zeros(first + second)
    for seed in range(trials):
        metric, other = Uniformity(reservoir=size, seed=2 * seed), Uniformity(reservoir=size, seed=2 * seed + 1)
        metric.update(numbered(0, first))
        other.update(numbered(first, first + second))
        metric.merge_state(other)
        counts[kept(metric)] += 1
        assert int(metric.seen) == first + second
    chance = size / (first + second)
    assert (counts - trials * chance).abs().max() < 5 * (trials * chance * (1 - chance)) ** 0.5
    share = counts[:first].sum() / (trials * size)
    assert share.item() == pytest.approx(first / (first + second), abs=0.03)


def test_merged_metrics_of_one_seed_are_refused() -> None:
    metric, other = filled(3, [40]), filled(3, [40])
    metric.merge_state(other)
    with pytest.raises(ValueError, match="seed must differ between metrics that are merged, got 3 twice"):
        metric.compute()


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("before", [[], [10]])
def test_a_restored_metric_draws_anew(before: list[int], forward: bool) -> None:
    metric, restored = filled(0, [40]), filled(0, before)
    metric.persistent(True)
    restored.load_state_dict(metric.state_dict())
    (restored.forward if forward else restored.update)(numbered(40, 80))
    assert len(set(kept(restored))) == 16


# --- across processes


def merged(rank: int, counts: tuple[int, ...], size: int, seeds: range) -> list[list[int]]:
    found = []
    start, stop = sum(counts[:rank]), sum(counts[: rank + 1])
    for seed in seeds:
        metric = Uniformity(reservoir=size, seed=seed, standard_error=True)
        if start < stop:
            metric.update(numbered(start, stop))
        metric.sync()
        found.append(kept_of_synced(metric))
        metric.unsync()
        assert sum(map(len, metric.rows)) == min(size, stop - start)
    return found


def kept_of_synced(metric: Uniformity) -> list[int]:
    rows = torch.cat([part for part in metric.rows if part.numel()])
    keys = torch.cat([part for part in metric.keys if part.numel()])
    rows, _ = smallest(rows, keys, metric.reservoir)
    return [int(row) - 1 for row in rows[:, 0]]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_processes_count_by_what_they_have_seen(ranks: Ranks) -> None:
    trials, size, counts = 30, 16, (90, 30)
    first, second = ranks(2).run(merged, counts, size, range(trials))
    assert first == second
    drawn = torch.zeros(sum(counts))
    for sample in first:
        assert len(set(sample)) == size
        drawn[sample] += 1
    chance = size / sum(counts)
    assert (drawn - trials * chance).abs().max() < 5 * (trials * chance * (1 - chance)) ** 0.5
    assert drawn[:90].sum().item() / (trials * size) == pytest.approx(0.75, abs=0.07)


# --- the standard error


def jackknife(x: Tensor, **options: float) -> Tensor:
    """The standard error by leaving out each row in turn."""
    k = len(x)
    value = oracle.uniformity(x, **options).exp()
    without = torch.stack([oracle.uniformity(torch.cat([x[:i], x[i + 1 :]]), **options).exp() for i in range(k)])
    return ((k - 1) / k * (without - without.mean()).square().sum()).sqrt() / value


@pytest.mark.parametrize("options", [{}, {"t": 20.0}, {"normalize": False}, {"normalize": False, "t": 8.0}], ids=str)
def test_the_error_is_the_jackknife_s(options: dict[str, float]) -> None:
    x = features(40)
    x[3] = 0
    x[7] = x[8]
    if not options.get("normalize", True):
        x += 30
    full = {"t": 2.0, "normalize": True, **options}
    truth = jackknife(x, **options)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3 if full["normalize"] else 1e-2)):
        found = sampling_error(x.to(dtype), torch.tensor(10**15), **full)
        torch.testing.assert_close(found, truth, rtol=tolerance, atol=0)
    # Less of it where the sample is a part of what there is, nothing where it is all.
    found = sampling_error(x, torch.tensor(160), **full)
    torch.testing.assert_close(found, truth * 0.75**0.5, rtol=1e-6, atol=0)
    assert sampling_error(x, torch.tensor(40), **full) == 0


def test_the_error_of_collapsed_features_is_none() -> None:
    assert sampling_error(torch.ones(20, DIM), torch.tensor(1000), t=2.0, normalize=True) < 1e-6


def of_kind(kind: str, rows: int) -> Tensor:
    x = features(rows, 1)
    if kind == "clusters":
        return 0.4 * x + 2 * features(4, 2)[torch.arange(rows) % 4]
    return x + (0.7 if kind == "cone" else 0.0)


# Of 200 intervals 190 should cover; uniform features have no first-order part and an error that is too large.
@pytest.mark.parametrize(("kind", "least", "most"), [("clusters", 180, 199), ("cone", 180, 199), ("uniform", 190, 200)])
def test_intervals_cover_the_value_of_all_rows(kind: str, least: int, most: int) -> None:
    trials, rows, size = 200, 400, 48
    x = of_kind(kind, rows)
    truth, covered, errors, deviations = oracle.uniformity(x), 0, [], []
    for seed in range(trials):
        sample, _ = smallest(x, draw_keys(rows, torch.Generator().manual_seed(seed), x.device), size)
        error = sampling_error(sample, torch.tensor(rows), t=2.0, normalize=True).item()
        deviation = (oracle.uniformity(sample) - truth).item()
        covered += abs(deviation) <= 1.96 * error
        errors.append(error)
        deviations.append(deviation)
    assert least <= covered <= most
    spread, error = torch.tensor(deviations).std(), torch.tensor(errors).mean()
    assert 0.9 * spread < error < 1.6 * spread
    assert abs(sum(deviations) / trials) < 0.25 * spread
