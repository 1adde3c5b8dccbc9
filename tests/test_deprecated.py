"""Names that an argument had work for one minor version more, and say so."""

import warnings

import pytest
import torch

import hyperkern as hk

X, Y = torch.randn(2, 6, 4)
WEIGHTS = torch.rand(6), torch.rand(6)

OLD = {
    "scale of pairwise_logsumexp is now called logit_scale": (
        lambda: hk.pairwise_logsumexp(X, Y, scale=3.0)[0],
        lambda: hk.pairwise_logsumexp(X, Y, logit_scale=3.0)[0],
    ),
    "weights of dcl is now called x_weights and y_weights": (
        lambda: hk.dcl(X, Y, weights=WEIGHTS),
        lambda: hk.dcl(X, Y, x_weights=WEIGHTS[0], y_weights=WEIGHTS[1]),
    ),
    "weights of dcl is": (
        lambda: hk.DCLLoss()(X, Y, weights=WEIGHTS),
        lambda: hk.DCLLoss()(X, Y, x_weights=WEIGHTS[0], y_weights=WEIGHTS[1]),
    ),
}


@pytest.mark.parametrize("message", OLD)
def test_an_old_name_works_and_warns(message: str) -> None:
    old, new = OLD[message]
    with pytest.warns(DeprecationWarning, match=f"^{message}") as caught:
        found = old()
    assert caught[0].filename == __file__  # the line of the caller is named, of a module too
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(found, new())


def test_old_names_are_checked_as_well() -> None:
    with (
        pytest.warns(DeprecationWarning, match="weights of dcl"),
        pytest.raises(ValueError, match="weights must be two tensors, for the anchors in x and in y, got Tensor"),
    ):
        hk.dcl(X, Y, weights=WEIGHTS[0])
    with pytest.raises(TypeError, match=r"^dcl\(\) got x_weights and y_weights and weights, the old name"):
        hk.dcl(X, Y, weights=WEIGHTS, y_weights=WEIGHTS[1])
    with pytest.raises(TypeError, match=r"^pairwise_logsumexp\(\) got logit_scale and scale, the old name"):
        hk.pairwise_logsumexp(X, Y, logit_scale=3.0, scale=2.0)
    with pytest.raises(TypeError, match=r"^logit_scale must be a number, got NoneType"):
        hk.pairwise_logsumexp(X, Y)


def test_an_old_name_compiles() -> None:
    compiled = torch.compile(lambda x, y: hk.pairwise_logsumexp(x, y, scale=3.0)[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(X, Y), hk.pairwise_logsumexp(X, Y, logit_scale=3.0)[0])
