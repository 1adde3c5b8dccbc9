"""The same in two processes, whose gradients the trainers average: DistributedDataParallel, and fully_shard."""

import warnings

import pytest
import torch.distributed as dist
from parity import library
from ranks import Ranks
from trainers import STRICT, apart, curve

from benchmarks.fit_cases import CASES
from benchmarks.fits import Plan

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

TOGETHER = (
    *("OpenCLIP, ClipLoss", "OpenCLIP, SigLipLoss", "Transformers' Trainer, CLIPModel"),
    *("SentenceTransformerTrainer, MultipleNegativesRankingLoss", "Lightning, lightly DCLLoss"),
    *("SentenceTransformerTrainer, CachedMultipleNegativesRankingLoss",),
    *("loop, lightly NTXentLoss", "fully_shard, lightly NTXentLoss"),
)


def curves(rank: int, name: str) -> list[list[float]]:
    """Of the original, of the drop-in, and of the drop-in at another temperature."""
    case = CASES[name]
    losses = (case.original, case.drop_in, lambda model: case.drop_in(model, 1.01))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own, of each other
        library(case.library)
        return [curve(case.fit, loss, Plan(rate=case.rate)) for loss in losses]


@pytest.mark.parametrize("name", TOGETHER)
def test_every_loss_of_both_is_the_originals(ranks: Ranks, name: str) -> None:
    library(CASES[name].library)
    of_ranks = ranks(2).run(curves, name)
    for original, own, wrong in of_ranks:
        assert original[-1] < 0.99 * original[0]
        assert apart(own, original) <= STRICT
        assert apart(wrong, original) > 100 * STRICT
    # Each has samples of its own.
    assert of_ranks[0][0] != of_ranks[1][0]
