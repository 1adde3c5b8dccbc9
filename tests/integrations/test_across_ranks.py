"""The drop-ins in several processes: on each of them the value and the gradients of the original, run beside it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from oracle import assert_close
from parity import library, relative_error
from ranks import RankError, Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern as hk
from hyperkern.distributed import ranks as transports
from hyperkern.integrations import lightly, open_clip, sentence_transformers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

SIZES = [2, 3]
ROWS, DIM = 5, 4
Loss = Callable[..., Tensor]
# Value and gradients.
Result = list[Tensor]


def own_features(rank: int, count: int, rows: int = ROWS, seed: int = 0) -> list[Tensor]:
    """Features of a process, related as positives are."""
    draw = torch.Generator().manual_seed(100 * seed + rank)
    first, *others = torch.randn(count, rows, DIM, generator=draw, dtype=torch.float64)
    return [first, *(first + other for other in others)]


def value_and_grads(loss: Loss, *args: Tensor, factor: float = 1.0) -> Result:
    """On a process: the loss, and the gradient of ``factor`` times the loss for each argument."""
    leaves = [arg.detach().clone().requires_grad_() for arg in args]
    value = loss(*leaves)
    grads = torch.autograd.grad(factor * value, leaves, allow_unused=True)
    return [value.detach(), *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, grads, strict=True))]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for actual, truth in zip(found, expected, strict=True):
        assert relative_error(actual, truth) <= tolerance


def averaged(tensor: Tensor) -> Tensor:
    """What DDP makes of the gradients of a parameter."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def parity(
    ours: Loss,
    original: Loss,
    features: list[Tensor],
    shared: Sequence[Tensor] = (),
    *,
    factor: float = 1.0,
    tolerance: float = 1e-6,
) -> None:
    """Value and gradients of the features on this process, and the mean over processes of those of parameters.

    In float64 to 1e-10; in float32 to ``tolerance``, or to twice what the original loses, of what float64 makes of the
    same numbers, for all features together, since some may matter little beside the others.
    """
    count = 1 + len(features)
    rounded = [t.float() for t in (*features, *shared)]
    args = [t.double() for t in rounded]
    truths = value_and_grads(original, *args, factor=factor)
    found = value_and_grads(ours, *args, factor=factor)
    assert all(t.dtype == torch.float64 for t in found)
    assert_same(found[:count], truths[:count])
    assert_same([averaged(g) for g in found[count:]], [averaged(g) for g in truths[count:]])
    of_float32 = (value_and_grads(loss, *rounded, factor=factor) for loss in (ours, original))
    joined = [(value, torch.stack(grads[: count - 1])) for value, *grads in (*of_float32, truths)]
    for actual, peer, truth in zip(*joined, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, truth) <= max(tolerance, 2 * relative_error(peer, truth))


# --- OpenCLIP


def unit(features: list[Tensor]) -> list[Tensor]:
    return [F.normalize(side, dim=1) for side in features]


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


CLIP_OPTIONS = [{"local_loss": local, "gather_with_grad": grad} for local in (False, True) for grad in (False, True)]


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


def distance(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(1)


def lightly_losses(name: str, options: dict[str, Any]) -> list[nn.Module]:
    if "weight_fn" in options:
        options = {**options, "weight_fn": distance}
    return [getattr(m, name)(**options, gather_distributed=True) for m in (lightly, library("lightly.loss"))]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def of_lightly(rank: int, name: str, options: dict[str, Any], rows: int) -> None:
    # Gradients that differ between processes are what the sum over them is made of.
    parity(*lightly_losses(name, options), own_features(rank, 2, rows), factor=1.0 + rank)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("name", "options"), LIGHTLY, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_lightly(ranks: Ranks, size: int, name: str, options: dict[str, Any], rows: int) -> None:
    library("lightly.loss")
    ranks(size).run(of_lightly, name, options, rows)


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


class Encoder(nn.Module):
    """Embeddings with the parameters of all columns; like a module of the library it adds to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        features["sentence_embedding"] = torch.tanh(self.linear(features["input_ids"]))
        return features


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


def ranking_losses(name: str, options: dict[str, Any]) -> list[Any]:
    theirs = library("sentence_transformers.sentence_transformer.losses")
    if "similarity_fct" in options:
        util = library("sentence_transformers.util")
        options = {**options, "similarity_fct": getattr(util, options["similarity_fct"])}
    torch.manual_seed(1)
    model = nn.Sequential(Encoder()).double()
    return [getattr(m, name)(model, **options, gather_across_devices=True) for m in (sentence_transformers, theirs)]


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


# --- What DistributedDataParallel makes of it


class TwoTowers(nn.Module):
    """Unit rows of two encoders, a scale and a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.towers = nn.ModuleList(nn.Linear(DIM, DIM, dtype=torch.float64) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        rows = (F.normalize(tower(x), dim=1) for tower, x in zip(self.towers, inputs, strict=True))
        return *rows, self.log_scale.exp(), self.bias


def parameter_grads(model: nn.Module, loss: Loss, inputs: list[Tensor]) -> Result:
    model.zero_grad()
    loss(*model(*inputs)).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def whole_clip(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return hk.clip_loss(x, y, logit_scale=scale, normalize=False, **options) + 0 * bias


def whole_siglip(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, **options: Any) -> Tensor:
    return hk.siglip(x, y, logit_scale=scale, logit_bias=bias, normalize=False, **options)


def own_losses_of(loss: Loss) -> Loss:
    """The losses of the own anchors, reduced on each rank."""
    return lambda *args: loss(*args, group=hk.Group(), reduction="none").mean()


# The loss of all rows; whether by the original that is named, or by what stands for it here; and what is left by DDP
# of the gradient of the features and of the scale, as a factor of the complete one.
AFTER_DDP: dict[str, tuple[str, float, float]] = {
    "default": ("clip", 1, 1),
    "sum": ("clip", 0.5, 0.5),
    "none": ("clip", 1, 1),
    "siglip": ("siglip", 1, 1),
    "nt_xent none": ("nt_xent", 1, 1),
    "ClipLoss": ("clip", 0.5, 1),
    "ClipLoss gather_with_grad": ("clip", 1, 1),
    "ClipLoss local_loss gather_with_grad": ("clip", 1, 1),
    "SigLipLoss": ("siglip", 1, 1),
    "NTXentLoss": ("nt_xent", 1, 1),
    "DCLLoss": ("dcl", 1, 1),
    "MultipleNegativesRankingLoss": ("info_nce", 1, 1),
}


def losses_under_ddp(name: str) -> list[Loss]:
    """The loss of a rank: here alone, or here and of the original."""
    if name == "default":
        return [lambda *args: whole_clip(*args, group=hk.Group())]
    if name == "sum":
        return [lambda *args: whole_clip(*args, group=hk.Group(grad_scale="sum"))]
    if name == "none":
        return [own_losses_of(whole_clip)]
    if name == "siglip":
        return [lambda *args: whole_siglip(*args, group=hk.Group())]
    if name == "nt_xent none":
        return [lambda x, y, scale, bias: own_losses_of(hk.nt_xent)(x, y) + 0 * (scale + bias)]
    loss, *switches = name.split()
    if loss in ("ClipLoss", "SigLipLoss"):
        options = {"rank": dist.get_rank(), "world_size": dist.get_world_size(), **dict.fromkeys(switches, True)}
        return [getattr(m, loss)(**options) for m in (open_clip, library("open_clip.loss"))]
    if loss == "MultipleNegativesRankingLoss":
        pair = [m.compute_loss_from_embeddings for m in ranking_losses(loss, {})]
        return [lambda x, y, s, b, of=of: of([x, y], torch.empty(0)) + 0 * (s + b) for of in pair]
    return [lambda x, y, s, b, of=of: of(x, y) + 0 * (s + b) for of in lightly_losses(loss, {})]


def under_ddp(rank: int, name: str) -> None:
    kind, of_features, of_scale = AFTER_DDP[name]
    everything: dict[str, Loss] = {
        "clip": whole_clip,
        "siglip": whole_siglip,
        "nt_xent": lambda x, y, s, b: hk.nt_xent(x, y) + 0 * (s + b),
        "dcl": lambda x, y, s, b: hk.dcl(x, y) + 0 * (s + b),
        "info_nce": lambda x, y, s, b: hk.info_nce(x, y, temperature=0.05) + 0 * (s + b),
    }
    inputs = [own_features(r, 2, seed=3) for r in range(dist.get_world_size())]
    model = TwoTowers()
    complete = parameter_grads(model, everything[kind], [torch.cat(side) for side in zip(*inputs, strict=True)])
    factors = [of_features if key.startswith("towers") else of_scale for key, _ in model.named_parameters()]
    expected = [factor * grad for factor, grad in zip(factors, complete, strict=True)]
    averaging = DistributedDataParallel(model)
    for loss in losses_under_ddp(name):
        for found, truth in zip(parameter_grads(averaging, loss, inputs[rank]), expected, strict=True):
            assert_close(found, truth)


@pytest.mark.parametrize("name", AFTER_DDP)
def test_after_ddp(ranks: Ranks, name: str) -> None:
    for module in ("open_clip.loss", "lightly.loss", "sentence_transformers.sentence_transformer.losses"):
        library(module)
    ranks(2).run(under_ddp, name)


# --- What no original does: different numbers of rows


COUNTS = (3, 1, 6)


def all_features(count: int) -> list[Tensor]:
    of_ranks = [own_features(rank, count, rows) for rank, rows in enumerate(COUNTS)]
    return [torch.cat(side) for side in zip(*of_ranks, strict=True)]


def own_losses(name: str) -> tuple[Loss, Loss]:
    """A drop-in, and the losses of all anchors in one process, in views one after the other."""
    rank, size = dist.get_rank(), dist.get_world_size()
    processes = {"rank": rank, "world_size": size}
    clip_options = {"logit_scale": 5.0, "normalize": False, "reduction": "none"}
    ranking = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), 10.0, gather_across_devices=True)
    clip_loss = open_clip.ClipLoss(local_loss=True, gather_with_grad=True, **processes)
    cases: dict[str, tuple[Loss, Loss]] = {
        "clip": (lambda x, y: clip_loss(x, y, 5.0), lambda x, y: hk.clip_loss(x, y, **clip_options)),
        "nt_xent": (
            lightly.NTXentLoss(gather_distributed=True),
            lambda x, y: hk.nt_xent(x, y, reduction="none").view(2, -1).mean(0),
        ),
        "dcl": (
            lightly.DCLLoss(gather_distributed=True),
            lambda x, y: hk.dcl(x, y, reduction="none").view(2, -1).mean(0),
        ),
        "ranking": (
            lambda x, y: ranking.compute_loss_from_embeddings([x, y]),
            lambda x, y: hk.info_nce(x, y, temperature=0.1, reduction="none"),
        ),
    }
    return cases[name]


def uneven(rank: int, name: str) -> None:
    """A process has the mean of its own anchors, with the gradient of the sum of these means."""
    drop_in, one_process = own_losses(name)
    found = value_and_grads(drop_in, *own_features(rank, 2, COUNTS[rank]))
    means: list[Tensor] = []

    def sum_of_means(x: Tensor, y: Tensor) -> Tensor:
        means.extend(part.mean() for part in one_process(x, y).split(COUNTS))
        return torch.stack(means).sum()

    _, *grads = value_and_grads(sum_of_means, *all_features(2))
    assert_same(found, [means[rank].detach(), *(grad.split(COUNTS)[rank] for grad in grads)])


@pytest.mark.parametrize("name", ["clip", "nt_xent", "dcl", "ranking"])
def test_different_numbers_of_rows(ranks: Ranks, name: str) -> None:
    ranks(3).run(uneven, name)


def uneven_means(rank: int) -> None:
    """Of the losses of all pairs DDP leaves the gradient of one process with the whole batch."""
    processes = {"rank": rank, "world_size": len(COUNTS)}
    own, everything = own_features(rank, 2, COUNTS[rank]), all_features(2)
    whole = value_and_grads(lambda x, y: hk.clip_loss(x, y, logit_scale=5.0, normalize=False), *everything)
    for complete in (False, True):
        clip_loss = open_clip.ClipLoss(gather_with_grad=complete, **processes)
        found = value_and_grads(lambda x, y, loss=clip_loss: loss(x, y, 5.0), *own)
        factor = len(COUNTS) if complete else 1
        assert_same(found, [whole[0], *(factor * grad.split(COUNTS)[rank] for grad in whole[1:])])
    whole = value_and_grads(
        lambda x, y: hk.siglip(x, y, logit_scale=5.0, logit_bias=-2.0, normalize=False), *everything
    )
    siglip_loss = open_clip.SigLipLoss(**processes)
    value, *grads = value_and_grads(lambda x, y: siglip_loss(x, y, 5.0, -2.0), *own)
    assert_same([averaged(value)], [whole[0]])
    assert_same(grads, [len(COUNTS) * grad.split(COUNTS)[rank] for grad in whole[1:]])


def test_means_over_different_numbers_of_rows(ranks: Ranks) -> None:
    ranks(3).run(uneven_means)


def anchors_alone(rank: int) -> None:
    """Candidates that are constants, of processes with different numbers of pairs."""
    loss = open_clip.ClipLoss(local_loss=True, rank=rank, world_size=len(COUNTS))
    found = value_and_grads(lambda x, y: loss(x, y, 5.0), *own_features(rank, 2, COUNTS[rank]))
    x_all, y_all = all_features(2)
    first = sum(COUNTS[:rank])
    labels = torch.arange(first, first + COUNTS[rank])

    def dense(x: Tensor, y: Tensor) -> Tensor:
        return (F.cross_entropy(5 * x @ y_all.T, labels) + F.cross_entropy(5 * y @ x_all.T, labels)) / 2

    assert_same(found, value_and_grads(dense, *own_features(rank, 2, COUNTS[rank])))


def test_anchors_alone_with_different_numbers_of_rows(ranks: Ranks) -> None:
    ranks(3).run(anchors_alone)


def uneven_bank(rank: int) -> Tensor:
    bank = lightly.MemoryBankModule((12, DIM), gather_distributed=True).double()
    (rows,) = own_features(rank, 1, COUNTS[rank])
    bank(rows, update=True)
    assert torch.equal(bank.bank[: sum(COUNTS)], all_features(1)[0])
    return bank.bank


def test_a_bank_of_different_numbers_of_rows(ranks: Ranks) -> None:
    ranks(3).run(uneven_bank)


def without_rows(rank: int, name: str) -> Result:
    drop_in, _ = own_losses(name)
    return value_and_grads(drop_in, *own_features(rank, 2, 4 * rank))


@pytest.mark.parametrize("name", ["clip", "nt_xent", "dcl"])
def test_a_process_without_rows(ranks: Ranks, name: str) -> None:
    (value, *_), with_rows = ranks(2).run(without_rows, name)
    assert value == 0
    assert all(t.isfinite().all() for t in with_rows)


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


# --- Errors


def wrong_processes(rank: int) -> None:
    for name in ("ClipLoss", "SigLipLoss"):
        for processes in ({"rank": rank, "world_size": 3}, {"rank": 1 - rank, "world_size": 2}):
            loss = getattr(open_clip, name)(**processes)
            with pytest.raises(ValueError, match=f"this is rank {rank} of 2"):
                loss(*own_features(rank, 2), 1.0, None)


def test_a_rank_that_is_another(ranks: Ranks) -> None:
    ranks(2).run(wrong_processes)


def different_arguments(rank: int, name: str) -> None:
    x, y = own_features(rank, 2)
    processes = {"rank": rank, "world_size": 2}
    options: dict[str, Any] = {"temperature": 0.1 + rank, "gather_distributed": True}
    if name == "ranking":
        loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), 1.0 + rank, gather_across_devices=True)
        loss.compute_loss_from_embeddings([x, y])
    elif name in ("ClipLoss", "SigLipLoss"):
        getattr(open_clip, name)(**processes)(x, y, 1.0 + rank, 0.0)
    elif name == "MemoryBankModule":
        lightly.MemoryBankModule((9, DIM), True)(x if rank else x[:, :2], update=True)
    else:
        getattr(lightly, name)(**options)(x, y)


@pytest.mark.parametrize(
    "name", ["ClipLoss", "SigLipLoss", "NTXentLoss", "DCLLoss", "DCLWLoss", "MemoryBankModule", "ranking"]
)
def test_different_arguments(ranks: Ranks, name: str) -> None:
    with pytest.raises(RankError, match=r"(?s)rank 0:.*must call the same loss.*rank 1:.*must call the same loss"):
        ranks(2).run(different_arguments, name)


def in_one_process_nothing_is_gathered(rank: int) -> None:
    x, y = own_features(rank, 2)
    assert torch.equal(open_clip.ClipLoss()(x, y, 1.0), hk.clip_loss(x, y, logit_scale=1.0, normalize=False))
    assert torch.equal(lightly.NTXentLoss()(x, y), hk.nt_xent(x, y))
    ranking_loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity())
    assert_close(ranking_loss.compute_loss_from_embeddings([x, y]), hk.info_nce(x, y, temperature=0.05))


def test_without_an_option_each_process_is_alone(ranks: Ranks) -> None:
    ranks(2).run(in_one_process_nothing_is_gathered)
