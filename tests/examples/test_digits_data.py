import torch

from examples.digits.data import augment, load
from examples.digits.encoder import new_encoder

CPU = torch.device("cpu")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_split_is_fixed_and_disjoint() -> None:
    first, second = load(CPU), load(CPU)
    assert torch.equal(first.held_out_images, second.held_out_images)
    assert len(first.train_images) + len(first.held_out_images) == 1797
    assert len(first.train_images) == len(first.train_labels)
    assert set(first.held_out_labels) == set(range(10))
    # A few of the 1797 scans may be alike, but the two parts are not drawn from the same rows.
    assert torch.cdist(first.held_out_images.flatten(1), first.train_images.flatten(1)).amin(1).median() > 0.1


def test_augment_keeps_shape_dtype_and_range() -> None:
    images = load(CPU).train_images[:100]
    views = augment(images, generator(0))
    assert views.shape == images.shape
    assert views.dtype == images.dtype
    assert views.min() >= 0
    assert views.max() <= 1


def test_views_differ_from_each_other_but_not_between_equal_seeds() -> None:
    images = load(CPU).train_images[:100]
    source = generator(0)
    x, y = augment(images, source), augment(images, source)
    assert ((x - y).flatten(1).norm(dim=1) > 0.1).all()
    assert torch.equal(x, augment(images, generator(0)))


def test_views_stay_closer_to_their_own_image() -> None:
    images = load(CPU).train_images[:200]
    distances = torch.cdist(augment(images, generator(0)).flatten(1), images.flatten(1))
    others = distances[~torch.eye(200, dtype=torch.bool)]
    assert distances.diagonal().mean() < 0.9 * others.mean()


def test_encoder_depends_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first, second, other = (new_encoder(8, seed, CPU).eval() for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    images = load(CPU).train_images[:10]
    assert first(images).shape == (10, 8)
    assert torch.equal(first(images), second(images))
    assert not torch.equal(first(images), other(images))
