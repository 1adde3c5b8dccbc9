"""The losses as everybody writes them: the truth when run in float64, and what the others are set against."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TEMPERATURE = 0.5  # of NT-Xent
LOGIT_SCALE = 1 / 0.07  # of the two-way loss
CHUNK = 1024  # rows whose similarities the chunked forms hold at a time


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


def chunked_uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """The quick formula by chunks of rows, whose similarities are computed again in the backward pass."""
    x = F.normalize(x, dim=-1)
    n = x.shape[0]

    def total(rows: Tensor) -> Tensor:
        return (2 * t * (rows @ x.T - 1)).exp().sum()

    parts = [checkpoint(total, rows, use_reentrant=False) for rows in x.split(CHUNK)]
    own = (2 * t * (x.square().sum(-1) - 1)).exp().sum()
    return ((torch.stack(parts).sum() - own) / (n * (n - 1))).log()


def dense_clip(x: Tensor, y: Tensor, logit_scale: float = LOGIT_SCALE) -> Tensor:
    """The usual two-way contrastive loss: the logits and two softmaxes are stored."""
    logits = logit_scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    labels = torch.arange(x.shape[0], device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def chunked_clip(x: Tensor, y: Tensor, logit_scale: float = LOGIT_SCALE) -> Tensor:
    """The same by chunks of rows, one way after the other, computed again in the backward pass."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)

    def one_way(rows: Tensor, others: Tensor, start: int) -> Tensor:
        labels = start + torch.arange(rows.shape[0], device=rows.device)
        return F.cross_entropy(logit_scale * rows @ others.T, labels, reduction="sum")

    parts = [
        checkpoint(one_way, rows, others, i * CHUNK, use_reentrant=False)
        for side, others in ((x, y), (y, x))
        for i, rows in enumerate(side.split(CHUNK))
    ]
    return torch.stack(parts).sum() / (2 * x.shape[0])


def dense_nt_xent(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SimCLR's loss: all logits of both views, without those of a row with itself, and a softmax."""
    z = F.normalize(torch.cat([x, y]), dim=-1)
    m = z.shape[0]
    rows = torch.arange(m, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(rows[:, None] == rows, -torch.inf)
    return F.cross_entropy(logits, (rows + m // 2) % m)


def chunked_nt_xent(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The same by chunks of rows, computed again in the backward pass."""
    z = F.normalize(torch.cat([x, y]), dim=-1)
    m = z.shape[0]
    columns = torch.arange(m, device=z.device)

    def part(rows: Tensor, start: int) -> Tensor:
        own = start + torch.arange(rows.shape[0], device=z.device)
        logits = (rows @ z.T / temperature).masked_fill(own[:, None] == columns, -torch.inf)
        return F.cross_entropy(logits, (own + m // 2) % m, reduction="sum")

    parts = [checkpoint(part, rows, i * CHUNK, use_reentrant=False) for i, rows in enumerate(z.split(CHUNK))]
    return torch.stack(parts).sum() / m


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """The mean distance of the pairs, to a power."""
    return (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).norm(dim=-1).pow(alpha).mean()


def dense_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """Alignment plus the quick formula of uniformity for both sides."""
    return alignment(x, y, alpha) + (dense_uniformity(x, t) + dense_uniformity(y, t)) / 2


def chunked_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """The same by chunks of rows."""
    return alignment(x, y, alpha) + (chunked_uniformity(x, t) + chunked_uniformity(y, t)) / 2


def pdist_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """The paper's example: its alignment, and its uniformity for both sides."""
    return alignment(x, y, alpha) + (pdist_uniformity(x, t) + pdist_uniformity(y, t)) / 2
