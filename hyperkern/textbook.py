"""The losses as everybody writes them: the truth when run in float64, and what the others are set against."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TEMPERATURE = 0.5  # of NT-Xent
LOGIT_SCALE = 1 / 0.07  # of the two-way loss
INFO_NCE_TEMPERATURE = 0.07
DECOUPLED_TEMPERATURE, SIGMA = 0.1, 0.5
SUP_CON_TEMPERATURE = 0.1
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0
CHUNK = 1024  # rows whose similarities the chunked forms hold at a time


def _in_chunks(part: Callable[[Tensor, int], Tensor], rows: Tensor) -> Tensor:
    """The sum over chunks of rows, each given with the index of its first row; computed again in the backward pass."""
    chunks = enumerate(rows.split(CHUNK))
    return torch.stack([checkpoint(part, some, i * CHUNK, use_reentrant=False) for i, some in chunks]).sum()


def _numbers(rows: Tensor, start: int = 0) -> Tensor:
    """The indices of rows."""
    return start + torch.arange(rows.shape[0], device=rows.device)


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
    """The quick formula by chunks of rows."""
    x = F.normalize(x, dim=-1)
    n = x.shape[0]
    total = _in_chunks(lambda rows, _: (2 * t * (rows @ x.T - 1)).exp().sum(), x)
    own = (2 * t * (x.square().sum(-1) - 1)).exp().sum()
    return ((total - own) / (n * (n - 1))).log()


def dense_uniformity_queue(x: Tensor, y: Tensor, t: float = 2.0) -> Tensor:
    """The quick formula of the rows of one set against those of another."""
    return (2 * t * (F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T - 1)).exp().mean().log()


def chunked_uniformity_queue(x: Tensor, y: Tensor, t: float = 2.0) -> Tensor:
    """The same by chunks of rows."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    total = _in_chunks(lambda rows, _: (2 * t * (rows @ y.T - 1)).exp().sum(), x)
    return (total / (x.shape[0] * y.shape[0])).log()


def dense_info_nce(x: Tensor, y: Tensor, temperature: float = INFO_NCE_TEMPERATURE) -> Tensor:
    """The one-way loss: each row of ``x`` picks the row of ``y`` with its index among all of them."""
    logits = F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T / temperature
    return F.cross_entropy(logits, _numbers(x))


def chunked_info_nce(x: Tensor, y: Tensor, temperature: float = INFO_NCE_TEMPERATURE) -> Tensor:
    """The same by chunks of rows."""
    return _picks(F.normalize(x, dim=-1), F.normalize(y, dim=-1), 1 / temperature) / x.shape[0]


def dense_info_nce_queue(x: Tensor, y: Tensor, queue: Tensor) -> Tensor:
    """The one-way loss with the rows of a queue as further negatives."""
    return dense_info_nce(x, torch.cat([y, queue]))


def chunked_info_nce_queue(x: Tensor, y: Tensor, queue: Tensor) -> Tensor:
    """The same by chunks of rows."""
    return chunked_info_nce(x, torch.cat([y, queue]))


def dense_info_nce_moco(x: Tensor, y: Tensor, queue: Tensor, temperature: float = INFO_NCE_TEMPERATURE) -> Tensor:
    """MoCo's loss: each row picks its partner among that and a queue of unit rows."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    logits = torch.cat([(x * y).sum(-1, keepdim=True), x @ queue.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(x.shape[0], dtype=torch.long, device=x.device))


def dense_clip(x: Tensor, y: Tensor, logit_scale: float | Tensor = LOGIT_SCALE) -> Tensor:
    """The usual two-way contrastive loss: the logits and two softmaxes are stored."""
    logits = logit_scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    labels = _numbers(x)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def chunked_clip(x: Tensor, y: Tensor, logit_scale: float | Tensor = LOGIT_SCALE) -> Tensor:
    """The same by chunks of rows, one way after the other."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    return (_picks(x, y, logit_scale) + _picks(y, x, logit_scale)) / (2 * x.shape[0])


def _picks(x: Tensor, y: Tensor, logit_scale: float | Tensor) -> Tensor:
    """The sum of the one-way losses by chunks of rows."""

    def one_way(rows: Tensor, start: int) -> Tensor:
        return F.cross_entropy(logit_scale * rows @ y.T, _numbers(rows, start), reduction="sum")

    return _in_chunks(one_way, x)


def dense_nt_xent(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SimCLR's loss: all logits of both views, without those of a row with itself, and a softmax."""
    z = F.normalize(torch.cat([x, y]), dim=-1)
    m = z.shape[0]
    rows = _numbers(z)
    logits = (z @ z.T / temperature).masked_fill(rows[:, None] == rows, -torch.inf)
    return F.cross_entropy(logits, (rows + m // 2) % m)


def chunked_nt_xent(x: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """The same by chunks of rows."""
    z = F.normalize(torch.cat([x, y]), dim=-1)
    m = z.shape[0]
    columns = _numbers(z)

    def part(rows: Tensor, start: int) -> Tensor:
        own = _numbers(rows, start)
        logits = (rows @ z.T / temperature).masked_fill(own[:, None] == columns, -torch.inf)
        return F.cross_entropy(logits, (own + m // 2) % m, reduction="sum")

    return _in_chunks(part, z) / m


def dense_dcl(x: Tensor, y: Tensor, temperature: float = DECOUPLED_TEMPERATURE, weights: float | Tensor = 1) -> Tensor:
    """The decoupled loss: of all logits of both views those of other samples, and the positives apart."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    z = torch.cat([x, y])
    samples = _numbers(x).repeat(2)
    logits = (z @ z.T / temperature).masked_fill(samples[:, None] == samples, -torch.inf)
    return logits.logsumexp(1).mean() - (weights * (x * y).sum(-1)).mean() / temperature


def chunked_dcl(
    x: Tensor, y: Tensor, temperature: float = DECOUPLED_TEMPERATURE, weights: float | Tensor = 1
) -> Tensor:
    """The same by chunks of rows."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    z = torch.cat([x, y])
    samples = _numbers(x).repeat(2)

    def part(rows: Tensor, start: int) -> Tensor:
        own = samples[start : start + rows.shape[0]]
        logits = (rows @ z.T / temperature).masked_fill(own[:, None] == samples, -torch.inf)
        return logits.logsumexp(1).sum()

    return _in_chunks(part, z) / z.shape[0] - (weights * (x * y).sum(-1)).mean() / temperature


def dense_dclw(x: Tensor, y: Tensor) -> Tensor:
    """The decoupled loss with its weights of the positives."""
    return dense_dcl(x, y, weights=positive_weights(x, y))


def chunked_dclw(x: Tensor, y: Tensor) -> Tensor:
    """The same by chunks of rows."""
    return chunked_dcl(x, y, weights=positive_weights(x, y))


def positive_weights(x: Tensor, y: Tensor, sigma: float = SIGMA) -> Tensor:
    """Less for the pairs that are alike already; no gradient goes through it."""
    similarities = (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1).detach()
    return 2 - x.shape[0] * (similarities / sigma).softmax(0)


def dense_siglip(x: Tensor, y: Tensor, scale: float = SIGLIP_SCALE, bias: float = SIGLIP_BIAS) -> Tensor:
    """The sigmoid loss: every pair is a decision, partners on the diagonal."""
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T + bias
    signs = 2 * torch.eye(x.shape[0], dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(signs * logits).sum() / x.shape[0]


def chunked_siglip(x: Tensor, y: Tensor, scale: float = SIGLIP_SCALE, bias: float = SIGLIP_BIAS) -> Tensor:
    """The same by chunks of rows."""
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    columns = _numbers(y)

    def part(rows: Tensor, start: int) -> Tensor:
        logits = scale * rows @ y.T + bias
        partners = _numbers(rows, start)[:, None] == columns
        return -F.logsigmoid(torch.where(partners, logits, -logits)).sum()

    return _in_chunks(part, x) / x.shape[0]


def dense_sup_con(x: Tensor, labels: Tensor, temperature: float = SUP_CON_TEMPERATURE) -> Tensor:
    """The supervised loss, where every row has another one of its class: all log-probabilities are stored."""
    x = F.normalize(x, dim=-1)
    own = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    logits = (x @ x.T / temperature).masked_fill(own, -torch.inf)
    positive = (labels[:, None] == labels) & ~own
    chosen = logits.log_softmax(1).masked_fill(~positive, 0)
    return -(chosen.sum(1) / positive.sum(1)).mean()


def chunked_sup_con(x: Tensor, labels: Tensor, temperature: float = SUP_CON_TEMPERATURE) -> Tensor:
    """The same by chunks of rows."""
    x = F.normalize(x, dim=-1)
    columns = _numbers(x)

    def part(rows: Tensor, start: int) -> Tensor:
        own = _numbers(rows, start)[:, None] == columns
        logits = (rows @ x.T / temperature).masked_fill(own, -torch.inf)
        positive = (labels[start : start + rows.shape[0], None] == labels) & ~own
        chosen = logits.log_softmax(1).masked_fill(~positive, 0)
        return -(chosen.sum(1) / positive.sum(1)).sum()

    return _in_chunks(part, x) / x.shape[0]


def alignment(x: Tensor, y: Tensor, alpha: float = 2.0) -> Tensor:
    """The mean distance of the pairs, to a power."""
    distance: Tensor = (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).norm(dim=-1)
    return distance.pow(alpha).mean()


def dense_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """Alignment plus the quick formula of uniformity for both sides."""
    return alignment(x, y, alpha) + (dense_uniformity(x, t) + dense_uniformity(y, t)) / 2


def chunked_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """The same by chunks of rows."""
    return alignment(x, y, alpha) + (chunked_uniformity(x, t) + chunked_uniformity(y, t)) / 2


def pdist_align_uniform(x: Tensor, y: Tensor, alpha: float = 2.0, t: float = 2.0) -> Tensor:
    """The paper's example: its alignment, and its uniformity for both sides."""
    return alignment(x, y, alpha) + (pdist_uniformity(x, t) + pdist_uniformity(y, t)) / 2
