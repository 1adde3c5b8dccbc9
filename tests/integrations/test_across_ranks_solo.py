"""The drop-ins for solo-learn and SimCSE in several processes, against formulas of all rows, written densely."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from across_ranks import ROWS, assert_same, own_features, parity
from parity import value_and_grads
from ranks import Ranks
from torch import Tensor

from hyperkern.integrations.simcse import SimCSELoss, simcse_loss
from hyperkern.integrations.solo_learn import mocov3_loss_func, nnclr_loss_func, simclr_loss_func

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

SIZES = [2, 3]
UNEVEN = (3, 1, 6)


class Everywhere(torch.autograd.Function):
    """The rows of all processes; the gradient is the sum over them all, or the own one alone."""

    @staticmethod
    def forward(ctx, x: Tensor, summed: bool) -> Tensor:
        ctx.summed, ctx.rows = summed, len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone()
        if ctx.summed:
            dist.all_reduce(grad)
        return grad.split(ctx.rows)[dist.get_rank()], None


def everywhere(x: Tensor, summed: bool = True) -> Tensor:
    return Everywhere.apply(x, summed)


# --- solo-learn


def indexes_of(rank: int, kind: str, rows: int = ROWS) -> Tensor:
    """Of two views; samples of one process, classes of them all."""
    own = torch.arange(rows) + 100 * rank if kind == "samples" else torch.arange(rows) % 3
    return own.repeat(2)


def simclr(z: Tensor, indexes: Tensor, temperature: float | Tensor) -> Tensor:
    unit = F.normalize(z, dim=1)
    others, ids = everywhere(unit), everywhere(indexes)
    kernel = (unit @ others.T / temperature).exp()
    rows = torch.arange(len(z))
    itself = torch.zeros_like(kernel, dtype=torch.bool)
    itself[rows, rows + len(z) * dist.get_rank()] = True
    same = indexes[:, None] == ids
    positives = (kernel * (same & ~itself)).sum(1)
    return -(positives / (positives + (kernel * ~same).sum(1))).log().mean()


def nnclr(x: Tensor, y: Tensor, temperature: float | Tensor, constant: bool = False) -> Tensor:
    x, y = (F.normalize(side, dim=1) for side in (x, y))
    logits = x @ everywhere(y.detach() if constant else y).T / temperature
    return F.cross_entropy(logits, torch.arange(len(x)) + len(x) * dist.get_rank())


def mocov3(x: Tensor, y: Tensor, temperature: float | Tensor) -> Tensor:
    return 2 * temperature * nnclr(x, y, temperature, constant=True)


def of_views(rank: int, kind: str, rows: int) -> None:
    indexes, z = indexes_of(rank, kind, rows), torch.cat(own_features(rank, 2, rows))
    for temperature in (0.2, 0.5):
        pair = (lambda z, of=of, t=temperature: of(z, indexes, t) for of in (simclr_loss_func, simclr))
        # Gradients that differ between processes are what the sum over them is made of.
        parity(*pair, [z], factor=1.0 + rank)
    learned = torch.tensor(0.4, dtype=torch.float64)
    parity(*(lambda z, t, of=of: of(z, indexes, t) for of in (simclr_loss_func, simclr)), [z], [learned])


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("kind", ["samples", "classes"])
@pytest.mark.parametrize("size", SIZES)
def test_simclr(ranks: Ranks, size: int, kind: str, rows: int) -> None:
    ranks(size).run(of_views, kind, rows)


def of_keys(rank: int, ours: Callable[..., Tensor], dense: Callable[..., Tensor], rows: int) -> None:
    features = own_features(rank, 2, rows)
    parity(*(lambda x, y, of=of: of(x, y, 0.3) for of in (ours, dense)), features, factor=1.0 + rank)
    parity(ours, dense, features, [torch.tensor(0.4, dtype=torch.float64)])


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("ours", "dense"), [(nnclr_loss_func, nnclr), (mocov3_loss_func, mocov3)])
@pytest.mark.parametrize("size", SIZES)
def test_keys(ranks: Ranks, size: int, ours, dense, rows: int) -> None:
    ranks(size).run(of_keys, ours, dense, rows)


def uneven_views(rank: int) -> None:
    """A process has the mean of its own rows, with the gradient of the sum of these means."""
    z, indexes = torch.cat(own_features(rank, 2, UNEVEN[rank])), indexes_of(rank, "classes", UNEVEN[rank])
    found = value_and_grads(lambda z: simclr_loss_func(z, indexes, 0.5), z)
    counts = [2 * rows for rows in UNEVEN]
    of_ranks = [torch.cat(own_features(r, 2, rows)) for r, rows in enumerate(UNEVEN)]
    ids = torch.cat([indexes_of(r, "classes", rows) for r, rows in enumerate(UNEVEN)])
    means: list[Tensor] = []

    def sum_of_means(z: Tensor) -> Tensor:
        unit = F.normalize(z, dim=1)
        kernel = (unit @ unit.T / 0.5).exp() * (1 - torch.eye(len(unit)))
        losses = -((kernel * (ids[:, None] == ids)).sum(1) / kernel.sum(1)).log()
        means.extend(part.mean() for part in losses.split(counts))
        return torch.stack(means).sum()

    _, grad = value_and_grads(sum_of_means, torch.cat(of_ranks))
    assert_same(found, [means[rank].detach(), grad.split(counts)[rank]])


def test_different_numbers_of_rows(ranks: Ranks) -> None:
    ranks(3).run(uneven_views)


def a_lonely_sample(rank: int) -> None:
    indexes = torch.arange(2 * ROWS) % ROWS  # on rank 1 another sample in place of a partner
    indexes[-1] = 77 if rank else indexes[-1]
    with pytest.raises(ValueError, match="indexes must name each sample at least twice"):
        simclr_loss_func(torch.cat(own_features(rank, 2)), indexes + 100 * rank)
    with pytest.raises(ValueError, match="must call the same loss"):
        simclr_loss_func(torch.cat(own_features(rank, 2)), indexes, 0.1 + rank)


def test_all_processes_raise(ranks: Ranks) -> None:
    ranks(2).run(a_lonely_sample)


# --- SimCSE


def simcse(z1: Tensor, z2: Tensor, z3: Tensor | None, temp: float, weight: float) -> Tensor:
    """All sentences on every process, of which the own ones alone have a gradient."""
    z1, z2, z3 = (None if side is None else F.normalize(everywhere(side, summed=False), dim=1) for side in (z1, z2, z3))
    logits = z1 @ z2.T / temp
    if z3 is not None:
        logits = torch.cat([logits, z1 @ z3.T / temp + weight * torch.eye(len(z1), dtype=z1.dtype)], 1)
    return F.cross_entropy(logits, torch.arange(len(z1)))


def of_sentences(rank: int, count: int, weight: float, rows: int) -> None:
    def of(loss: Callable[..., Tensor], *further: bool) -> Callable[..., Tensor]:
        return lambda *z: loss(*z, *[None] * (3 - len(z)), 0.2, weight, *further)

    module = SimCSELoss(0.2, weight, gather_distributed=True)
    features = own_features(rank, count, rows)
    parity(of(simcse_loss, True), of(simcse), features, factor=1.7)
    assert torch.equal(module(*features), of(simcse_loss, True)(*features))
    alone = of(simcse_loss)(*features)
    assert torch.equal(module.eval()(*features), alone)
    assert not torch.equal(module.train()(*features), alone)


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize(("count", "weight"), [(2, 0.0), (3, 0.0), (3, 1.5), (3, -4.0)])
@pytest.mark.parametrize("size", SIZES)
def test_sentences(ranks: Ranks, size: int, count: int, weight: float, rows: int) -> None:
    ranks(size).run(of_sentences, count, weight, rows)


def uneven_sentences(rank: int, counts: tuple[int, ...]) -> None:
    own = own_features(rank, 3, counts[rank])
    found = value_and_grads(lambda *z: simcse_loss(*z, 0.2, 1.5, gather_distributed=True), *own)
    together = [torch.cat(side) for side in zip(*(own_features(r, 3, n) for r, n in enumerate(counts)), strict=True)]
    value, *grads = value_and_grads(lambda *z: simcse_loss(*z, 0.2, 1.5), *together)
    for actual, truth in zip(found, [value, *(grad.split(counts)[rank] for grad in grads)], strict=True):
        torch.testing.assert_close(actual, truth)  # of no rows too


@pytest.mark.parametrize("counts", [UNEVEN, (4, 0, 2)], ids=str)
def test_different_numbers_of_sentences(ranks: Ranks, counts: tuple[int, ...]) -> None:
    ranks(3).run(uneven_sentences, counts)


def different_options(rank: int) -> None:
    z = own_features(rank, 3)
    with pytest.raises(ValueError, match="must call the same loss"):
        simcse_loss(*z, 0.2 + rank, gather_distributed=True)
    with pytest.raises(ValueError, match="refused on rank 1" if rank == 0 else "^temp must be"):
        simcse_loss(*z, 0.2 if rank == 0 else -1.0, gather_distributed=True)


def test_what_differs_is_refused_everywhere(ranks: Ranks) -> None:
    ranks(2).run(different_options)
