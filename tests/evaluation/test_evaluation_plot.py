"""The picture of an evaluation: what is drawn is what was found."""

import pytest
import torch
from matplotlib.figure import Figure

import hyperkern as hk
from hyperkern.evaluation import plot


def test_the_error_bar_is_the_interval() -> None:
    x = torch.nn.functional.normalize(torch.randn(500, 16), dim=-1)
    result = hk.evaluate(x, method="estimate", columns=256)
    axes = Figure().subplots()
    plot._draw_values(axes, result)
    ((bar,),) = (lines.get_segments() for lines in axes.collections)
    # The quantile of Student's distribution with 250 degrees of freedom is 0.5 % above that of the normal one.
    middle, half = result.uniformity, result.interval[1] - result.uniformity
    assert [at - middle for at in bar[:, 0]] == pytest.approx([-half, half], rel=0.01)
