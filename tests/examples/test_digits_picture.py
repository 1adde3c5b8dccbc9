import numpy as np
import pytest

from examples.digits.picture import von_mises_density


def test_density_integrates_to_one_and_wraps_around() -> None:
    grid = np.linspace(-np.pi, np.pi, 2001)
    density = von_mises_density(np.array([np.pi, np.pi, -np.pi, 1.0]), grid)
    assert 2 * np.pi * density[:-1].mean() == pytest.approx(1)
    assert density[0] == pytest.approx(density[-1])
    assert density.argmax() in (0, 2000)


def test_density_of_even_angles_is_that_of_the_uniform_distribution() -> None:
    angles = np.linspace(-np.pi, np.pi, 400, endpoint=False)
    np.testing.assert_allclose(von_mises_density(angles, np.linspace(-3, 3, 50)), 1 / (2 * np.pi), rtol=1e-6)
