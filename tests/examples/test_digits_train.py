import pytest
import torch

import hyperkern
from examples.digits.data import load
from examples.digits.encoder import new_encoder
from examples.digits.evaluate import evaluate, held_out_views
from examples.digits.objectives import ALIGN_UNIFORM, ALIGNMENT, CONTRASTIVE, OBJECTIVES, Objective, T
from examples.digits.train import train_encoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load(CPU)


def train(objective: Objective, images: torch.Tensor, **changes: object) -> torch.nn.Module:
    options = {"dim": 16, "epochs": 2, "batch": 128, "seed": 0, "backend": None, **changes}
    return train_encoder(objective, images, **options)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_training_lowers_the_objective_on_held_out_images(objective: Objective, digits) -> None:
    x, y = held_out_views(digits)
    before, after = new_encoder(16, 0, CPU).eval(), train(objective, digits.train_images)
    with torch.no_grad():
        assert objective.loss(after(x), after(y), None) < objective.loss(before(x), before(y), None)


def test_same_seed_same_weights(digits) -> None:
    first, second, other = (train(ALIGN_UNIFORM, digits.train_images, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_loss_that_is_not_finite_is_reported(digits) -> None:
    broken = Objective("broken", "broken", "nan", lambda x, y, backend: (x * float("nan")).sum())
    with pytest.raises(FloatingPointError, match="'broken', seed 0, is nan after epoch 1"):
        train(broken, digits.train_images)


def test_contrastive_kernel_is_that_of_the_uniformity() -> None:
    # With τ = 1/(2t) the numerators of the softmax are the Gaussian potential of t, up to one factor.
    torch.manual_seed(0)
    x, y = torch.nn.functional.normalize(torch.randn(2, 6, 5, dtype=torch.float64), dim=-1)
    potential = torch.exp(-T * torch.cdist(x, y).square())
    rows = -(potential.diagonal() / potential.sum(1)).log().mean()
    columns = -(potential.diagonal() / potential.sum(0)).log().mean()
    torch.testing.assert_close(CONTRASTIVE.loss(x, y, None), (rows + columns) / 2)


def test_metrics_agree_with_independent_formulas(digits) -> None:
    encoder = train(ALIGN_UNIFORM, digits.train_images)
    found = evaluate(encoder, digits, backend=None)

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            raw = encoder(images).double()
        return raw / raw.norm(dim=1, keepdim=True)

    x, y = (features(views) for views in held_out_views(digits))
    assert found.alignment == pytest.approx((x - y).norm(dim=1).pow(2).mean().item(), rel=1e-4)
    potentials = [torch.pdist(z).pow(2).mul(-2).exp().mean().log().item() for z in (x, y)]
    assert found.uniformity == pytest.approx(sum(potentials) / 2, rel=1e-4)

    train_features, held_out = features(digits.train_images), features(digits.held_out_images)
    nearest = torch.cdist(held_out, train_features).topk(5, largest=False).indices
    votes = torch.nn.functional.one_hot(torch.from_numpy(digits.train_labels)[nearest], 10).sum(1)
    correct = votes.argmax(1) == torch.from_numpy(digits.held_out_labels)
    assert found.knn == pytest.approx(correct.double().mean().item(), abs=1e-9)
    assert 0.5 < found.linear_probe <= 1
    # Standardised features have no scale: shrinking them towards a point must not matter to their probe.
    assert 0.5 < found.scaled_probe <= 1


def test_probe_is_perfect_on_features_that_tell_the_class(digits) -> None:
    class Oracle(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            labels = digits.train_labels if len(images) == len(digits.train_labels) else digits.held_out_labels
            return torch.eye(10)[torch.from_numpy(labels)]

    found = evaluate(Oracle(), digits, backend=None)
    assert (found.linear_probe, found.scaled_probe, found.knn, found.alignment) == (1, 1, 1, 0)


def test_collapsed_features_have_no_uniformity_and_no_probe(digits) -> None:
    class Constant(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 4)

    found = evaluate(Constant(), digits, backend=None)
    assert found.alignment == pytest.approx(0, abs=1e-6)
    assert found.uniformity == pytest.approx(0, abs=1e-6)
    assert found.linear_probe < 0.2
    assert found.scaled_probe < 0.2


def test_objectives_are_the_library_s_losses() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 9, 5)
    terms = hyperkern.align_uniform(x, y)
    torch.testing.assert_close(ALIGNMENT.loss(x, y, None), terms.alignment)
    torch.testing.assert_close(ALIGN_UNIFORM.loss(x, y, None), terms.alignment + terms.uniformity)
