"""Rows that break naive code: cases 1 to 8 of the table of promises."""

import pytest
import torch
import torch.nn.functional as F
from cases import BY_NAME, CASES, FEATURES, names, tensors, values_and_grads
from oracle import assert_close
from torch import Tensor

import hyperkern as hk

EPS = {torch.float16: 2.0**-14}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def finite(results: tuple[list[Tensor], list[Tensor]]) -> bool:
    return all(t.isfinite().all() for part in results for t in part)


@pytest.mark.parametrize("name", [n for n in names() if "raw" not in n])
def test_case_01_zero_row(name: str) -> None:
    case = BY_NAME[name]
    args = tensors(case, 5, 4, 3)
    args[0][1] = 0
    results = values_and_grads(case.ours, args)
    assert finite(results)
    expected = values_and_grads(case.truth, args)
    for actual, truth in zip(results[0], expected[0], strict=True):
        assert_close(actual, truth)
    for actual, truth in zip(results[1], expected[1], strict=True):
        # The gradient of the zero row is that of F.normalize, multiplied by 1e12.
        torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-9)


def test_case_01_two_zero_rows_are_at_distance_0_and_at_distance_1_from_the_sphere() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    x[0, 0] = 2.0
    assert_close(hk.uniformity(x), ((1 + 2 * torch.tensor(-2.0, dtype=torch.float64).exp()) / 3).log())
    assert hk.uniformity(torch.zeros(3, 4)) == 0
    assert hk.alignment(torch.zeros(3, 4), torch.zeros(3, 4), alpha=0.5) == 0
    assert_close(hk.alignment(x, torch.ones_like(x), alpha=3.0, reduction="none")[1:], x.new_ones(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_case_01_zero_row_in_low_precision(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3).to(dtype)
    x[1] = 0
    x.requires_grad_()
    loss = hk.uniformity(x)
    (found,) = torch.autograd.grad(loss, x)
    assert found.isfinite().all()
    rows = x.detach().double().requires_grad_()
    unit = F.normalize(rows, dim=-1, eps=EPS.get(dtype, 1e-12))
    truth = torch.pdist(unit).square().mul(-2).exp().mean().log()
    (expected,) = torch.autograd.grad(truth, rows)
    torch.testing.assert_close(loss.double(), truth)
    # The zero row's is 1e12 times as large: each row by its own size.
    size = expected.abs().amax(-1, keepdim=True)
    assert_close(found.double() / size, expected / size, 8 * torch.finfo(dtype).eps)


def test_case_01_the_second_derivative_of_rows_shorter_than_eps() -> None:
    # There rstd is the constant 1 / eps: the gradient of a row depends on its direction, not on its length.
    direction = F.normalize(torch.randn(5, 3, dtype=torch.float64), dim=-1)
    weights = 1e-12 * torch.randn(5, 3, dtype=torch.float64)
    found = []
    for length in (1e-13, 1e-14):
        x = (length * direction).requires_grad_()
        (first,) = torch.autograd.grad(hk.uniformity(x), x, create_graph=True)
        found.append(torch.autograd.grad((first * weights).sum(), x)[0])

    def tangent(grad: Tensor, unit: Tensor) -> Tensor:
        return (grad - (grad * unit).sum(-1, keepdim=True) * unit) / 1e-12

    unit = direction.clone().requires_grad_()
    # pdist has no second derivative.
    pairs = (-2 * (unit.unsqueeze(1) - unit).square().sum(-1)).exp().masked_fill(torch.eye(5, dtype=torch.bool), 0)
    (of_unit,) = torch.autograd.grad((pairs.sum() / 20).log(), unit, create_graph=True)
    (through_unit,) = torch.autograd.grad((tangent(of_unit, unit) * weights).sum(), unit)
    expected = tangent(through_unit, direction)
    for second in found:
        torch.testing.assert_close(second, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("end", ["tiny", "subnormal", "huge"])
def test_case_02_rows_whose_norm_leaves_the_range(dtype: torch.dtype, end: str) -> None:
    info = torch.finfo(dtype)
    size = {"tiny": info.tiny, "subnormal": info.tiny / 4, "huge": info.max / 2}[end]
    direction = torch.tensor([[1.0, -1.0, 0.5, 0.0], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 0.0, -1.0]])
    x = (direction.double() * size).to(dtype).requires_grad_()
    unit = F.normalize(direction.double(), dim=-1)
    expected = torch.pdist(unit).square().mul(-2).exp().mean().log()
    loss = hk.uniformity(x)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.autograd.grad(loss, x)[0].isfinite().all() or (dtype, end) == (torch.float16, "subnormal")
    other = direction.to(dtype).flip(0)
    for pair in (hk.alignment(x, other), hk.info_nce(x, other), hk.clip_loss(x, other, logit_scale=5.0)):
        assert pair.isfinite()
    assert_close(hk.alignment(x, other, reduction="none").double(), (unit - unit.flip(0)).square().sum(-1), 1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_case_03_identical_positive_pairs(alpha: float, normalize: bool, dtype: torch.dtype) -> None:
    x = torch.randn(6, 5).to(dtype)
    pair = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    loss = hk.alignment(*pair, alpha=alpha, normalize=normalize)
    loss.backward()
    assert loss == 0
    assert all((t.grad == 0).all() for t in pair)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_case_03_nearly_identical_pairs(alpha: float) -> None:
    # The square of a small distance underflows in float32; the power of its derivative must not be infinite.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    y = torch.tensor([[1.0, 1e-22], [1.0, 1e-10], [1.0, 1e-30]], requires_grad=True)
    loss = hk.alignment(x, y, alpha=alpha)
    (found,) = torch.autograd.grad(loss, y)
    assert loss.isfinite()
    assert found.isfinite().all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_case_03_second_derivative_at_identical_pairs(alpha: float) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    (first,) = torch.autograd.grad(hk.alignment(x, y, alpha=alpha), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()


@pytest.mark.parametrize("name", names())
def test_case_04_duplicate_rows(name: str) -> None:
    case = BY_NAME[name]
    args = [arg.float() for arg in tensors(case, 6, 4, 3)]
    args = [arg[..., :1, :].expand(arg.shape) if arg.dim() > 1 else arg for arg in args]
    results = values_and_grads(case.ours, args)
    assert finite(results)
    if name in ("uniformity-default", "uniformity-t0.3"):
        torch.testing.assert_close(results[0][0], torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", names())
def test_case_05_nan_or_inf_in_a_row(name: str, bad: float) -> None:
    case = BY_NAME[name]
    for which in range(sum(role in FEATURES for role in case.roles)):
        args = [arg.float() for arg in tensors(case, 5, 4, 3)]
        args[which][2, 1] = bad
        for out in case.ours(*args):
            if out.dim():
                # One number for each row: the row itself, at least, must show it.
                assert not out.isfinite().all()
            elif "raw" in name and bad == bad:
                assert not out.isfinite()  # the textbook too: |inf - y| is inf
            else:
                assert out.isnan()


@pytest.mark.parametrize("shape", [(1, 3), (4, 1, 3)])
def test_case_06_fewer_than_two_rows(shape: tuple[int, ...]) -> None:
    one = torch.randn(shape)
    for loss in (lambda: hk.uniformity(one), lambda: hk.align_uniform(one, one)):
        with pytest.raises(ValueError, match=r"x must have at least 2 rows.*got shape"):
            loss()
    assert hk.uniformity(one, one).isfinite().all()
    assert hk.uniformity(one, one, intra=True).isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 2, 3), (2, 0, 3)])
def test_case_06_empty_batch(shape: tuple[int, ...]) -> None:
    empty, full = torch.empty(shape), torch.randn(2, 3)
    for loss in (
        lambda: hk.uniformity(empty),
        lambda: hk.uniformity(full, empty),
        lambda: hk.alignment(empty, empty),
        lambda: hk.align_uniform(empty, empty),
        lambda: hk.info_nce(empty, empty),
        lambda: hk.clip_loss(empty, empty, logit_scale=1.0),
        lambda: hk.pairwise_logsumexp(empty, logit_scale=1.0),
    ):
        with pytest.raises(ValueError, match=r"must not be empty, got shape \("):
            loss()


@pytest.mark.parametrize("temperature", [1.0, 0.07, 0.001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_case_07_one_row_without_negatives(temperature: float, dtype: torch.dtype) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        x, y = torch.randn(2, 1, 33).to(dtype).requires_grad_().unbind()
        for loss in (hk.info_nce(x, y, temperature=temperature), hk.clip_loss(x, y, logit_scale=1 / temperature)):
            # A logit minus itself; half a unit in the last place of that logit is what rounding may leave.
            ulp = torch.finfo(loss.dtype).eps / temperature
            assert abs(loss.item()) <= ulp
            for grad in torch.autograd.grad(loss, (x, y)):
                assert grad.abs().max() <= 4 * ulp / temperature


@pytest.mark.parametrize("one_side", [False, True])
@pytest.mark.parametrize("scale", [2.0, 500.0])
def test_case_08_every_candidate_excluded(one_side: bool, scale: float) -> None:
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    y = None if one_side else torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    # On two sides row 0 has no candidate left; on one side no row has.
    x_ids = torch.tensor([0, 0, 0, 0, 0] if one_side else [7, 1, 2, 3, 4])
    y_ids = None if one_side else torch.tensor([7, 7, 7, 7])
    row, col = hk.pairwise_logsumexp(x, y, logit_scale=scale, exclude="same_id", x_ids=x_ids, y_ids=y_ids)
    assert row[0] == -torch.inf
    if one_side:
        assert (row == -torch.inf).all()
    else:
        assert row[1:].isfinite().all()
        assert col.isfinite().all()
    for value in (row[0], row.sum(), row.masked_fill(row == -torch.inf, 0).sum()):
        grad = torch.autograd.grad(value, x, retain_graph=True)[0]
        assert (grad[0] == 0).all()
        assert grad.isfinite().all()


def test_case_08_weights_of_zero_leave_rows_out() -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64)
    kept = x.detach()[w > 0].requires_grad_()
    loss, expected = hk.uniformity(x, x_weights=w), hk.uniformity(kept)
    assert_close(loss, expected)
    grad = torch.autograd.grad(loss, x)[0]
    assert (grad[w == 0] == 0).all()
    assert_close(grad[w > 0], torch.autograd.grad(expected, kept)[0])


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("which", ["one row left", "queue", "rows"])
def test_case_08_weights_of_zero_leave_a_sum_without_pairs(which: str, normalize: bool) -> None:
    x, y = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (3, 2))
    w, v = torch.ones(3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    if which == "one row left":  # no pair inside x
        w[1:] = 0
        loss, kept = hk.uniformity(x, y, intra=True, x_weights=w, normalize=normalize), (x[:1], y)
    elif which == "queue":  # none with y
        v[:] = 0
        loss, kept = hk.uniformity(x, y, intra=True, y_weights=v, normalize=normalize), (x,)
    else:  # one row of each
        w[1:], v[1:] = 0, 0
        loss, kept = hk.uniformity(x, y, x_weights=w, y_weights=v, normalize=normalize), (x[:1], y[:1])
    expected = hk.uniformity(*kept, normalize=normalize)
    assert_close(loss, expected)
    # A loss of one pair has the gradient 0 nowhere but by rounding: compared with the rows.
    for grad, truth in zip(
        *(torch.autograd.grad(f, (x, y), materialize_grads=True) for f in (loss, expected)), strict=True
    ):
        assert_close(grad, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("side", ["x", "y"])
def test_case_08_a_log_weight_leaves_a_row_out(
    side: str, dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    x, y = (torch.randn(n, 5, device=device).to(dtype).requires_grad_() for n in (7, 6))
    u = torch.randn(len(x if side == "x" else y), device=device)
    u[2] = -torch.inf
    options = {"logit_scale": 2.0, "backend": backend}
    found = hk.pairwise_logsumexp(x, y, **{f"{side}_log_weights": u}, **options)
    rest = torch.arange(len(u), device=device) != 2
    sides = (x[rest], y) if side == "x" else (x, y[rest])
    expected = hk.pairwise_logsumexp(*sides, **{f"{side}_log_weights": u[rest]}, **options)
    found = tuple(lse[rest] if len(lse) == len(u) else lse for lse in found)
    for lse, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(lse, truth)
    grads, truths = (torch.autograd.grad(sum(lse.square().sum() for lse in both), (x, y)) for both in (found, expected))
    for grad, truth in zip(grads, truths, strict=True):
        torch.testing.assert_close(grad, truth)


@pytest.mark.parametrize("common", [1e-200, 1.0, 1e200])
def test_case_08_a_common_factor_of_wide_weights(common: float) -> None:
    x, y = torch.randn(8, 4), torch.randn(5, 4)
    for given, expected in (
        (hk.uniformity(x, x_weights=torch.full((8,), common, dtype=torch.float64)), hk.uniformity(x)),
        (hk.uniformity(x, y, y_weights=torch.full((5,), common, dtype=torch.float64)), hk.uniformity(x, y)),
    ):
        torch.testing.assert_close(given, expected)


def test_the_zero_row_test_covers_the_cases() -> None:
    assert len([case for case in CASES if "raw" not in case.name]) > 25
