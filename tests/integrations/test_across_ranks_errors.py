"""The drop-ins in several processes: what they refuse, and that without their option each process is alone."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from across_ranks import CLIP_OPTIONS, DIM, own_features
from oracle import assert_close
from ranks import Ranks
from torch import nn

import hyperkern as hk
from hyperkern.integrations import lightly, open_clip, sentence_transformers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


def wrong_processes(rank: int) -> None:
    for name in ("ClipLoss", "SigLipLoss"):
        for processes in ({"rank": rank, "world_size": 3}, {"rank": 1 - rank, "world_size": 2}):
            loss = getattr(open_clip, name)(**processes)
            with pytest.raises(ValueError, match=f"this is rank {rank} of 2"):
                loss(*own_features(rank, 2), 1.0, None)


def test_a_rank_that_is_another(ranks: Ranks) -> None:
    ranks(2).run(wrong_processes)


def different_arguments(rank: int, name: str) -> None:
    with pytest.raises(ValueError, match="must call the same loss"):
        call_with_own_arguments(rank, name)


def call_with_own_arguments(rank: int, name: str) -> None:
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
    ranks(2).run(different_arguments, name)


def features_of_another_shape(rank: int) -> None:
    batch = torch.stack([torch.stack(own_features(rank, 2))] * 2)  # (2, 2, rows, DIM)
    processes = {"rank": rank, "world_size": 2}
    for loss in (
        *(getattr(lightly, name)(gather_distributed=True) for name in ("NTXentLoss", "DCLLoss", "DCLWLoss")),
        *(lambda x, y, o=options: open_clip.ClipLoss(**o, **processes)(x, y, 1.0) for options in CLIP_OPTIONS),
        lambda x, y: open_clip.SigLipLoss(**processes)(x, y, 1.0, 0.0),
    ):
        with pytest.raises(ValueError, match=r"must have shape \((N, D|2, 5)\).* got \("):
            loss(*batch.unbind(1))


def test_features_of_another_shape(ranks: Ranks) -> None:
    ranks(2).run(features_of_another_shape)


def in_one_process_nothing_is_gathered(rank: int) -> None:
    x, y = own_features(rank, 2)
    assert torch.equal(open_clip.ClipLoss()(x, y, 1.0), hk.clip_loss(x, y, logit_scale=1.0, normalize=False))
    assert torch.equal(lightly.NTXentLoss()(x, y), hk.nt_xent(x, y))
    ranking_loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity())
    assert_close(ranking_loss.compute_loss_from_embeddings([x, y]), hk.info_nce(x, y, temperature=0.05))


def test_without_an_option_each_process_is_alone(ranks: Ranks) -> None:
    ranks(2).run(in_one_process_nothing_is_gathered)
