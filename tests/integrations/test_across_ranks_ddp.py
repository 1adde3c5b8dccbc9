"""What DistributedDataParallel makes of the gradients of the drop-ins, and of the losses with a group."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from across_ranks import DIM, Loss, Result, lightly_losses, own_features, ranking_losses
from oracle import assert_close
from parity import library
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern as hk
from hyperkern.integrations import open_clip

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


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
