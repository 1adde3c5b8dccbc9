"""What docs/conventions.md gives as the same loss in this package's own terms, against the libraries."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, library
from torch import Tensor, nn

import hyperkern as hk

N, D, K = 12, 7, 9
BANK = F.normalize(torch.randn(K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), dim=1)


def unit(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """With the rows that a model normalises."""
    return lambda *views: loss(*(F.normalize(view, dim=-1) for view in views))


def with_bank(x: Tensor, y: Tensor) -> Tensor:
    loss = library("lightly.loss").NTXentLoss(memory_bank_size=(K, D)).to(x.dtype)
    loss.memory_bank.bank.copy_(BANK)
    return loss(x, y)


def of_views(loss: nn.Module, classes: int) -> Callable[..., Tensor]:
    return lambda x, y: loss(torch.cat([x, y]), torch.arange(2 * N) % classes)


def ranking(*columns: Tensor) -> Tensor:
    losses = library("sentence_transformers.sentence_transformer.losses")
    return losses.MultipleNegativesRankingLoss(nn.Identity()).compute_loss_from_embeddings(list(columns), None)


# The row of the page: how many feature tensors, the library's loss, ours.
ROWS: dict[str, tuple[int, Callable[[], Callable[..., Tensor]], Callable[..., Tensor]]] = {
    "lightly HypersphereLoss": (
        2,
        lambda: library("lightly.loss.hypersphere_loss").HypersphereLoss(lam=0.7),
        lambda x, y: hk.align_uniform(x, y, t=1, uniform_weight=0.7).loss,
    ),
    "lightly NTXentLoss": (2, lambda: library("lightly.loss").NTXentLoss(), hk.nt_xent),
    "lightly NTXentLoss, memory bank": (
        2,
        lambda: with_bank,
        lambda x, y: hk.info_nce(x, y, negatives=BANK.to(x.dtype), in_batch=False, temperature=0.5),
    ),
    "lightly DCLLoss": (2, lambda: library("lightly.loss").DCLLoss(), hk.dcl),
    "lightly DCLWLoss": (2, lambda: library("lightly.loss").DCLWLoss(), hk.dclw),
    "PyTorch Metric Learning NTXentLoss, two views": (
        2,
        lambda: of_views(library("pytorch_metric_learning.losses").NTXentLoss(), N),
        lambda x, y: hk.nt_xent(x, y, temperature=0.07),
    ),
    "PyTorch Metric Learning SupConLoss": (
        2,
        lambda: of_views(library("pytorch_metric_learning.losses").SupConLoss(), 5),
        lambda x, y: hk.sup_con(torch.cat([x, y]), torch.arange(2 * N) % 5),
    ),
    "OpenCLIP ClipLoss": (
        2,
        lambda: unit(lambda x, y: library("open_clip.loss").ClipLoss()(x, y, 1 / 0.07)),
        unit(lambda x, y: hk.clip_loss(x, y, logit_scale=1 / 0.07, normalize=False)),
    ),
    "OpenCLIP SigLipLoss": (
        2,
        lambda: unit(lambda x, y: library("open_clip.loss").SigLipLoss()(x, y, 10.0, -10.0)),
        unit(lambda x, y: hk.siglip(x, y, logit_scale=10.0, logit_bias=-10.0, normalize=False)),
    ),
    "Sentence Transformers MultipleNegativesRankingLoss": (
        3,
        lambda: ranking,
        lambda q, d, hard: hk.info_nce(q, d, negatives=hard, temperature=0.05),
    ),
}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # the original's own
@pytest.mark.parametrize("name", ROWS)
def test_the_same_in_our_terms(name: str) -> None:
    count, original, ours = ROWS[name]
    views = torch.randn(count, N, D, dtype=torch.float64)
    assert_parity(ours, original(), *views.unbind(), largest_logit=20.0)
