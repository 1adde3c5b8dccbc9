"""The uniformity of the uniform distribution, against other closed forms and against samples."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import hyp0f1, ive

import hyperkern as hk
from hyperkern.metrics import uniformity_limit


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 128, 768, 100_000])
@pytest.mark.parametrize("t", [1e-6, 0.1, 1, 2.0, 5.5, 20.0])
def test_matches_scipy(dim: int, t: float) -> None:
    expected = -2 * t + math.log(hyp0f1(dim / 2, t * t))
    assert uniformity_limit(dim, t) == pytest.approx(expected, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("t", [1e-3, 0.5, 2.0, 30.0, 1e3, 1e5])
def test_closed_forms_of_one_two_and_three_dimensions(t: float) -> None:
    # Two points; the circle, by a Bessel function; the sphere, where the coordinate is uniform (Archimedes).
    assert uniformity_limit(1, t) == pytest.approx(math.log1p(math.exp(-4 * t)) - math.log(2), rel=1e-8, abs=1e-14)
    assert uniformity_limit(2, t) == pytest.approx(math.log(ive(0, 2 * t)), rel=1e-8)
    assert uniformity_limit(3, t) == pytest.approx(math.log(-math.expm1(-4 * t) / (4 * t)), rel=1e-8)


@pytest.mark.parametrize("dim", [2, 5, 16])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_samples_scatter_around_it(dim: int, t: float) -> None:
    draws = [hk.uniformity(torch.randn(1000, dim, dtype=torch.float64), t=t).item() for _ in range(8)]
    assert np.mean(draws) == pytest.approx(uniformity_limit(dim, t), abs=0.02)


@pytest.mark.parametrize("dim", [1, 2, 50, 4096])
def test_range_and_order(dim: int) -> None:
    values = [uniformity_limit(dim, t) for t in (1e-9, 0.1, 1.0, 2.0, 10.0, 200.0)]
    assert all(-4 * t <= v < 0 for t, v in zip((1e-9, 0.1, 1.0, 2.0, 10.0, 200.0), values, strict=True))
    # In few dimensions it runs into a limit, where the last digits decide.
    assert all(after <= before + 1e-10 for before, after in pairwise(values))
    assert uniformity_limit(dim) == uniformity_limit(dim, 2.0)
    assert uniformity_limit(dim + 1, 2.0) < uniformity_limit(dim, 2.0)


def test_many_dimensions_approach_the_normal_limit() -> None:
    assert uniformity_limit(10**9, 2.0) == pytest.approx(-4.0, abs=1e-7)
