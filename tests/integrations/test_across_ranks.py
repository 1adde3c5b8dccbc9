"""The drop-ins in several processes: on each of them the value and the gradients of the original, run beside it."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from across_ranks import (
    CLIP_OPTIONS,
    DIM,
    ROWS,
    Loss,
    Result,
    assert_same,
    lightly_losses,
    own_features,
    parity,
    ranking_losses,
    unit,
)
from oracle import assert_close
from parity import library, relative_error, value_and_grads
from ranks import Ranks
from torch import Tensor, nn

from hyperkern.distributed import ranks as transports
from hyperkern.integrations import lightly, open_clip, sentence_transformers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

SIZES = [2, 3]


# --- OpenCLIP


def clip(rank: int, options: dict[str, Any], rows: int, learned: bool) -> None:
    theirs = library("open_clip.loss")
    options = {**options, "rank": rank, "world_size": dist.get_world_size()}
    both = open_clip.ClipLoss(**options), theirs.ClipLoss(**options)
    features = unit(own_features(rank, 2, rows))
    if learned:
        scale = torch.tensor(9.0, dtype=torch.float64)
        parity(*both, features, [scale], factor=1.7)
    else:
        parity(*(lambda x, y, loss=loss: loss(x, y, 8.0) for loss in both), features)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_clip(ranks: Ranks, size: int, options: dict[str, bool], rows: int, learned: bool) -> None:
    library("open_clip.loss")
    ranks(size).run(clip, options, rows, learned)


def scale_of_anchors_alone(rank: int) -> None:
    """With candidates that are constants a process has the same part of the scale's gradient as the original."""
    theirs = library("open_clip.loss")
    options = {"local_loss": True, "rank": rank, "world_size": dist.get_world_size()}
    args = *unit(own_features(rank, 2)), torch.tensor([9.0], dtype=torch.float64)
    found, expected = (value_and_grads(module.ClipLoss(**options), *args) for module in (open_clip, theirs))
    assert_same(found, expected)


def test_scale_of_anchors_alone(ranks: Ranks) -> None:
    library("open_clip.loss")
    ranks(2).run(scale_of_anchors_alone)


def frozen_tower(rank: int, options: dict[str, Any]) -> None:
    theirs = library("open_clip.loss")
    options = {**options, "rank": rank, "world_size": dist.get_world_size()}
    images, texts = unit(own_features(rank, 2))
    both = open_clip.ClipLoss(**options), theirs.ClipLoss(**options)
    parity(*(lambda y, loss=loss: loss(images.to(y.dtype), y, 8.0) for loss in both), [texts])


@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
def test_a_frozen_tower(ranks: Ranks, options: dict[str, bool]) -> None:
    library("open_clip.loss")
    ranks(2).run(frozen_tower, options)


def siglip(rank: int, dist_impl: str, rows: int) -> None:
    theirs = library("open_clip.loss")
    options = {"dist_impl": dist_impl, "rank": rank, "world_size": dist.get_world_size()}
    both = open_clip.SigLipLoss(**options), theirs.SigLipLoss(**options)
    features = unit(own_features(rank, 2, rows))
    parity(*(lambda x, y, loss=loss: loss(x, y, 5.0, None) for loss in both), features)
    scale, bias = torch.tensor(6.0, dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)
    parity(*both, features, [scale, bias], factor=0.3)
    # The parts of the processes are the same as well.
    found, expected = (value_and_grads(loss, *features, scale, bias) for loss in both)
    assert_same(found, expected)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("dist_impl", ["bidir", "shift", "reduce", "gather"])
@pytest.mark.parametrize("size", SIZES)
def test_siglip(ranks: Ranks, size: int, dist_impl: str, rows: int) -> None:
    library("open_clip.loss")
    ranks(size).run(siglip, dist_impl, rows)


def clip_bias(rank: int, options: dict[str, Any]) -> Result:
    loss = open_clip.ClipLoss(**options, rank=rank, world_size=dist.get_world_size())
    numbers = [torch.tensor(number, dtype=torch.float64) for number in (8.0, -3.0)]
    return value_and_grads(loss, *unit(own_features(rank, 2)), *numbers)


@pytest.mark.parametrize("options", CLIP_OPTIONS, ids=str)
def test_the_bias_of_clip(ranks: Ranks, options: dict[str, bool]) -> None:
    for *_, of_bias in ranks(2).run(clip_bias, options):
        assert torch.equal(of_bias, torch.zeros_like(of_bias))


# --- lightly


LIGHTLY = [
    ("NTXentLoss", {}),
    ("NTXentLoss", {"temperature": 0.2}),
    ("DCLLoss", {}),
    ("DCLLoss", {"temperature": 0.5, "weight_fn": "distance"}),
    ("DCLWLoss", {}),
    ("DCLWLoss", {"temperature": 0.3, "sigma": 0.9}),
]


def of_lightly(rank: int, name: str, options: dict[str, Any], rows: int) -> None:
    # Gradients that differ between processes are what the sum over them is made of.
    parity(*lightly_losses(name, options), own_features(rank, 2, rows), factor=1.0 + rank)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("name", "options"), LIGHTLY, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_lightly(ranks: Ranks, size: int, name: str, options: dict[str, Any], rows: int) -> None:
    library("lightly.loss")
    ranks(size).run(of_lightly, name, options, rows)


def learned_temperature(rank: int, name: str, options: dict[str, Any]) -> None:
    def of(module: Any) -> Loss:
        def loss(x: Tensor, y: Tensor, temperature: Tensor) -> Tensor:
            value: Tensor = getattr(module, name)(**options, temperature=temperature, gather_distributed=True)(x, y)
            return value

        return loss

    pair = [of(module) for module in (lightly, library("lightly.loss"))]
    parity(*pair, own_features(rank, 2), [torch.tensor(0.4, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("name", "options"),
    [("NTXentLoss", {}), ("DirectCLRLoss", {"loss_dim": 2}), ("DCLLoss", {}), ("DCLWLoss", {"sigma": 0.9})],
    ids=str,
)
@pytest.mark.parametrize("size", SIZES)
def test_a_learned_temperature_of_lightly(ranks: Ranks, size: int, name: str, options: dict[str, Any]) -> None:
    library("lightly.loss")
    ranks(size).run(learned_temperature, name, options)


def memory_bank(rank: int, gather: bool, rows: int) -> Tensor:
    """Four steps over the end of the bank; the banks are those of the original."""
    banks = {"temperature": 0.3, "memory_bank_size": (2 * rows * dist.get_world_size() + 1, DIM)}
    pair = []
    for module in (lightly, library("lightly.loss")):
        torch.manual_seed(0)
        pair.append(module.NTXentLoss(**banks, gather_distributed=gather).double())
    for step in range(4):
        features = own_features(rank, 2, rows, seed=step)
        found, expected = (value_and_grads(loss, *features) for loss in pair)
        assert_same(found, expected)
        mine, theirs = (loss.memory_bank for loss in pair)
        assert_close(mine.bank, theirs.bank)
        assert torch.equal(mine.bank_ptr, theirs.bank_ptr)
    return mine.bank


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_a_memory_bank(ranks: Ranks, gather: bool, rows: int) -> None:
    library("lightly.loss")
    first, second = ranks(2).run(memory_bank, gather, rows)
    assert torch.equal(first, second) == gather


# --- Sentence Transformers


ALL_DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
RANKING: list[tuple[int, dict[str, Any]]] = [
    (0, {}),
    (2, {"scale": 10.0}),
    (0, {"similarity_fct": "dot_score", "scale": 1.0}),
    (0, {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}),
    *((hard, {"directions": ALL_DIRECTIONS}) for hard in (0, 1)),
    *((1, {"directions": ("query_to_doc", more)}) for more in ALL_DIRECTIONS[1:]),
    *(
        (2, {"hardness_mode": mode, "hardness_strength": 5.0, "directions": directions})
        for mode in ("in_batch_negatives", "hard_negatives", "all_negatives")
        for directions in (ALL_DIRECTIONS[:1], ALL_DIRECTIONS)
    ),
]


def ranking(rank: int, hard: int, options: dict[str, Any], rows: int, by_ring: bool) -> None:
    both = ranking_losses("MultipleNegativesRankingLoss", options)
    labels = torch.empty(0)
    losses = (lambda *columns, loss=loss: loss.compute_loss_from_embeddings(list(columns), labels) for loss in both)
    kept, transports.GATHER_BYTES = transports.GATHER_BYTES, 0 if by_ring else transports.GATHER_BYTES
    try:
        # Logits of up to 25, whose rounding is a relative error of the weights.
        parity(*losses, own_features(rank, 2 + hard, rows), factor=1.0 + rank, tolerance=2e-6)
    finally:
        transports.GATHER_BYTES = kept


@pytest.mark.parametrize(("hard", "options"), RANKING, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_ranking(ranks: Ranks, size: int, hard: int, options: dict[str, Any]) -> None:
    library("sentence_transformers.sentence_transformer.losses")
    for rows, by_ring in ((1, False), (ROWS, False), (ROWS, True)):
        ranks(size).run(ranking, hard, options, rows, by_ring)


def whole_model(rank: int, name: str, more: dict[str, Any], hard: int, options: dict[str, Any]) -> None:
    """Through the model, where the gradient of a parameter is what all columns of the process make of it."""
    results = []
    for loss in ranking_losses(name, {**options, **more}):
        features = [{"input_ids": column} for column in own_features(rank, 2 + hard)]
        value = loss(features, torch.empty(0))
        value.backward()
        results.append([value.detach(), *(parameter.grad.clone() for parameter in loss.model.parameters())])
        loss.zero_grad()
    assert_same(*results)


@pytest.mark.parametrize(
    ("name", "more"),
    [("MultipleNegativesRankingLoss", {}), ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 2})],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize(("hard", "options"), RANKING, ids=str)
def test_the_model(ranks: Ranks, name: str, more: dict[str, Any], hard: int, options: dict[str, Any]) -> None:
    library("sentence_transformers.sentence_transformer.losses")
    ranks(2).run(whole_model, name, more, hard, options)


# --- Half precision, and without gradients


def every_drop_in() -> list[Loss]:
    processes = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    ranking_loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), gather_across_devices=True)
    found: list[Loss] = [lambda x, y: ranking_loss.compute_loss_from_embeddings([x, y])]
    for loss in (*(open_clip.ClipLoss(**o, **processes) for o in CLIP_OPTIONS), open_clip.SigLipLoss(**processes)):
        found.append(lambda x, y, loss=loss: loss(x, y, torch.tensor(3.0), torch.tensor(-1.0)))
    for name in ("NTXentLoss", "DCLLoss", "DCLWLoss"):
        found.append(getattr(lightly, name)(gather_distributed=True))
    return found


def half_precision(rank: int) -> None:
    features = [side.bfloat16() for side in own_features(rank, 2)]
    for loss in every_drop_in():
        value, *grads = value_and_grads(loss, *features)
        truth, *true_grads = value_and_grads(loss, *(side.double() for side in features))
        assert value.dtype == torch.float32
        assert relative_error(value, truth) <= 1e-5
        for grad, true_grad in zip(grads, true_grads, strict=True):
            assert grad.dtype == torch.bfloat16
            assert relative_error(grad, true_grad) <= 2**-7
        with torch.no_grad():
            assert torch.equal(loss(*features), value)


def test_half_precision(ranks: Ranks) -> None:
    ranks(2).run(half_precision)
