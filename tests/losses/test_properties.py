"""What holds for the losses beyond their values: signs, invariances, what an extreme input must not do."""

import math

import pytest
import torch
from oracle import uniformity as dense_uniformity

import hyperkern as hk


@pytest.mark.parametrize("options", [{}, {"intra": True}], ids=str)
@pytest.mark.parametrize("exponent", [-30, -12, 12, 30])
@pytest.mark.parametrize("queue", [False, True])
def test_a_common_factor_of_the_weights_changes_nothing(queue: bool, exponent: int, options: dict) -> None:
    # In float32 a product of two such weights is 0 or infinite.
    if options and not queue:
        options = {}
    x, y = torch.randn(9, 4), torch.randn(7, 4) if queue else None
    weights = {"x_weights": torch.rand(9) + 0.1} | ({"y_weights": torch.rand(7) + 0.1} if queue else {})
    expected = hk.uniformity(x, y, **weights, **options)
    scaled = {name: w * 10.0**exponent for name, w in weights.items()}
    torch.testing.assert_close(hk.uniformity(x, y, **scaled, **options), expected)


def test_weights_without_any_pair_give_nan() -> None:
    x = torch.randn(5, 3)
    assert hk.uniformity(x, x_weights=torch.zeros(5)).isnan()
    assert hk.uniformity(x, x_weights=torch.tensor([0.0, 0, 1, 0, 0])).isnan()


def far(kind: str) -> torch.Tensor:
    x = torch.randn(16, 6)
    if kind == "outlier":
        x[3] = 1e4
    if kind == "clusters":
        x[::2] += 300
    if kind == "near duplicates":
        x = 50 + x.relu()
        x[8:] = x[:8] + 1e-3 * torch.randn(8, 6)
    return x


def test_an_absurd_row_leaves_the_loss_finite() -> None:
    x = torch.randn(16, 6)
    x[3] = 1e20  # the float32 square of its norm is infinite
    assert hk.uniformity(x, normalize=False).isfinite()


@pytest.mark.parametrize("kind", ["outlier", "clusters", "near duplicates"])
def test_euclidean_distances_do_not_cancel(kind: str) -> None:
    x = far(kind).requires_grad_()
    value = hk.uniformity(x, normalize=False)
    (grad,) = torch.autograd.grad(value, x)
    x64 = x.detach().double().requires_grad_()
    truth = dense_uniformity(x64, normalize=False)
    (true_grad,) = torch.autograd.grad(truth, x64)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), true_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [5.0, 50.0, 500.0])
def test_contrastive_losses_are_never_negative(scale: float) -> None:
    x = torch.randn(300, 32)
    for y in (x, x + 0.01 * torch.randn_like(x)):
        assert (hk.info_nce(x, y, temperature=1 / scale, reduction="none") >= 0).all()
        assert hk.clip_loss(x, y, logit_scale=scale) >= 0


def test_an_infinite_negative_is_seen() -> None:
    # Its logit would be -inf, which counts for nothing, if the feature were let through.
    x, y = torch.rand(4, 3), torch.rand(4, 3)
    negatives = torch.full((2, 3), -math.inf)
    assert hk.info_nce(x, y, negatives=negatives, normalize=False).isnan()
    assert hk.info_nce(x, y, negatives=negatives).isnan()


def test_a_scale_beside_many_negatives_leaves_the_bounded_regime() -> None:
    # exp(66) fits float32, a sum of 65,536 of them does not leave the headroom that a gradient needs.
    x = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1)
    negatives = x[:1].expand(65536, 8)
    args = [x.double(), x.flip(0).double(), negatives.double()]
    expected = hk.info_nce(args[0], args[1], negatives=args[2], temperature=1 / 66)
    torch.testing.assert_close(
        hk.info_nce(x, x.flip(0), negatives=negatives, temperature=1 / 66).double(), expected, rtol=1e-5, atol=1e-5
    )
