"""Features of half precision in every drop-in that normalises them, with the rows that half precision cannot hold."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from hyperkern.integrations import lightly, pytorch_metric_learning, sentence_transformers, solo_learn
from hyperkern.integrations.simcse import simcse_loss

LABELS = torch.arange(16).repeat(2)


def joined(loss: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    return loss(torch.cat([x, y]), LABELS)


def ranking(x: Tensor, y: Tensor, **options: object) -> Tensor:
    loss = sentence_transformers.MultipleNegativesRankingLoss(nn.Identity(), scale=5.0, **options)
    return loss.compute_loss_from_embeddings([x, y, y.flip(0)])


def with_bank(x: Tensor, y: Tensor) -> Tensor:
    torch.manual_seed(0)
    loss = lightly.NTXentLoss(memory_bank_size=(40, 32))
    return loss(x, y) + loss(y, x)


DROP_INS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "lightly HypersphereLoss": lightly.HypersphereLoss(),
    "lightly NTXentLoss": lightly.NTXentLoss(),
    "lightly NTXentLoss, memory bank": with_bank,
    "lightly DCLLoss": lightly.DCLLoss(0.5),
    "lightly DCLLoss, weights": lightly.DCLLoss(0.5, lambda a, b: ((a - b) ** 2).sum(1)),
    "lightly DCLWLoss": lightly.DCLWLoss(0.5),
    "lightly DirectCLRLoss": lightly.DirectCLRLoss(24),
    "lightly MACLLoss": lightly.MACLLoss(0.5),
    "lightly HypersphereLoss, learned": lightly.HypersphereLoss(torch.tensor(1.5)),
    "metric learning NTXentLoss": partial(joined, pytorch_metric_learning.NTXentLoss(0.5)),
    "metric learning SupConLoss": partial(joined, pytorch_metric_learning.SupConLoss(0.5)),
    "solo-learn": partial(joined, partial(solo_learn.simclr_loss_func, temperature=0.5)),
    "solo-learn, neighbours": partial(solo_learn.nnclr_loss_func, temperature=0.5),
    "solo-learn, momentum": partial(solo_learn.mocov3_loss_func, temperature=0.5),
    "simcse": partial(simcse_loss, temp=0.5),
    "simcse, hard negatives": lambda x, y: simcse_loss(x, y, y.flip(0), temp=0.5, hard_negative_weight=0.7),
    "ranking": ranking,
    "ranking, hardness": partial(ranking, hardness_mode="all_negatives", hardness_strength=3.0),
    "ranking, directions": partial(
        ranking, directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", DROP_INS)
def test_rows_that_half_precision_cannot_normalise(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(16, 32)
    y = x + torch.randn(16, 32)
    x[3] = y[5] = 0
    x[7] = 3e4  # its squares overflow in float16
    y[8] *= 1e-6  # they underflow
    x, y = x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_()
    loss = DROP_INS[name](x, y)
    truth = DROP_INS[name](x.detach().double(), y.detach().double())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth.double(), rtol=0.02, atol=0.02)
    for grad in torch.autograd.grad(loss, (x, y)):
        assert grad.dtype == dtype
        assert not grad.isnan().any()
        assert grad[[0, 1, 7]].isfinite().all()
