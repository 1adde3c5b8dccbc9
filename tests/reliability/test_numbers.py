"""Extreme options and sizes, strides and gradients: cases 9 to 14 of the table of promises."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
import torch
from cases import BY_NAME, names, tensors, values_and_grads
from oracle import assert_close
from scipy.special import ive
from torch import Tensor

import hyperkern as hk

F64 = torch.float64


def pair(m: int = 12, d: int = 5) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(2, m, d, dtype=F64)
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("scale", [1e-4, 100.0, 1e4])
@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_case_09_scale(scale: float, tensor: bool, dtype: torch.dtype) -> None:
    x, y = (t.detach().to(dtype) for t in pair())
    s = torch.tensor(scale, dtype=dtype) if tensor else scale
    losses = [
        (
            lambda x, y: (hk.info_nce(x, y, temperature=1 / s),),
            lambda x, y: (oracle.info_nce(x, y, temperature=1 / scale),),
        ),
        (lambda x, y: (hk.clip_loss(x, y, logit_scale=s),), lambda x, y: (oracle.clip_loss(x, y, logit_scale=scale),)),
    ]
    if not tensor:
        losses += [
            (
                lambda x, y: hk.pairwise_logsumexp(x, y, logit_scale=scale),
                lambda x, y: oracle.pairwise_logsumexp(x, y, logit_scale=scale),
            ),
            (
                lambda x, y: (hk.uniformity(x, y, t=scale, intra=True),),
                lambda x, y: (oracle.uniformity(x, y, t=scale, intra=True),),
            ),
        ]
    relative = 1e-10 if dtype == F64 else 1e-5
    for ours, truth in losses:
        found, expected = values_and_grads(ours, [x, y]), values_and_grads(truth, [x.double(), y.double()])
        for actual, exact in zip(found[0], expected[0], strict=True):
            torch.testing.assert_close(actual.double(), exact, rtol=relative, atol=relative * max(scale / 100, 1))
        if dtype == F64:
            for actual, exact in zip(found[1], expected[1], strict=True):
                torch.testing.assert_close(actual, exact, rtol=1e-9, atol=1e-9 * max(1, scale))


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_case_09_temperature_not_positive(bad: float) -> None:
    x, y = pair()
    for name, loss in (
        ("temperature", lambda: hk.info_nce(x, y, temperature=bad)),
        ("logit_scale", lambda: hk.clip_loss(x, y, logit_scale=bad)),
        ("t", lambda: hk.uniformity(x, t=bad)),
        ("logit_scale", lambda: hk.pairwise_logsumexp(x, logit_scale=bad)),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be .*> 0.*got {bad}"):
            loss()


@pytest.mark.parametrize("kind", [np.float16, np.float32, Fraction], ids=lambda kind: kind.__name__)
def test_case_09_numbers_of_other_libraries(kind: type) -> None:
    x, y = (t.detach() for t in pair())
    value = kind(0.07)
    labels = torch.arange(len(x)) // 2
    losses = {
        "info_nce": lambda v: hk.info_nce(x, y, temperature=v),
        "nt_xent": lambda v: hk.nt_xent(x, y, temperature=v),
        "dclw": lambda v: hk.dclw(x, y, temperature=v, sigma=v),
        "sup_con": lambda v: hk.sup_con(x, labels, temperature=v),
        "clip_loss": lambda v: hk.clip_loss(x, y, logit_scale=v),
        "siglip": lambda v: hk.siglip(x, y, logit_scale=v, logit_bias=v),
        "uniformity": lambda v: hk.uniformity(x, t=v),
        "alignment": lambda v: hk.alignment(x, y, alpha=v),
        "align_uniform": lambda v: hk.align_uniform(x, y, t=v, alpha=v, align_weight=v, uniform_weight=v).loss,
        "pairwise_logsumexp": lambda v: hk.pairwise_logsumexp(x, y, logit_scale=v)[0].sum(),
        "InfoNCELoss": lambda v: hk.InfoNCELoss(temperature=v, learnable=True)(x, y),
    }
    for name, loss in losses.items():
        assert torch.equal(loss(value), loss(float(value))), name


# At 26 exp(-4 t) is 0 in float32, and exp(-t) is not; at 190 the same in float64.
@pytest.mark.parametrize("t", [2.0, 26.0, 190.0, 1e3])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_case_10_antipodal_points_at_a_large_t(dtype: torch.dtype, normalize: bool, t: float) -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=dtype, requires_grad=True)
    for loss in (
        hk.uniformity(x, t=t, normalize=normalize),
        hk.uniformity(x[:1], x[1:], t=t, normalize=normalize),
        hk.uniformity(x, t=t, normalize=normalize, x_weights=torch.ones(2, dtype=dtype)),
    ):
        torch.testing.assert_close(loss.item(), -4 * t, rtol=1e-6, atol=0)
        # Away from one another; unit rows cannot go farther.
        expected = torch.zeros_like(x) if normalize else -4 * t * x.detach()
        torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected, rtol=1e-5, atol=1e-5 * t)


def test_case_10_wide_raw_features_stay_finite() -> None:
    # The original code takes the logarithm of an underflow here.
    x = 100 * torch.randn(20, 50)
    x.requires_grad_()
    loss = hk.uniformity(x, normalize=False)
    truth = oracle.uniformity(x.detach().double(), normalize=False)
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=0)
    assert torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["uniformity-default", "uniformity-queue-intra", "info_nce-negatives", "clip_loss-10"])
@pytest.mark.parametrize(("m", "n"), [(2, 1), (7, 8), (8, 9), (9, 7), (31, 13), (1, 2)])
@pytest.mark.parametrize("d", [1, 2, 3, 127, 129])
def test_case_11_ragged_shapes(name: str, m: int, n: int, d: int, small_blocks: None) -> None:
    case = BY_NAME[name]
    args = tensors(case, max(m, case.least_rows), n, d)
    found, truth = values_and_grads(case.ours, args), values_and_grads(case.truth, args)
    for actual, expected in zip(found[0] + found[1], truth[0] + truth[1], strict=True):
        assert_close(actual, expected)


def circle(angles: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """``sum_ij exp(-t |x_i - x_j|^2)`` on the circle and its derivative by each angle, in O(N).

    The Jacobi-Anger series ``exp(2t cos a) = I_0(2t) + 2 sum_k I_k(2t) cos(k a)`` needs no pair: it turns the
    sum into moments ``|sum_i exp(ik a_i)|^2``.
    """
    total, slope = angles.new_zeros(()), torch.zeros_like(angles)
    for k in range(40):
        weight = float(ive(k, 2 * t)) * (1 if k == 0 else 2)
        c, s = (k * angles).cos(), (k * angles).sin()
        total = total + weight * (c.sum() ** 2 + s.sum() ** 2)
        slope = slope + 2 * k * weight * (c * s.sum() - s * c.sum())
    return total, slope


@pytest.mark.slow
def test_case_12_more_pairs_than_a_32_bit_index_holds() -> None:
    n, t = 46_400, 2.0
    assert n * (n - 1) > 2**31
    angles = torch.rand(n, dtype=F64) * 3
    angles[-3:] = torch.tensor([5.0, 5.001, 5.002], dtype=F64)  # last rows unlike all others
    x = torch.stack([angles.cos(), angles.sin()], -1).float().requires_grad_()
    angles = torch.atan2(x.detach()[:, 1].double(), x.detach()[:, 0].double())
    total, slope = circle(angles, t)
    pairs = total - n
    loss = hk.uniformity(x, t=t)
    torch.testing.assert_close(loss.double(), (pairs / (n * (n - 1))).log(), rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(loss, x)
    along = (grad.double() * torch.stack([-angles.sin(), angles.cos()], -1)).sum(-1)
    torch.testing.assert_close(along, slope / pairs, rtol=1e-3, atol=1e-9)


def test_the_series_of_the_circle_is_the_sum_over_pairs() -> None:
    angles = torch.rand(50, dtype=F64) * 6
    x = torch.stack([angles.cos(), angles.sin()], -1)
    assert_close(circle(angles, 2.0)[0], (-2 * torch.cdist(x, x).square()).exp().sum())


@pytest.mark.parametrize(
    "name", ["uniformity-default", "info_nce-default", "clip_loss-learnable", "pairwise_logsumexp-self"]
)
def test_case_13_grad_output_of_any_kind(name: str) -> None:
    case = BY_NAME[name]
    args = [arg.requires_grad_() for arg in tensors(case, 5, 4, 3, 2)]
    outputs = case.ours(*args)
    once = torch.autograd.grad([out.sum() for out in outputs], args, retain_graph=True)
    for ones in (
        [torch.ones((), dtype=F64).expand(out.shape) for out in outputs],
        [torch.ones(2 * out.numel(), dtype=F64)[::2].view(out.shape) for out in outputs],
    ):
        for a, b in zip(torch.autograd.grad(outputs, args, ones, retain_graph=True), once, strict=True):
            assert torch.equal(a, b)
    zeros = torch.autograd.grad(outputs, args, [torch.zeros_like(out) for out in outputs])
    assert all((z == 0).all() for z in zeros)


def test_case_13_misaligned_storage() -> None:
    values = torch.randn(9 * 5 + 3)
    for offset in (1, 2, 3):
        x = values[offset : offset + 45].view(9, 5)
        assert hk.uniformity(x) == hk.uniformity(x.clone())
        assert torch.equal(hk.info_nce(x, x), hk.info_nce(x.clone(), x.clone()))


LOSSES = {
    "alignment": lambda x, y: hk.alignment(x, y, alpha=1.5),
    "uniformity": lambda x, y: hk.uniformity(x, y),
    "align_uniform": lambda x, y: hk.align_uniform(x, y).loss,
    "info_nce": lambda x, y: hk.info_nce(x, y),
    "negatives": lambda x, y: hk.info_nce(x, y, negatives=y),
    "clip_loss": lambda x, y: hk.clip_loss(x, y, logit_scale=9.0),
    "pairwise_logsumexp": lambda x, y: sum(out.sum() for out in hk.pairwise_logsumexp(x, y, logit_scale=2.0)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_case_14_x_is_y(name: str) -> None:
    x = torch.randn(6, 3, dtype=F64, requires_grad=True)
    a, b = (x.detach().clone().requires_grad_() for _ in range(2))
    separate = LOSSES[name](a, b)
    separate.backward()
    same = LOSSES[name](x, x)
    same.backward()
    assert_close(same, separate)
    assert_close(x.grad, a.grad + b.grad)


@pytest.mark.parametrize("name", names())
def test_case_15_each_combination_of_requires_grad(name: str) -> None:
    case = BY_NAME[name]
    args = tensors(case, 5, 4, 3)
    _, full = values_and_grads(case.ours, args)
    for bits in range(2 ** len(args)):
        leaves = [arg.detach().clone().requires_grad_(bool(bits >> i & 1)) for i, arg in enumerate(args)]
        outputs = case.ours(*leaves)
        assert all(out.requires_grad == (bits > 0) for out in outputs) or len(outputs) > 1
        if bits == 0:
            continue
        draw = torch.Generator().manual_seed(1)
        used = [(out, torch.randn(out.shape, generator=draw, dtype=F64)) for out in outputs]
        sum((out * weight).sum() for out, weight in used).backward()
        for leaf, truth in zip(leaves, full, strict=True):
            if leaf.requires_grad:
                assert_close(leaf.grad, truth)
            else:
                assert leaf.grad is None
