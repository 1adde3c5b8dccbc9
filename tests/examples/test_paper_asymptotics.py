"""The paper's theory in the reproduction: the exact expectations, and the claims that are made of results."""

import copy
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F

from examples.paper.asymptotics import counterexample, entropy, expectation, fit, flow, self_pairs, single, sphere
from examples.paper.asymptotics.part import ASYMPTOTICS
from examples.paper.asymptotics.rates import digits
from examples.paper.page import PAGE
from hyperkern import uniformity
from hyperkern.metrics import uniformity_limit
from tools.blocks import filled


@pytest.fixture(scope="module")
def summary():
    """What the quick jobs find, as the results file has it."""
    results = {job.name: job.run() for job in ASYMPTOTICS.jobs(True)}
    return json.loads(json.dumps(ASYMPTOTICS.summarize(results)))


def small_distribution():
    """A few anchors, values of a negative and their probabilities."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    weights = torch.softmax(torch.rand(5, generator=generator, dtype=torch.float64), 0)
    return logits.exp(), weights, 3 * torch.rand(4, generator=generator, dtype=torch.float64).exp()


@pytest.mark.parametrize("doublings", [0, 1, 2])
def test_expectation_is_that_of_all_tuples_of_negatives(doublings):
    kernel, weights, positives = small_distribution()
    count, truth = 2**doublings, torch.zeros(4, dtype=torch.float64)
    for tuple_ in itertools.product(range(5), repeat=count):
        values = list(tuple_)
        share = weights[values].prod()
        truth += share * ((positives + kernel[:, values].sum(1)) / count / (kernel @ weights)).log()
    found = expectation.expected_deviations(kernel, weights, positives, [doublings])[:, 0]
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def test_expectation_has_its_first_order_for_many_negatives():
    kernel, weights, positives = small_distribution()
    found = expectation.expected_deviations(kernel, weights, positives, [20])[:, 0]
    first, _ = expectation.coefficients(kernel, weights, positives)
    torch.testing.assert_close(found * 2**20, first, rtol=1e-4, atol=0)


def test_expectation_of_one_certain_value_is_finite():
    """Weights whose sum is rounded above 1: the transform would be negative."""
    weights = torch.full((10,), math.nextafter(0.1, 1), dtype=torch.float64)
    ones = torch.ones(1, 10, dtype=torch.float64)
    assert weights.sum() > 1
    found = expectation.expected_deviations(ones, weights, torch.ones(1, dtype=torch.float64), [0, 5])
    torch.testing.assert_close(
        found, torch.tensor([[math.log(2), math.log1p(1 / 32)]], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_variance_of_a_draw():
    kernel, weights, positives = small_distribution()
    _, variance = expectation.coefficients(kernel, weights, positives)
    mean = (kernel * weights).sum(1)
    torch.testing.assert_close(variance, (kernel.square() * weights).sum(1) / mean.square() - 1)


def test_slope_is_the_exponent():
    counts = [1.0, 4.0, 16.0]
    assert fit.slope([-3.0, -1.5, -0.75], counts) == pytest.approx(-0.5)


def test_exponent_refuses_what_has_no_logarithm():
    with pytest.raises(FloatingPointError, match=r"finite and not zero, got \[1.0, 0.0\]"):
        fit.exponent(torch.tensor([[1.0, 0.0]]).numpy(), [1, 2], fit.mean)


@pytest.mark.parametrize("dim", [2, 3, 16])
def test_quadrature_of_the_uniform_distribution_is_the_limit(dim):
    nodes, weights = sphere.inner_products(dim)
    assert weights.sum().item() == pytest.approx(1, abs=1e-13)
    assert ((2 * 3.0 * (nodes - 1)).exp() @ weights).log().item() == pytest.approx(
        uniformity_limit(dim, 3.0), abs=1e-12
    )


def test_descent_from_collapse_reaches_the_optimum():
    """On the circle four points are a square, and the mean over their pairs is known."""
    after, curve = flow.descend(flow.start("collapsed", 4, 2, 0), lambda x: uniformity(x, t=1.0), 200)
    best = math.log((2 * math.exp(-2) + math.exp(-4)) / 3)
    assert curve[0] > -1e-4
    assert uniformity(after, t=1.0).item() == pytest.approx(best, abs=1e-6)


def test_moments_are_one_for_independent_points():
    generator = torch.Generator().manual_seed(0)
    found = [flow.moments(sphere.uniform_rows(50, 4, generator)) for _ in range(400)]
    assert torch.tensor(found).mean(0).tolist() == pytest.approx([1, 1], abs=0.1)


def test_second_term_and_uniformity_of_points_that_see_the_same():
    square = single.polygon(4)
    assert flow.second_term(square, 2.0).item() == pytest.approx(uniformity(square, square, t=2.0).item(), abs=1e-12)


def test_one_negative_is_the_loss_of_the_definition():
    generator = torch.Generator().manual_seed(0)
    x, y = F.normalize(torch.randn(2, 3, 4, generator=generator, dtype=torch.float64), dim=-1)
    anchors, positives = torch.cat([x, y]), torch.cat([y, x])
    truth = torch.stack(
        [
            -torch.log_softmax(torch.stack([a @ p, a @ n]) / 0.3, 0)[0]
            for a, p in zip(anchors, positives, strict=True)
            for n in anchors
        ]
    ).mean()
    torch.testing.assert_close(single.loss(anchors, 0.3), truth)
    torch.testing.assert_close(single.loss(torch.cat([x, x]), 0.3), single.aligned_loss(x, 0.3))


def test_theorem_2_fails_on_the_circle():
    """By plain sums: a regular pentagon of aligned features has less than the uniform distribution."""
    angles = 2 * math.pi * torch.arange(10_000, dtype=torch.float64) / 10_000
    uniform = F.softplus((angles.cos() - 1) / 0.5).mean()
    pentagon = F.softplus((angles[::2000].cos() - 1) / 0.5).mean()
    assert uniform.item() == pytest.approx(single.of_uniform(2, 0.5), abs=1e-12)
    assert pentagon.item() == pytest.approx(single.aligned_loss(single.polygon(5), 0.5).item(), abs=1e-12)
    assert pentagon < uniform - 5e-4


def test_derivative_of_the_kernel_is_not_completely_monotone():
    """What the proof of Theorem 2 needs: derivatives of log(1 + e^-u) whose signs alternate."""
    u = torch.tensor([0.1, 4.0], dtype=torch.float64, requires_grad=True)
    value, signs = F.softplus(-u), []
    for _ in range(4):
        (value,) = torch.autograd.grad(value.sum(), u, create_graph=True)
        signs.append(value.sign().tolist())
    assert signs == [[-1, -1], [1, 1], [-1, -1], [-1, 1]]


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_spectrum_is_by_orthogonal_polynomials(dim, monkeypatch):
    """A kernel of degree 1 has no other degree; of the Gaussian potential every coefficient is positive."""
    monkeypatch.setattr(single.F, "softplus", lambda logits: logits)
    assert single.spectrum(dim, 0.5) == pytest.approx([1 / (0.5 * dim)] + [0] * (single.DEGREES - 1), abs=1e-12)
    monkeypatch.setattr(single.F, "softplus", torch.exp)
    assert min(single.spectrum(dim, 0.5)) > 0


def test_atoms_have_mean_zero_but_for_the_point():
    for name, points in counterexample.atoms(5).items():
        assert counterexample.mean_inner_product(points).item() == pytest.approx(
            float(name == "one point"), abs=1e-12
        ), name


def test_mean_distances_tell_what_squared_ones_do_not(summary):
    """Of the sphere in three dimensions 4/3; two antipodal points have 1 and a great circle 4/π."""
    rows = counterexample.exact(3)["rows"]
    assert rows["uniform"]["distance"] == pytest.approx(4 / 3, abs=1e-5)
    assert rows["two antipodal points"]["distance"] == pytest.approx(1)
    assert rows["simplex"]["distance"] == pytest.approx(3 / 4 * math.sqrt(8 / 3))
    assert rows["a great circle"]["distance"] == pytest.approx(4 / math.pi, abs=1e-4)
    said = "**Of the distance itself, which the paper's words name, this is not so**"
    assert said in ASYMPTOTICS.claims(summary)[6].result
    equal = changed(summary, ("distributions", "*", "rows", "*", "distance"), lambda value: 1.0)
    assert said not in ASYMPTOTICS.claims(equal)[6].result


def test_self_pairs():
    x = sphere.uniform_rows(7, 3, torch.Generator().manual_seed(0))
    assert self_pairs.without_self(uniformity(x, x), 7).item() == pytest.approx(uniformity(x).item(), abs=1e-12)
    assert self_pairs.row_gaps(x, 2.0).abs().max() < 1e-12


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_kernel_density_is_a_density(dim):
    """The normaliser on the circle, by the trapezoidal rule; elsewhere by SciPy's density."""
    x, _ = entropy.sample(dim, 5.0, 20, 0)
    assert entropy.identity_gap(x, 10.0) < 1e-12
    if dim == 2:
        grid = single.polygon(400)
        density = (10 * grid @ x.T).exp().mean(1) / math.exp(entropy.log_normaliser(2, 10.0))
        assert density.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-12)


def test_entropy_of_the_uniform_distribution():
    x, truth = entropy.sample(3, 0.0, 2000, 0)
    assert truth == pytest.approx(math.log(4 * math.pi))
    assert -entropy.log_density(x, 2.0).mean().item() == pytest.approx(truth, abs=0.01)


def test_digits_depend_on_the_seed_alone():
    arguments = {"trained": False, "epochs": 1, "images": 4, "temperatures": [0.5], "doublings": 6, "draws": 2}
    state = torch.get_rng_state()
    first, again, other = digits(seed=0, **arguments), digits(seed=0, **arguments), digits(seed=1, **arguments)
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())


def test_rates_of_the_quick_jobs(summary):
    """8 doublings are enough for the exponents to be told apart."""
    for found in summary["rate"].values():
        for cell in found["temperatures"]:
            assert cell["exponent"]["value"] == pytest.approx(-1, abs=0.05)
            assert cell["coefficient"] == pytest.approx(cell["predicted_coefficient"], rel=0.03)


def test_names_and_order(summary):
    """The page has a place for every block and a picture for every figure, and nothing else of this part."""
    page = PAGE.read_text(encoding="utf-8")
    made = ASYMPTOTICS.blocks(summary)
    assert all(f"<!-- {name} -->" in page for name in made)
    assert page.count("<!-- asymptotics ") == len(made)
    figures = ASYMPTOTICS.figures(summary)
    assert all(f"images/paper/{stem}.svg" in page for stem in figures)
    assert page.count("images/paper/asymptotics-") == len(figures)
    assert filled(page, made) != page
    assert all("nan" not in block and "|  |  |  |  |" not in block for block in made.values())


def verdicts(summary):
    return [claim.verdict for claim in ASYMPTOTICS.claims(summary)]


def changed(summary, path, change):
    """The summary with every number at the path changed; "*" is every key or item."""
    made = copy.deepcopy(summary)

    def walk(node, rest):
        keys = (list(node) if isinstance(node, dict) else range(len(node))) if rest[0] == "*" else [rest[0]]
        for key in keys:
            if len(rest) > 1:
                walk(node[key], rest[1:])
            else:
                node[key] = change(node[key])

    walk(made, path)
    return made


CELLS = ("rate", "*", "temperatures", "*")
RUNS = ("flow", "*", "runs", "*")
FAULTS = {
    "limit": (0, (*CELLS, "deviations", -1), lambda value: 0.02),
    "bound": (1, (*CELLS, "exponent", "high"), lambda value: -0.4),
    "draw": (2, (*CELLS, "anchor_exponent", "value"), lambda value: -1.0),
    "second term": (3, (*RUNS, "second_term"), lambda value: value - 1),
    "minimiser": (4, (*RUNS, "with_self"), lambda value: value - 1),
    "other distribution": (4, ("distributions", "*", "rows", "cross-polytope", "uniformity"), lambda value: -9.0),
    "convergence": (5, (*RUNS, "with_self"), lambda value: 0.0),
    "zero mean": (6, ("distributions", "*", "rows", "simplex", "inner_product"), lambda value: 0.1),
    "entropy": (8, ("entropy", "*", "rows", "*", "largest_gap"), lambda value: 1e-3),
    "order": (8, ("entropy", "*", "rows", -1, "estimates"), lambda value: [9.0]),
    "relation": (9, ("self-pairs", "*", "rows", "*", "largest_gap"), lambda value: 1e-9),
    "bias": (9, ("self-pairs", "*", "rows", "*", "distinct_bias"), lambda value: 5.0),
}


def good(summary):
    """The quick results, with what so little cannot show set right."""
    made = changed(summary, (*CELLS, "deviations", -1), lambda value: 1e-4)
    return changed(made, (*CELLS, "anchor_exponent", "value"), lambda value: -0.5)


def test_verdicts(summary):
    """All that is right holds, but for Theorem 2, whose counterexample is found by the quick jobs too."""
    assert verdicts(good(summary)) == ["holds"] * 7 + ["does not hold"] + ["holds"] * 2


@pytest.mark.parametrize("fault", FAULTS)
def test_a_verdict_follows_the_results(summary, fault):
    index, path, change = FAULTS[fault]
    assert verdicts(changed(good(summary), path, change))[index] == "does not hold"


def test_theorem_2_would_hold_without_a_counterexample(summary):
    made = changed(summary, ("single", "*", "polygons", "*"), lambda value: 1.0)
    made = changed(made, ("single", "*", "runs", "*", "aligned_value"), lambda value: 1.0)
    assert verdicts(made)[7] == "holds"
    made = changed(made, ("single", "*", "alternatives", "aligned, at one point"), lambda value: 0.1)
    assert verdicts(made)[7] == "does not hold"


def test_the_bound_is_called_tight_only_where_it_is(summary):
    assert "not tight" in ASYMPTOTICS.claims(summary)[1].result
    made = changed(summary, (*CELLS, "exponent", "value"), lambda value: -0.5)
    assert "not tight" not in ASYMPTOTICS.claims(made)[1].result
