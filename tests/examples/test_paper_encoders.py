import json
import math
import random
import socket

import numpy as np
import pytest
import scipy.stats
import torch

import hyperkern
from examples.paper.encoders import agreement, plan, report, summary
from examples.paper.encoders.figures import figures
from examples.paper.encoders.part import ENCODERS
from examples.paper.encoders.sweep import FAMILIES, RECIPES, drawn
from examples.paper.encoders.training import signals
from examples.paper.encoders.training.configuration import Configuration
from examples.paper.encoders.training.data import CLASSES, DRAWS, LABELS_PER_CLASS, draw_labelled, load
from examples.paper.encoders.training.evaluation import measure
from examples.paper.encoders.training.training import new_encoder, objective, train
from examples.paper.page import svg
from examples.paper.parts import PARTS
from examples.paper.statistics import Estimate
from hyperkern.files import as_json

ROWS = 700
BOTH = {"align": 1.0, "uniform": 1.0, "alpha": 2.0, "t": 2.0}


@pytest.fixture(scope="module")
def found():
    """The summary of all quick jobs, as the results file has it."""
    results = {job.name: job.run() for job in plan.jobs(quick=True)}
    return json.loads(as_json(summary.summarize(results)))


def test_signals_are_the_same_each_time_offline_and_leave_the_generators_alone(monkeypatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(signals, "TRAIN_SIZE", 60)
    monkeypatch.setattr(signals, "HELD_OUT_SIZE", 30)
    np.random.seed(7)
    random.seed(7)
    first = signals.load()
    drawn_after = np.random.rand(), random.random()
    np.random.seed(7)
    random.seed(7)
    assert drawn_after == (np.random.rand(), random.random())
    second = signals.load()
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)
    assert (first.train.shape, first.held_out.shape) == ((60, 1, 1, 40), (30, 1, 1, 40))
    assert first.train_labels.shape == (60,)


def test_views_of_signals_vary_by_their_limits_alone(monkeypatch) -> None:
    rows = torch.randn(6, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    one, same, other = (signals.augment(rows, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    for limit in ("STRETCH", "AMPLITUDE_CHANGE", "TILT", "NOISE"):
        monkeypatch.setattr(signals, f"MAX_{limit}", 0.0)
    shifted = signals.augment(rows, torch.Generator().manual_seed(0))
    # Around the circle: a shift keeps the mean, which linear interpolation does too.
    torch.testing.assert_close(shifted.mean(-1), rows.mean(-1))
    assert not torch.allclose(shifted, rows)
    monkeypatch.setattr(signals, "MAX_SHIFT", 0.0)
    torch.testing.assert_close(signals.augment(rows, torch.Generator().manual_seed(0)), rows)


@pytest.mark.parametrize("name", plan.DATA)
def test_draws_of_labels_are_disjoint_and_even(name: str) -> None:
    data = load(name, ROWS)
    assert data.labelled.shape == (DRAWS, CLASSES * LABELS_PER_CLASS)
    assert len(np.unique(data.labelled)) == data.labelled.size
    for labels in data.labels:
        assert np.bincount(labels).tolist() == [LABELS_PER_CLASS] * CLASSES


def test_data_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="name must be 'digits' or 'mnist1d', got 'letters'"):
        load("letters")
    with pytest.raises(ValueError, match=r"labels must have 50 rows of each class, got \[51, 49,"):
        draw_labelled(np.repeat(np.arange(10), [51, 49, *[50] * 8]))


def test_sweep_is_even_and_large_enough() -> None:
    sweep = drawn()
    assert sweep == drawn()
    assert len({one for _, one in sweep}) == len(sweep) >= 150
    for family, (count, options) in FAMILIES.items():
        of_family = [one for name, one in sweep if name == family]
        assert len(of_family) == count
        for option, values in {**options, **RECIPES}.items():
            times = [sum(getattr(one, option) == value for one in of_family) for value in values]
            assert sum(times) == count
            assert max(times) - min(times) <= 1
        absent = {"align", "uniform", "contrastive", "alpha", "t", "tau"} - options.keys()
        assert all(getattr(one, option) is None for one in of_family for option in absent)


def test_every_encoder_is_of_one_job() -> None:
    planned = [one for _, of_job in plan.named(quick=False) for one in of_job]
    assert planned == plan.encoders(quick=False)
    jobs = plan.jobs(quick=False)
    assert len({job.name for job in jobs}) == len(jobs)
    trained = [one for job in jobs if "digits" in job.name for one in job.arguments.get("encoders", [])]
    assert [Configuration(**one["configuration"]) for one in trained] == [one.configuration for one in planned]
    assert [one["seed"] for one in trained] == [one.seed for one in planned]
    # The sweep has seeds of its own, of which none comes twice.
    sweep = [one.seed for one in planned if one.group == "sweep"]
    assert len(set(sweep)) == len(sweep)
    assert not set(sweep) & {one.seed for one in planned if one.group != "sweep"}


def test_weights_of_a_ratio() -> None:
    for ratio in plan.RATIOS:
        options = plan.weighted(ratio)
        assert options["align"] / options["uniform"] == pytest.approx(ratio, rel=1e-3)
        assert options["align"] + options["uniform"] == pytest.approx(2, rel=1e-3)
    assert plan.weighted(1.0) == BOTH


def test_objective_is_the_weighted_sum_of_its_terms() -> None:
    x, y = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    every = Configuration(align=0.5, alpha=1.0, uniform=2.0, t=3.0, contrastive=4.0, tau=0.2)
    terms = {
        "align": 0.5 * hyperkern.alignment(x, y, alpha=1.0),
        "uniform": (hyperkern.uniformity(x, t=3.0) + hyperkern.uniformity(y, t=3.0)),
        "contrastive": 4 * hyperkern.clip_loss(x, y, logit_scale=5.0),
    }
    torch.testing.assert_close(objective(x, y, every), sum(terms.values()))
    for name, term in terms.items():
        alone = every._replace(**{other: None for other in terms if other != name})
        torch.testing.assert_close(objective(x, y, alone), term)
    with pytest.raises(ValueError, match="neither align, uniform nor contrastive"):
        objective(x, y, Configuration())


def test_initial_weights_are_of_the_seed_and_the_rule() -> None:
    data, state = load("mnist1d", ROWS), torch.get_rng_state()

    def weights(initial: str, seed: int) -> torch.Tensor:
        return new_encoder(data, Configuration(initial=initial), seed).layers[3].weight.detach().flatten(1)

    for initial in RECIPES["initial"]:
        assert torch.equal(weights(initial, 0), weights(initial, 0))
        assert not torch.equal(weights(initial, 0), weights(initial, 1))
    assert weights("small", 0).std().item() == pytest.approx(0.02, rel=0.1)
    orthogonal = weights("orthogonal", 0)
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(32), atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="initial must be 'default', 'small' or 'orthogonal', got 'zero'"):
        weights("zero", 0)


@pytest.mark.parametrize("name", plan.DATA)
def test_training_is_of_its_seed_and_improves_both_metrics(name: str) -> None:
    data = load(name, ROWS)
    recipe = Configuration(**BOTH, dim=16, batch=64, epochs=3)

    def trained(seed: int) -> torch.nn.Module:
        encoder = new_encoder(data, recipe, 0)
        assert list(train(encoder, data, recipe, seed)) == [1, 2, 3]
        return encoder

    first, same, other = (trained(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    before, after = measure(new_encoder(data, recipe, 0), data), measure(trained(0), data)
    assert after.alignment + after.uniformity < before.alignment + before.uniformity - 0.5


def test_learning_rate_falls_only_where_it_is_asked_to() -> None:
    data = load("digits", ROWS)
    recipe = Configuration(**BOTH, dim=4, batch=256, epochs=2)

    def steps(decay: bool) -> list[float]:
        encoder = new_encoder(data, recipe, 0)
        kept = encoder.layers[0].weight.detach().clone()
        sizes = []
        for _ in train(encoder, data, recipe, 0, decay=decay):
            now = encoder.layers[0].weight.detach().clone()
            sizes.append((now - kept).abs().mean().item())
            kept = now
        return sizes

    falling, constant = steps(decay=True), steps(decay=False)
    assert falling[1] < 0.7 * falling[0]
    assert constant[1] > falling[1]


def test_measures_agree_with_independent_formulas() -> None:
    data = load("digits", ROWS)
    found = measure(torch.nn.Flatten(), data)
    x, y = (views.flatten(1).double() for views in data.views)
    x, y = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
    assert found.alignment == pytest.approx((x - y).square().sum(1).mean().item(), rel=1e-3)
    potentials = [torch.pdist(z).square().mul(-2).exp().mean().log().item() for z in (x, y)]
    assert found.uniformity == pytest.approx(sum(potentials) / 2, rel=1e-3)
    logits = 4 * x @ y.T
    target = torch.arange(len(x))
    losses = [torch.nn.functional.cross_entropy(one, target).item() for one in (logits, logits.T)]
    assert found.contrastive == pytest.approx(sum(losses) / 2, rel=1e-3)
    # The neighbours of each draw by their definition, on both sets that they are scored on.
    train_rows, held_out = (
        torch.nn.functional.normalize(rows.flatten(1).double()) for rows in (data.train, data.held_out)
    )
    scores = []
    for draw in range(DRAWS):
        others = np.delete(np.arange(DRAWS), draw)
        unseen, labels = train_rows[data.labelled[others].ravel()], data.labels[others].ravel()
        for rows, truth in ((held_out, data.held_out_labels), (unseen, labels)):
            nearest = torch.cdist(rows, train_rows[data.labelled[draw]]).topk(5, largest=False).indices.numpy()
            votes = np.stack([(data.labels[draw][nearest] == label).sum(1) for label in range(CLASSES)], 1)
            scores.append((votes.argmax(1) == truth).mean())
    assert found.knn == pytest.approx(np.mean(scores[::2]), abs=1e-4)
    assert found.knn_validation == pytest.approx(np.mean(scores[1::2]), abs=1e-4)
    assert 0.5 < found.probe < 1


def columns(count: int = 400, weight: float = 1.0) -> agreement.Columns:
    """Accuracy falls with alignment + weight · uniformity, and some noise."""
    generator = np.random.default_rng(0)
    alignment, uniformity, noise = generator.normal(size=(3, count))
    uniformity = uniformity - 0.5 * alignment  # they are traded for each other
    return agreement.Columns(-alignment - weight * uniformity + 0.1 * noise, alignment, uniformity, alignment)


def test_agreement_agrees_with_scipy_and_regressions() -> None:
    given = columns()
    found = agreement.agreement(given, weight=2.0)

    def spearman(metric: np.ndarray) -> float:
        return scipy.stats.spearmanr(given.accuracy, -metric).statistic

    assert found["alignment"].value == pytest.approx(spearman(given.alignment))
    assert found["uniformity"].value == pytest.approx(spearman(given.uniformity))
    assert found["combination"].value == pytest.approx(spearman(given.alignment + given.uniformity))
    assert found["chosen"].value == pytest.approx(spearman(given.alignment + 2 * given.uniformity))
    assert found["gain"].value == pytest.approx(
        found["combination"].value - max(found["alignment"].value, found["uniformity"].value)
    )
    accuracy, align, uniform = (
        scipy.stats.rankdata(one) for one in (given.accuracy, -given.alignment, -given.uniformity)
    )

    def residual(target: np.ndarray, *others: np.ndarray) -> np.ndarray:
        matrix = np.stack([np.ones_like(target), *others], axis=1)
        return target - matrix @ np.linalg.lstsq(matrix, target, rcond=None)[0]

    partial = np.corrcoef(residual(accuracy, uniform), residual(align, uniform))[0, 1]
    assert found["alignment given uniformity"].value == pytest.approx(partial)
    explained = 1 - residual(accuracy, align, uniform).var() / accuracy.var()
    assert found["explained by both"].value == pytest.approx(explained)
    for one in found.values():
        assert one.low < one.value < one.high
    # A hundredth of the encoders, and intervals ten times as wide.
    few = agreement.agreement(agreement.Columns(*(one[:40] for one in given)), weight=2.0)
    assert few["alignment"].high - few["alignment"].low > 2 * (found["alignment"].high - found["alignment"].low)


def test_agreement_without_a_value_is_none() -> None:
    given = columns(30)
    same = given._replace(uniformity=given.alignment)
    found = agreement.agreement(same, weight=1.0)
    assert found["alignment given uniformity"] is None
    assert found["alignment"] is not None


def test_weight_is_the_one_that_agrees_best() -> None:
    assert agreement.best_weight(columns(weight=4.0)) == 4
    assert agreement.best_weight(columns(weight=0.25)) == 0.25


def test_halves_and_what_both_gain() -> None:
    given = columns()
    groups = agreement.best_of(given)
    assert sum(chosen.sum() for chosen in groups.values()) == len(given.accuracy)
    assert (groups["both"] | groups["alignment only"]).sum() == len(given.accuracy) // 2
    assert given.alignment[groups["alignment only"]].max() < given.alignment[groups["neither"]].min()
    third = agreement.best_of(given, parts=3)
    assert (third["both"] | third["uniformity only"]).sum() == len(given.accuracy) // 3
    gain = agreement.gain_of_both(given)
    means = {name: given.accuracy[chosen].mean() for name, chosen in groups.items()}
    assert gain.value == pytest.approx(means["both"] - max(means["alignment only"], means["uniformity only"]))
    assert gain.low > 0
    # Traded for each other one to one: nobody is good at both.
    assert agreement.gain_of_both(given._replace(uniformity=-given.alignment)) is None


def test_change_over_seeds() -> None:
    assert summary.change([[0.5, 0.9, 0.6]]) is None
    found = summary.change([[0.5, 0.9, 0.6], [0.5, 0.1, 0.7]])
    # Student's t of one degree of freedom, whose quantile is 12.706.
    assert found == pytest.approx((0.15, 0.15 - 12.706 * 0.05, 0.15 + 12.706 * 0.05), rel=1e-4)


def test_quick_run_keeps_every_encoder_and_marks_what_diverged(found) -> None:
    for data in plan.DATA:
        assert len(found["encoders"]) == len(found["measures"][data]) == len(plan.encoders(quick=True))
        diverged = [
            one for one, measures in zip(found["encoders"], found["measures"][data], strict=True) if not measures
        ]
        assert [one["rate"] for one in diverged] == [1e30]
        assert found["counts"][data]["diverged"] == 1
        assert [row["value"] for row in found["ratio"][data]] == [0.1, 1, 10]
        tracks = found["tuned"][data]
        assert len({track["probe"][0][0] for track in tracks.values()}) == 1  # the same start for each objective
        assert len({tuple(track["alignment"][0]) for track in tracks.values()}) == len(tracks)
    assert found["measures"]["digits"] != found["measures"]["mnist1d"]


def test_quick_run_has_claims_tables_and_figures(found) -> None:
    assert ENCODERS in PARTS
    claims = ENCODERS.claims(found)
    assert len(claims) == 9
    assert len({one.statement for one in claims}) == 9
    for text in ENCODERS.blocks(found).values():
        assert len({line.count("|") for line in text.splitlines()}) == 1
    drawn_figures = figures(found)
    assert drawn_figures.keys() == {"encoders-plane", "encoders-ratio", "encoders-tuning"}
    assert svg(drawn_figures["encoders-ratio"]) == svg(figures(found)["encoders-ratio"])


def verdicts(found: dict, index: int) -> str:
    return report.claims(found)[index].verdict


def with_estimates(found: dict, name: str, *estimates: Estimate) -> dict:
    """The summary with the estimate of each of the four cases replaced."""
    changed = json.loads(json.dumps(found))
    for (data, accuracy), estimate in zip(report.CASES, estimates, strict=True):
        changed["agreement"][data][accuracy]["all"][name] = list(estimate)
    return changed


STRONG, WEAK, UNCLEAR = Estimate(0.8, 0.7, 0.9), Estimate(0.3, 0.2, 0.4), Estimate(0.6, 0.4, 0.8)


@pytest.mark.parametrize(
    ("estimates", "wanted"),
    [
        ([STRONG] * 4, "holds"),
        ([STRONG] * 3 + [UNCLEAR], "undecided"),
        ([STRONG, UNCLEAR, STRONG, WEAK], "does not hold"),
    ],
    ids=["all", "one-unclear", "one-below"],
)
def test_verdict_of_agreement(found, estimates, wanted) -> None:
    assert verdicts(with_estimates(found, "combination", *estimates), 0) == wanted


def test_remarks_name_the_cases_that_they_are_of(found) -> None:
    low, high = Estimate(-0.5, -0.6, -0.4), Estimate(0.9, 0.85, 0.95)
    changed = with_estimates(found, "alignment", low, UNCLEAR, WEAK, WEAK)
    changed = with_estimates(changed, "combination", WEAK, WEAK, UNCLEAR, STRONG)
    changed = with_estimates(changed, "contrastive", WEAK, WEAK, high, UNCLEAR)
    alignment, contrastive = report.blocks(changed)["encoders remarks"].split(". ")
    assert alignment.endswith("below 0, in digits by linear probe")
    assert contrastive.endswith("intervals apart, in mnist1d by linear probe.")
    changed = with_estimates(changed, "contrastive", WEAK, WEAK, UNCLEAR, UNCLEAR)
    assert report.blocks(changed)["encoders remarks"].endswith("in no case.")


def test_verdict_of_both_metrics_asks_for_either(found) -> None:
    names = "alignment given uniformity", "uniformity given alignment"
    for signs, wanted in (((1, 1), "holds"), ((1, -1), "does not hold"), ((-1, 1), "does not hold")):
        changed = found
        for name, sign in zip(names, signs, strict=True):
            changed = with_estimates(changed, name, *[Estimate(*sorted(sign * value for value in STRONG))] * 4)
        assert verdicts(changed, 1) == wanted


def test_verdict_of_those_good_at_both(found) -> None:
    for gains, wanted in (
        ([STRONG] * 4, "holds"),
        ([STRONG] * 3 + [None], "undecided"),
        ([Estimate(-1, -2, -0.5)] * 4, "does not hold"),
    ):
        changed = json.loads(json.dumps(found))
        for (data, accuracy), gain in zip(report.CASES, gains, strict=True):
            changed["halves"][data][accuracy]["gain"] = gain
        assert verdicts(changed, 2) == wanted


def with_ratios(found: dict, accuracies: list[float], last_uniformity: float = 0.0, std: float = 0.01) -> dict:
    changed = json.loads(json.dumps(found))
    for data in plan.DATA:
        rows = []
        for ratio, accuracy in zip((0.01, 0.1, 1.0, 10.0, 100.0), accuracies, strict=True):
            row = {name: {"mean": accuracy, "std": std, "n": 3} for name in ("probe", "knn")}
            uniformity = last_uniformity if ratio == 100 else -2.0
            row |= {name: {"mean": uniformity, "std": 0.0, "n": 3} for name in ("alignment", "uniformity")}
            rows.append({"value": ratio, **row})
        changed["ratio"][data] = rows
    return changed


@pytest.mark.parametrize(
    ("accuracies", "std", "wanted"),
    [
        ([0.6, 0.8, 0.9, 0.8, 0.3], 0.01, "holds"),
        ([0.6, 0.8, 0.9, 0.8, 0.3], 0.2, "undecided"),
        ([0.89, 0.8, 0.9, 0.8, 0.3], 0.01, "undecided"),
        ([0.95, 0.8, 0.9, 0.8, 0.3], 0.01, "does not hold"),
    ],
    ids=["inside", "noisy", "no-higher-than-an-end", "an-end"],
)
def test_verdict_of_the_inverted_u(found, accuracies, std, wanted) -> None:
    assert verdicts(with_ratios(found, accuracies, std=std), 3) == wanted


def test_verdict_of_collapse(found) -> None:
    for uniformity, wanted in ((math.log(0.95), "holds"), (math.log(0.85), "does not hold")):
        assert verdicts(with_ratios(found, [0.5] * 5, uniformity), 4) == wanted


def test_verdict_of_insensitivity_looks_at_ratios_below_four(found) -> None:
    assert verdicts(with_ratios(found, [0.1, 0.1, 0.88, 0.9, 0.1]), 5) == "holds"
    assert verdicts(with_ratios(found, [0.1, 0.1, 0.82, 0.9, 0.1]), 5) == "does not hold"


def with_tracks(found: dict, tuned: str, **ends: float) -> dict:
    """The summary with tracks of four seeds that move from 0 to an end."""
    changed = json.loads(json.dumps(found))
    for data in plan.DATA:
        for name, end in ends.items():
            changed["tuned"][data][tuned][name] = [[0.0, end + 0.001 * seed] for seed in range(4)]
    return changed


def test_verdict_of_one_property_alone(found) -> None:
    good = with_tracks(found, "align", alignment=-0.5, uniformity=1.0, probe=-0.1, knn=-0.1)
    good = with_tracks(good, "uniform", alignment=0.5, uniformity=-1.0, probe=-0.1, knn=-0.1)
    assert verdicts(good, 6) == "holds"
    for tuned, name in (
        ("align", "uniformity"),
        ("align", "probe"),
        ("uniform", "alignment"),
        ("uniform", "knn"),
    ):
        end = -good["tuned"]["digits"][tuned][name][0][1]
        assert verdicts(with_tracks(good, tuned, **{name: end}), 6) == "does not hold"
        assert verdicts(with_tracks(good, tuned, **{name: -0.0015}), 6) == "undecided"


def test_verdict_of_both_properties(found) -> None:
    for end, wanted in ((0.1, "holds"), (-0.1, "does not hold"), (-0.0015, "undecided")):
        assert verdicts(with_tracks(found, "both", probe=end, knn=0.1), 7) == wanted


def test_verdict_of_direct_optimisation_is_of_what_validation_chose(found) -> None:
    changed = json.loads(json.dumps(found))
    for data, accuracy in report.CASES:
        families = {"align_uniform": 0.90, "contrastive": 0.905}
        changed["best"][data][accuracy] = {
            family: {"value": 1.0, "mean": mean, "std": 0.01, "n": 3} for family, mean in families.items()
        }
    assert verdicts(changed, 8) == "holds"  # lower by less than a standard deviation
    changed["best"]["mnist1d"]["knn"]["align_uniform"]["mean"] = 0.85
    assert verdicts(changed, 8) == "does not hold"


def test_best_of_a_family_is_chosen_without_held_out_rows() -> None:
    def row(value: float, validation: float, held_out: float) -> dict:
        return {
            "value": value,
            "probe_validation": {"mean": validation},
            "probe": {"mean": held_out, "std": 0.0, "n": 3},
        }

    rows = {"digits": [row(1.0, 0.9, 0.5), row(2.0, 0.8, 0.99)]}
    best = summary._best({"ratio": rows, "temperature": rows}, "digits", "probe")
    assert {family: (one["value"], one["mean"]) for family, one in best.items()} == {
        "align_uniform": (1.0, 0.5),
        "contrastive": (1.0, 0.5),
    }
