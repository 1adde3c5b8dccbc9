"""What holds for the losses beyond their values: signs, invariances, what an extreme input must not do."""

import math

import pytest
import torch
from oracle import assert_close
from oracle import info_nce as dense_info_nce
from oracle import uniformity as dense_uniformity

import hyperkern as hk
from hyperkern.spec import is_bounded


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
    assert_close(grad.double(), true_grad, 1e-5)


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


# The headroom of a plain sum, 2^27. Beside a large incoming gradient it has to hold twice the scale.
INCOMING = [2.0**-26, 1.0, 2.0**20]


def largest_bounded(terms: int, dtype: torch.dtype) -> float:
    """The largest scale, in quarters, at which a sum of so many exponentials is taken without a maximum."""
    return max(quarters / 4 for quarters in range(4 * 710) if is_bounded(quarters / 4, terms, dtype))


def assert_gradient_of_any_size(loss, truth, *rows: torch.Tensor, incoming: float, scale: float) -> None:
    """The gradient over the incoming one, a power of two, against that of the formula in float64."""

    def run(function, args: list[torch.Tensor], size: float) -> list[torch.Tensor]:
        args = [arg.detach().requires_grad_() for arg in args]
        value = function(*args)
        return [value.detach(), *(g / size for g in torch.autograd.grad(value, args, torch.full_like(value, size)))]

    # A logit is off by the rounding of the scale, and so is its exponential, relatively.
    allowed = 4 * torch.finfo(rows[0].dtype).eps * (1 + scale)
    for found, exact in zip(run(loss, list(rows), incoming), run(truth, [r.double() for r in rows], 1.0), strict=True):
        assert (found.double() - exact).abs().max() <= allowed * exact.abs().max()


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("incoming", INCOMING)
@pytest.mark.parametrize("counted", [65536, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_headroom_beside_many_negatives(dtype: torch.dtype, counted: int, incoming: float) -> None:
    # At the bound of so many terms, and at the bound of one: its exponential fits, a sum of 65,536 leaves no headroom.
    scale = largest_bounded(counted, dtype)
    x = torch.nn.functional.normalize(torch.randn(2, 8, dtype=dtype), dim=-1)
    negatives = torch.nn.functional.normalize(x[:1] + 0.02 * torch.randn(65536, 8, dtype=dtype), dim=-1)
    assert_gradient_of_any_size(
        lambda x, y, q: hk.info_nce(x, y, negatives=q, temperature=1 / scale),
        lambda x, y, q: dense_info_nce(x, y, q, temperature=1 / scale),
        *(x, x.flip(0), negatives),
        incoming=incoming,
        scale=scale,
    )


@pytest.mark.parametrize("incoming", INCOMING)
@pytest.mark.parametrize("kind", ["together", "apart"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_headroom_of_the_sum_of_all_pairs(dtype: torch.dtype, kind: str, incoming: float) -> None:
    # Rows close to one another make the largest sum of the bounded regime, two opposite ones the smallest.
    t = largest_bounded(4 if kind == "apart" else 300**2, dtype) / 2
    x = 1 + 0.05 * torch.randn(2 if kind == "apart" else 300, 8, dtype=dtype)
    if kind == "apart":
        x[1] *= -1
    assert_gradient_of_any_size(
        lambda x: hk.uniformity(x, t=t), lambda x: dense_uniformity(x, t=t), x, incoming=incoming, scale=2 * t
    )


class TestMaxNorm:
    """Rows that the caller has normalised, where nobody may look at them to see it."""

    @staticmethod
    def value_and_grad(loss, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.detach().requires_grad_()
        value = loss(x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    @pytest.mark.parametrize("options", [{}, {"backend": "triton"}], ids=str)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_it_keeps_float32_and_its_accuracy(
        self, dtype: torch.dtype, options: dict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if options and hk.backends.objections("triton", self.problem(), forced=True):
            pytest.skip("no Triton")
        module = __import__("hyperkern.losses.uniformity", fromlist=["_longest"])
        monkeypatch.setattr(module, "_longest", lambda *_: None)  # as on a GPU
        monkeypatch.setattr(module, "accurate_dtype", lambda x: x.dtype)  # nothing is computed in float64
        x = torch.nn.functional.normalize(torch.randn(90, 20), dim=-1).to(dtype)
        value, grad = self.value_and_grad(lambda a: hk.uniformity(a, normalize=False, max_norm=1, **options), x)
        truth, true_grad = self.value_and_grad(lambda a: dense_uniformity(a, normalize=False), x.double())
        eps = torch.finfo(dtype).eps if options or dtype == torch.float32 else 2e-7
        assert abs(value - truth) <= 10 * eps + 1e-6
        error = (grad.double() - true_grad).abs().max() / true_grad.abs().max()
        assert error <= 4 * torch.finfo(dtype).eps + 4e-6
        # Longer rows than promised: less accurate, not infinite.
        assert hk.uniformity(30 * x, normalize=False, max_norm=1, **options).isfinite()

    @staticmethod
    def problem() -> hk.backends.Problem:
        return hk.backends.Problem("row_lse", torch.device("cpu"), torch.float32, 20)

    def test_a_cpu_looks_first(self) -> None:
        x = 100 + torch.randn(16, 6)
        expected = hk.uniformity(x, normalize=False)
        assert hk.uniformity(x, normalize=False, max_norm=1) == expected

    def test_a_wrong_promise_is_named(self) -> None:
        x = torch.randn(4, 2)
        for make in (lambda **k: hk.uniformity(x, **k), hk.UniformityLoss):
            with pytest.raises(ValueError, match=r"max_norm is for normalize=False.* got max_norm=2"):
                make(max_norm=2)
            with pytest.raises(ValueError, match="max_norm must be a finite number > 0, got 0"):
                make(max_norm=0, normalize=False)
