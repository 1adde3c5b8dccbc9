"""The drop-ins in processes with different numbers of rows, or none, which no original allows."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from across_ranks import DIM, Loss, Result, assert_same, averaged, own_features
from parity import value_and_grads
from ranks import Ranks
from torch import Tensor, nn

import hyperkern as hk
from hyperkern.integrations import lightly, open_clip, sentence_transformers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

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
