"""What the drop-ins for Sentence Transformers have besides, in several processes: a learned scale, other columns."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from across_ranks import Result, averaged, own_features, parity, ranking_losses
from parity import library
from ranks import Ranks
from torch import Tensor, nn

from hyperkern.integrations import sentence_transformers

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")

ALL = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    {"hardness_mode": "all_negatives", "hardness_strength": 5.0},
]


def learned_scale(rank: int, options: dict[str, Any]) -> None:
    both = ranking_losses("MultipleNegativesRankingLoss", options)

    def of(loss: nn.Module) -> Any:
        def value(*tensors: Tensor) -> Tensor:
            *columns, loss.scale = tensors
            return loss.compute_loss_from_embeddings(columns, None)

        return value

    scale = torch.tensor(6.0, dtype=torch.float64)
    parity(*map(of, both), own_features(rank, 3), [scale], factor=1.0 + rank, tolerance=2e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_learned_scale(ranks: Ranks, options: dict[str, Any]) -> None:
    library("sentence_transformers.sentence_transformer.losses")
    ranks(2).run(learned_scale, options)


def one_batch(rank: int) -> Result:
    """The mean over processes of loss and gradient of a scale, where the mask of the original makes its own nan."""
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), scale, None, True, ALL)
    value = loss.compute_loss_from_embeddings(own_features(rank, 3))
    value.backward()
    return [averaged(value.detach()), averaged(scale.grad)]


def test_a_learned_scale_of_all_directions(ranks: Ranks) -> None:
    first, second = ranks(2).run(one_batch)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    columns = [torch.cat(parts) for parts in zip(own_features(0, 3), own_features(1, 3), strict=True)]
    loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), scale, directions=ALL)
    value = loss.compute_loss_from_embeddings(columns)
    value.backward()
    for found in (first, second):
        torch.testing.assert_close(found, [value.detach(), scale.grad])


def columns_of_other_lengths(rank: int) -> None:
    loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), gather_across_devices=True)
    anchors, positives = own_features(rank, 2)
    with pytest.raises(ValueError, match=r"gather_across_devices=True.*(all columns must have one row|got \[5, 10\])"):
        loss.compute_loss_from_embeddings([anchors, torch.cat([positives, positives])])


def test_columns_of_other_lengths_are_refused(ranks: Ranks) -> None:
    ranks(2).run(columns_of_other_lengths)
