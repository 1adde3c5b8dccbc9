"""The losses as everybody writes them: what hyperkern is measured against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pdist_uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """The formula of the paper: every distance of the upper triangle is stored."""
    return torch.pdist(F.normalize(x, dim=-1)).pow(2).mul(-t).exp().mean().log()


def paper_uniform_loss(x: Tensor, t: float = 2.0) -> Tensor:
    """The code of the paper, for rows that the caller has normalised."""
    return torch.pdist(x, p=2).pow(2).mul(-t).exp().mean().log()


def dense_uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """The quick formula: one product, the whole N x N matrix is stored."""
    x = F.normalize(x, dim=-1)
    n = x.shape[0]
    kernel = (2 * t * (x @ x.T - 1)).exp()
    return ((kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))).log()


def dense_clip(x: Tensor, y: Tensor, logit_scale: float) -> Tensor:
    """The usual two-way contrastive loss: the logits and two softmaxes are stored."""
    logits = logit_scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    labels = torch.arange(x.shape[0], device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def dense_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """Alignment plus the quick formula of uniformity for both sides."""
    align = (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).norm(dim=-1).pow(alpha).mean()
    return align + (dense_uniformity(x, t) + dense_uniformity(y, t)) / 2
