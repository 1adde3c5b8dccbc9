"""The drop-in against the two lines of the original code, copied from the paper's Figure 5."""

import pytest
import torch
from oracle import assert_close, assert_within_tolerance
from torch import Tensor

from hyperkern.integrations.align_uniform import align_loss, uniform_loss


def original_align_loss(x: Tensor, y: Tensor, alpha: float = 2) -> Tensor:
    return (x - y).norm(p=2, dim=1).pow(alpha).mean()


def original_uniform_loss(x: Tensor, t: float = 2) -> Tensor:
    return torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()


def value_and_grads(loss: object, *args: Tensor, **options: float) -> tuple[Tensor, ...]:
    leaves = [arg.clone().requires_grad_() for arg in args]
    value = loss(*leaves, **options)
    return value.detach(), *torch.autograd.grad(value, leaves)


def features(n: int, d: int, normalize: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x, y = torch.randn(2, n, d, dtype=torch.float64)
    if normalize:
        return torch.nn.functional.normalize(x, dim=1), torch.nn.functional.normalize(y, dim=1)
    return x, y


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("alpha", [0.5, 1, 2, 3.5])
def test_align_loss_in_float64(alpha: float, normalize: bool) -> None:
    x, y = features(33, 7, normalize)
    found = value_and_grads(align_loss, x, y, alpha=alpha)
    for actual, truth in zip(found, value_and_grads(original_align_loss, x, y, alpha=alpha), strict=True):
        assert_close(actual, truth)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("t", [0.1, 2, 7.5])
def test_uniform_loss_in_float64(t: float, normalize: bool) -> None:
    x, _ = features(33, 7, normalize)
    found = value_and_grads(uniform_loss, x, t=t)
    for actual, truth in zip(found, value_and_grads(original_uniform_loss, x, t=t), strict=True):
        assert_close(actual, truth)


def test_defaults_and_positional_options() -> None:
    x, y = features(9, 4, True)
    assert_close(align_loss(x, y), original_align_loss(x, y))
    assert_close(uniform_loss(x), original_uniform_loss(x))
    assert_close(align_loss(x, y, 1), original_align_loss(x, y, 1))
    assert_close(uniform_loss(x, 3), original_uniform_loss(x, 3))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("loss", ["align", "uniform"])
def test_float32_is_no_worse_than_the_original(loss: str, normalize: bool) -> None:
    ours, original = (align_loss, original_align_loss) if loss == "align" else (uniform_loss, original_uniform_loss)
    triples = []
    for seed in range(12):
        args = [t.float() for t in features(60, 24, normalize, seed)[: 2 if loss == "align" else 1]]
        truth = value_and_grads(original, *(arg.double() for arg in args), **({"t": 0.2} if loss == "uniform" else {}))
        options = {"t": 0.2} if loss == "uniform" else {}
        triples.append((value_and_grads(ours, *args, **options), value_and_grads(original, *args, **options), truth))
    for same in zip(*(zip(*triple, strict=True) for triple in triples), strict=True):
        ours, peer, truth = (torch.stack(parts) for parts in zip(*same, strict=True))
        assert_within_tolerance(ours, [peer], truth, loss)


def test_features_far_from_the_origin() -> None:
    # Distances do not see a translation; neither may their accuracy, within what the rounding of x leaves.
    x = features(40, 5, False)[0].float() + 1000
    truth = original_uniform_loss(x.double())
    torch.testing.assert_close(uniform_loss(x).double(), truth, rtol=1e-5, atol=0)


def test_clusters_far_apart_keep_their_small_distances() -> None:
    # Two tight clusters: all that counts is the short distances, and |x|^2 + |y|^2 - 2 <x, y> cancels there.
    x = 0.5 * features(40, 5, False)[0].float()
    x[::2] += 100
    truth = original_uniform_loss(x.double())
    assert_within_tolerance(uniform_loss(x)[None], [original_uniform_loss(x)[None]], truth[None], "clusters")


def test_where_the_original_fails() -> None:
    x, y = features(6, 4, True)
    identical = value_and_grads(align_loss, x, x, alpha=0.5)
    assert all((part == 0).all() for part in identical)
    assert original_uniform_loss(100 * features(6, 50, False)[0]) == -torch.inf
    assert uniform_loss(100 * features(6, 50, False)[0]).isfinite()
    assert align_loss(x.half(), y.half()).dtype == torch.float32
    for rows in (0, 1):
        with pytest.raises(ValueError, match="x must"):
            uniform_loss(x[:rows])


@pytest.mark.parametrize("shape", [(5, 7, 4), (2, 3, 4, 5), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("alpha", [1, 2])
def test_align_loss_of_more_dimensions_is_one_number(shape: tuple[int, ...], alpha: float) -> None:
    # Distances along the second dimension, averaged over all others.
    x, y = torch.randn(2, *shape, dtype=torch.float64)
    found = value_and_grads(align_loss, x, y, alpha=alpha)
    assert found[0].shape == ()
    for actual, truth in zip(found, value_and_grads(original_align_loss, x, y, alpha=alpha), strict=True):
        assert_close(actual, truth)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ((4,), (4,), r"^x must have shape .*, got \(4,\)"),
        ((2, 3, 4), (4, 3, 2), r"^y must have the shape of x, \(2, 3, 4\), got \(4, 3, 2\)"),
        ((2, 3, 4, 5), (2, 3, 5, 4), r"^x must have shape .*, got \(2, 3, 4, 5\)"),
        ((2, 3, 4), (3, 4), r"^y must have the shape of x, \(2, 3, 4\), got \(3, 4\)"),
        ((5, 3), (1, 3), r"^y must have the shape of x, \(5, 3\), got \(1, 3\)"),
        ((0, 3, 4), (0, 3, 4), r"^x must not be empty"),
    ],
)
def test_align_loss_refuses_other_shapes(x: tuple[int, ...], y: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        align_loss(torch.ones(x), torch.ones(y))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (2, 3, 4, 5)], ids=str)
def test_uniform_loss_refuses_what_pdist_does(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    with pytest.raises(RuntimeError):
        original_uniform_loss(x)
    with pytest.raises(ValueError, match=r"^x must have shape \(N, D\)"):
        uniform_loss(x)


def test_arguments_that_are_no_features() -> None:
    x = torch.ones(3, 2)
    for call in (lambda: align_loss([[1.0]], x), lambda: uniform_loss([[1.0]])):
        with pytest.raises(TypeError, match=r"^x must be a torch.Tensor"):
            call()
    with pytest.raises(TypeError, match=r"^y must be a torch.Tensor"):
        align_loss(x[None], None)
