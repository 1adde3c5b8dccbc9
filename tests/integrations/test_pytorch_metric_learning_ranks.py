"""The library's ``DistributedLossWrapper`` around the drop-in losses, in two processes: the numbers of the original."""

import functools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from across_ranks import assert_same, own_features
from parity import library, value_and_grads
from ranks import Ranks
from torch import Tensor

from hyperkern.integrations import pytorch_metric_learning as ours

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

NAMES = ["NTXentLoss", "SupConLoss"]
LABELS = torch.tensor([0, 1, 0, 2, 1])


def wrapped(m: Any, name: str, efficient: bool, memory: bool) -> Any:
    utils = library("pytorch_metric_learning.utils.distributed")
    loss = getattr(m, name)(0.2)
    if memory:
        loss = library("pytorch_metric_learning.losses").CrossBatchMemory(loss, 4, memory_size=15)
    return utils.DistributedLossWrapper(loss, efficient=efficient)


def each_call(rank: int) -> None:
    theirs = library("pytorch_metric_learning.losses")
    labels, (x, y) = LABELS + rank, own_features(rank, 2)
    miner = library("pytorch_metric_learning.utils.distributed").DistributedMinerWrapper(
        library("pytorch_metric_learning.miners").MultiSimilarityMiner(), efficient=True
    )
    some = miner(x, labels)
    for name in NAMES:
        for efficient in (False, True):
            both = [wrapped(m, name, efficient, False) for m in (ours, theirs)]
            assert_same(*(value_and_grads(lambda x, w=w: w(x, labels), x) for w in both))
            assert_same(*(value_and_grads(lambda x, y, w=w: w(x, labels, None, y, LABELS), x, y) for w in both))
        assert_same(*(value_and_grads(lambda x, w=w: w(x, labels, some), x) for w in both))
        both = [wrapped(m, name, False, True) for m in (ours, theirs)]
        for step in range(3):
            (rows,) = own_features(rank, 1, seed=step)
            assert_same(*(value_and_grads(lambda x, w=w: w(x, labels), rows) for w in both))


def test_the_wrapper_of_the_library(ranks: Ranks) -> None:
    library("pytorch_metric_learning.utils.distributed")
    ranks(2).run(each_call)


def of_the_whole(rank: int) -> Tensor:
    """One's own rows have the gradient of one process with the whole batch, times the number of processes."""
    everyone = [own_features(r, 1)[0] for r in range(2)]
    for name in NAMES:
        _, grad = value_and_grads(
            lambda x, name=name: wrapped(ours, name, False, False)(x, LABELS + rank), everyone[rank]
        )
        loss = functools.partial(getattr(ours, name)(0.2), labels=torch.cat([LABELS, LABELS + 1]))
        _, whole = value_and_grads(loss, torch.cat(everyone))
        assert_same([grad], [2 * whole.chunk(2)[rank]])
    return grad


def test_the_gradient_of_the_whole_batch(ranks: Ranks) -> None:
    library("pytorch_metric_learning.utils.distributed")
    assert not torch.equal(*ranks(2).run(of_the_whole))
