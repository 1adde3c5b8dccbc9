"""The drop-in for solo-learn, which is not on PyPI: against its formula, written densely."""

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, relative_error, value_and_grads
from torch import Tensor

from hyperkern.integrations.solo_learn import simclr_loss_func


def dense(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    z = F.normalize(z, dim=1)
    kernel = torch.exp(z @ z.T / temperature)
    same = indexes[:, None] == indexes
    positives = (kernel * (same & ~torch.eye(len(z), dtype=torch.bool))).sum(1)
    negatives = (kernel * ~same).sum(1)
    return -(positives / (positives + negatives)).log().mean()


def features(m: int, d: int = 6) -> Tensor:
    return 3 * torch.randn(m, d, dtype=torch.float64) + 1


INDEXES = {
    "two views": torch.arange(9).repeat(2),
    "views side by side": torch.arange(9).repeat_interleave(2),
    "five views": torch.arange(6).repeat(5),
    "classes": torch.tensor([0, 1, 0, 2, 2, 1, 0, 2, 2, 2, 7, 7]),
    "shuffled": torch.randperm(24, generator=torch.Generator().manual_seed(1)) % 8,
    "names": torch.tensor([-5, 2**62, 0, -5, 2**62, 0]),
    "int32": torch.arange(5, dtype=torch.int32).repeat(2),
    "one sample": torch.zeros(4, dtype=torch.long),
}


def test_defaults() -> None:
    assert defaults(simclr_loss_func) == {"z": ..., "indexes": ..., "temperature": 0.1}
    z, indexes = features(18), INDEXES["two views"]
    assert simclr_loss_func(z, indexes) == simclr_loss_func(z, indexes, 0.1)


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", INDEXES)
def test_dense_formula(name: str, temperature: float) -> None:
    indexes = INDEXES[name]
    assert_parity(
        lambda z: simclr_loss_func(z, indexes, temperature),
        lambda z: dense(z, indexes, temperature),
        features(len(indexes)),
        largest_logit=1 / temperature,
    )


@pytest.mark.parametrize(("samples", "views", "dim"), [(2, 2, 2), (33, 2, 130), (20, 7, 3), (300, 2, 16)])
def test_shapes(samples: int, views: int, dim: int) -> None:
    indexes = torch.arange(samples).repeat(views)
    assert_parity(lambda z: simclr_loss_func(z, indexes), lambda z: dense(z, indexes), features(samples * views, dim))


def test_a_temperature_that_overflows_in_the_original() -> None:
    z, indexes = features(18).float(), INDEXES["two views"]
    assert not dense(z, indexes, 0.011).isfinite()
    truths = value_and_grads(lambda z: dense(z, indexes, 0.011), z.double())
    for actual, truth in zip(value_and_grads(lambda z: simclr_loss_func(z, indexes, 0.011), z), truths, strict=True):
        assert relative_error(actual, truth) <= 1e-5


@pytest.mark.parametrize("name", ["two views", "classes", "shuffled"])
@pytest.mark.parametrize("temperature", [torch.tensor(0.4), torch.tensor([0.7])], ids=str)
def test_a_learned_temperature(name: str, temperature: Tensor) -> None:
    indexes = INDEXES[name]
    assert_parity(
        lambda z, t: simclr_loss_func(z, indexes, t),
        lambda z, t: dense(z, indexes, t),
        *(features(len(indexes)), temperature.double()),
    )


def test_one_sample_has_nothing_to_be_told_apart_from() -> None:
    value, grad = value_and_grads(lambda z: simclr_loss_func(z, torch.zeros(4, dtype=torch.long)), features(4))
    assert value == 0
    assert not grad.any()


def test_second_order() -> None:
    indexes = torch.tensor([0, 1, 0, 1, 1])
    assert torch.autograd.gradgradcheck(lambda z: simclr_loss_func(z, indexes, 0.5), features(5, 3).requires_grad_())


class TestErrors:
    """What is refused."""

    def test_a_sample_that_occurs_once(self) -> None:
        with pytest.raises(ValueError, match="indexes must name each sample at least twice"):
            simclr_loss_func(features(3), torch.tensor([0, 0, 1]))

    def test_arguments(self) -> None:
        z, indexes = features(4), torch.tensor([0, 1, 0, 1])
        with pytest.raises(ValueError, match=r"z must have shape \(M, D\)"):
            simclr_loss_func(z[None], indexes[None])
        with pytest.raises(ValueError, match=r"indexes must have shape \(4,\)"):
            simclr_loss_func(z, indexes[:3])
        with pytest.raises(TypeError, match="indexes must have an integer dtype"):
            simclr_loss_func(z, indexes.float())
        with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
            simclr_loss_func(z, indexes, 0)
