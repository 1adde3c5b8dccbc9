"""OpenCLIP's losses of two parts, and its matrices of logits, in several processes: beside the library."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from across_ranks import CLIP_OPTIONS, DIM, ROWS, assert_same, own_features, parity, unit
from parity import library, value_and_grads
from ranks import Ranks
from torch import Tensor

from hyperkern.integrations import open_clip

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

SIZES = [2, 3]


def both(name: str, rank: int, options: dict[str, Any], *args: float) -> list[Any]:
    processes = {**options, "rank": rank, "world_size": dist.get_world_size()}
    return [getattr(module, name)(*args, **processes) for module in (open_clip, library("open_clip.loss"))]


def distillation(rank: int, options: dict[str, Any], rows: int) -> None:
    losses = both("DistillClipLoss", rank, options)
    # The second loss alone: the first is that of `ClipLoss`.
    ways = [lambda x, y, u, v, s=6.0, t=4.0, of=of: of(x, y, s, u, v, t)[1] for of in losses]
    student, teacher = unit(own_features(rank, 2, rows)), unit(own_features(rank, 2, rows, seed=1))
    scales = [torch.tensor(number, dtype=torch.float64) for number in (6.0, 4.0)]
    parity(*ways, [*student, *teacher], scales, factor=1.7)
    found, expected = (loss(*student, 6.0, *teacher, 4.0)[0] for loss in losses)
    torch.testing.assert_close(found, expected)
    # A teacher that learns nothing, as in a training.
    frozen = [lambda x, y, of=of: sum(of(x, y, 6.0, *(t.to(x.dtype) for t in teacher), 4.0)) for of in losses]
    found, expected = (value_and_grads(way, *student) for way in frozen)
    assert_same(found, expected)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_distillation(ranks: Ranks, size: int, options: dict[str, bool], rows: int) -> None:
    library("open_clip.loss")
    ranks(size).run(distillation, options, rows)


def captions(rank: int, options: dict[str, Any]) -> None:
    losses = both("CoCaLoss", rank, options, 2.0, 0.5)
    logits = torch.randn(ROWS, 4, 6, dtype=torch.float64)
    tokens = torch.randint(0, 6, (ROWS, 4))
    found, expected = (
        value_and_grads(
            lambda x, y, given, of=of: sum(of(x, y, given, tokens, 7.0)), *unit(own_features(rank, 2)), logits
        )
        for of in losses
    )
    assert_same(found, expected)


@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
def test_captions(ranks: Ranks, options: dict[str, bool]) -> None:
    library("open_clip.loss")
    ranks(2).run(captions, options)


def matrices(rank: int, options: dict[str, Any]) -> None:
    losses = both("ClipLoss", rank, options)
    features, scale = unit(own_features(rank, 2)), torch.tensor(3.0, dtype=torch.float64)
    weights = torch.randn(2, 2 * ROWS, 2 * ROWS, dtype=torch.float64)

    def weighed(loss: Any, x: Tensor, y: Tensor, s: Tensor) -> Tensor:
        logits = loss.get_logits(x, y, s)
        return sum((weight[: len(of)] * of).sum() for weight, of in zip(weights, logits, strict=True))

    found, expected = (value_and_grads(lambda *args, of=of: weighed(of, *args), *features, scale) for of in losses)
    assert_same(found, expected)
    for of in zip(*(loss.get_logits(*features, 3.0) for loss in losses), strict=True):
        torch.testing.assert_close(*of)
    biased, plain = (losses[0].get_logits(*features, 3.0, bias) for bias in (-2.0, None))
    torch.testing.assert_close(biased, tuple(of - 2 for of in plain))
    labels = [loss.get_ground_truth(torch.device("cpu"), len(biased[0])) for loss in losses]
    assert torch.equal(*labels)


@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
def test_matrices(ranks: Ranks, options: dict[str, bool]) -> None:
    library("open_clip.loss")
    ranks(2).run(matrices, options)


def uneven(rank: int, options: dict[str, Any]) -> list[Tensor]:
    rows = (3, 1, 6)[rank]
    loss = open_clip.DistillClipLoss(**options, rank=rank, world_size=3)
    student, teacher = unit(own_features(rank, 2, rows)), unit(own_features(rank, 2, rows, seed=1))
    return value_and_grads(lambda *t: loss(*t[:2], 6.0, *t[2:], 4.0)[1], *student, *teacher)


def test_distillation_with_different_numbers_of_rows(ranks: Ranks) -> None:
    """All pairs, with the complete gradient of each process's own rows."""
    library("open_clip.loss")
    sides = [
        torch.cat(of)
        for seed in (0, 1)
        for of in zip(
            *(unit(own_features(rank, 2, rows, seed=seed)) for rank, rows in enumerate((3, 1, 6))), strict=True
        )
    ]
    whole = value_and_grads(lambda *t: open_clip.DistillClipLoss()(*t[:2], 6.0, *t[2:], 4.0)[1], *sides)
    for rank, found in enumerate(ranks(3).run(uneven, {})):
        assert_same(found, [whole[0], *(grad.split([3, 1, 6])[rank] for grad in whole[1:])])


def different_teachers(rank: int) -> None:
    loss = open_clip.DistillClipLoss(rank=rank, world_size=2)
    student, teacher = own_features(rank, 2), own_features(rank, 2, ROWS - rank, seed=1)
    with pytest.raises(ValueError, match="dist_image_features must have a row for each of image_features, 5, got 4"):
        loss(*student, 6.0, *teacher, 4.0)
    loss = open_clip.DistillClipLoss(local_loss=bool(rank), rank=rank, world_size=2)
    with pytest.raises(ValueError, match="must call the same loss"):
        loss.get_logits(*student, 6.0)
    assert loss.get_logits is not None
    assert student[0].shape == (ROWS, DIM)


def test_what_differs_is_refused_everywhere(ranks: Ranks) -> None:
    ranks(2).run(different_teachers)
