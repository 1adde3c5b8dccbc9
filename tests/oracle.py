"""The dense truth by textbook formulas, and the rule by which a result is judged against it.

Nothing here knows hyperkern. Every function works in the dtype of its arguments: in float64 it is the truth, in
float32 the ordinary PyTorch code whose accuracy a result has to match.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def per_batch(function: Callable) -> Callable:
    """Runs a function of matrices on each element of a leading batch dimension; scalars are shared."""

    @wraps(function)
    def run(x: Tensor, *args: Any, **options: Any) -> Any:
        if x.dim() == 2:
            return function(x, *args, **options)
        results = [
            function(
                x[i],
                *(arg[i] if isinstance(arg, Tensor) and arg.dim() else arg for arg in args),
                **{k: o[i] if isinstance(o, Tensor) and o.dim() else o for k, o in options.items()},
            )
            for i in range(x.shape[0])
        ]
        if isinstance(results[0], tuple):
            return tuple(map(torch.stack, zip(*results, strict=True)))
        return torch.stack(results)

    return run


def rows(x: Tensor, normalize: bool) -> Tensor:
    return F.normalize(x, dim=-1) if normalize else x


class UnitRows(torch.autograd.Function):
    """``(x, eps, largest) -> x / |x|``, 0 for a zero row, with the bounded derivative that normalising promises.

    ``1 / max(|x|, eps)`` stands for ``1 / |x|`` there, in all orders; it and the gradient of a row no longer than
    ``eps``, whose elements end at ``largest``, are functions like any other.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, largest: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.eps, ctx.largest = eps, largest
        return F.normalize(x, dim=-1, eps=1e-300)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        unit, norm = UnitRows.apply(x, ctx.eps, ctx.largest), torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        dx = (grad - (grad * unit).sum(-1, keepdim=True) * unit) / norm.clamp_min(ctx.eps)
        return torch.where(norm > ctx.eps, dx, dx.clamp(-ctx.largest, ctx.largest)), None, None


@per_batch
def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0, normalize: bool = True, reduction: str = "mean") -> Tensor:
    distance = torch.linalg.vector_norm(rows(x, normalize) - rows(y, normalize), dim=-1)
    same = distance == 0  # the power has no derivative there for alpha < 1; the promise is 0
    values = torch.where(same, 0, distance.masked_fill(same, 1)).pow(alpha)
    values = values * ~same
    return values if reduction == "none" else getattr(values, reduction)()


@per_batch
def uniformity(
    x: Tensor,
    y: Tensor | None = None,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    *,
    t: float = 2.0,
    intra: bool = False,
    normalize: bool = True,
    by_product: bool = False,
) -> Tensor:
    """``log (sum_pairs w_i w_j exp(-t d^2) / sum_pairs w_i w_j)`` over the listed pairs.

    The logarithm of the mean is taken as a log-sum-exp, or the truth itself would underflow for distant points.
    ``by_product`` takes the distances of unit rows from one matrix product, ``d^2 = 2 - 2 <x, y>``, as everyone does
    whose batch is large: the same number in exact arithmetic, another rounding.
    """
    if by_product:
        assert normalize
    x = rows(x, normalize)
    wx = x.new_ones(x.shape[0]) if x_weights is None else x_weights
    exponents, weights = [], []
    if y is None or intra:
        i, j = torch.triu_indices(x.shape[0], x.shape[0], offset=1, device=x.device)
        exponents.append(-t * ((2 - 2 * x @ x.T)[i, j] if by_product else torch.pdist(x).square()))
        weights.append(wx[i] * wx[j])
    if y is not None:
        y = rows(y, normalize)
        wy = y.new_ones(y.shape[0]) if y_weights is None else y_weights
        exponents.append(-t * (2 - 2 * x @ y.T if by_product else _distances(x, y).square()).flatten())
        weights.append((wx[:, None] * wy).flatten())
    w = torch.cat(weights)
    return torch.logsumexp(torch.cat(exponents) + w.log(), 0) - w.sum().log()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def align_uniform(
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 2.0,
    t: float = 2.0,
    align_weight: float = 1.0,
    uniform_weight: float = 1.0,
    normalize: bool = True,
    by_product: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    align = alignment(x, y, alpha=alpha, normalize=normalize)
    uniform_x, uniform_y = (uniformity(side, t=t, normalize=normalize, by_product=by_product) for side in (x, y))
    uniform = (uniform_x + uniform_y) / 2
    return align_weight * align + uniform_weight * uniform, align, uniform


@per_batch
def info_nce(
    x: Tensor,
    y: Tensor,
    negatives: Tensor | None = None,
    *,
    hard_negatives: Tensor | None = None,
    in_batch: bool = True,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    negative_log_weights: Tensor | None = None,
    temperature: float | Tensor = 0.07,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """The cross entropy of all logits, with those of no candidates at -inf."""
    x, y = rows(x, normalize), rows(y, normalize)
    n, own = len(x), same_index(len(x), len(x), x.device)
    logits = x @ y.T / temperature
    if y_log_weights is not None:
        logits = logits + y_log_weights
    left_out = torch.zeros_like(own) if in_batch else ~own
    if ids is not None:
        left_out = left_out | (ids[:, None] == ids) & ~own
    parts = [logits.masked_fill(left_out, -math.inf)]
    if negatives is not None:
        logits = x @ rows(negatives, normalize).T / temperature
        logits = logits if negative_log_weights is None else logits + negative_log_weights
        if negative_ids is not None:
            logits = logits.masked_fill(ids[:, None] == negative_ids, -math.inf)
        parts.append(logits)
    if hard_negatives is not None:
        parts.append((rows(hard_negatives, normalize) @ x[:, :, None]).squeeze(-1) / temperature)
    return F.cross_entropy(torch.cat(parts, 1), torch.arange(n, device=x.device), reduction=reduction)


@per_batch
def clip_loss(
    x: Tensor,
    y: Tensor,
    *,
    logit_scale: float | Tensor,
    ids: Tensor | None = None,
    labels: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * rows(x, normalize) @ rows(y, normalize).T
    if ids is not None:
        own = same_index(len(x), len(x), x.device)
        logits = logits.masked_fill((ids[:, None] == ids) & ~own, -math.inf)
    target = torch.arange(len(x), device=x.device)
    if labels is not None:
        same = (labels[:, None] == labels).to(logits.dtype)
        target = same / same.sum(1, keepdim=True)
    sides = (F.cross_entropy(side, target, reduction=reduction) for side in (logits, logits.T))
    return sum(sides) / 2


@per_batch
def nt_xent(
    *views: Tensor,
    negatives: Tensor | None = None,
    temperature: float | Tensor = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """A cross entropy for each pair of an anchor and one of its positives, among it and the other samples."""
    n, z = len(views[0]), rows(torch.cat(views), normalize)
    logits, sample = z @ z.T / temperature, torch.arange(len(z), device=z.device) % n
    others = logits.masked_fill(sample[:, None] == sample, -math.inf)
    if negatives is not None:
        others = torch.cat([others, z @ rows(negatives, normalize).T / temperature], 1)
    anchors, terms = torch.arange(len(z), device=z.device), []
    for shift in range(1, len(views)):
        positive = logits[anchors, (anchors + shift * n) % len(z)]
        terms.append(F.cross_entropy(torch.cat([positive[:, None], others], 1), 0 * anchors, reduction="none"))
    losses = torch.stack(terms).mean(0)
    return losses if reduction == "none" else getattr(losses, reduction)()


@per_batch
def dcl(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    n, z = len(x), rows(torch.cat([x, y]), normalize)
    logits, sample = z @ z.T / temperature, torch.arange(2 * n, device=z.device) % n
    others = logits.masked_fill(sample[:, None] == sample, -math.inf).logsumexp(1)
    positive = logits.diagonal(n).repeat(2)
    weights = [x.new_ones(n) if w is None else w for w in (x_weights, y_weights)]
    losses = others - torch.cat(weights) * positive
    return losses if reduction == "none" else getattr(losses, reduction)()


@per_batch
def dclw(x: Tensor, y: Tensor, *, sigma: float = 0.5, normalize: bool = True, **options: Any) -> Tensor:
    a, b = rows(x.detach(), normalize), rows(y.detach(), normalize)
    weights = 2 - len(x) * ((a * b).sum(1) / sigma).softmax(0)
    return dcl(x, y, x_weights=weights, y_weights=weights, normalize=normalize, **options)


@per_batch
def sup_con(
    x: Tensor,
    *,
    labels: Tensor,
    y: Tensor | None = None,
    y_labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    x = rows(x, normalize)
    own = same_index(len(x), len(x), x.device) if y is None else x.new_zeros(len(x), len(y), dtype=torch.bool)
    logits = x @ (x if y is None else rows(y, normalize)).T / temperature
    positive = (labels[:, None] == (labels if y_labels is None else y_labels)) & ~own
    # A single row has no candidate at all, and no logarithm of their number.
    log_probability = logits - logits.masked_fill(own & ~own.all(), -math.inf).logsumexp(1, keepdim=True)
    count = positive.sum(1)
    losses = -(log_probability * positive).sum(1) / count.clamp_min(1)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / (count > 0).sum().clamp_min(1)}[reduction]


@per_batch
def siglip(
    x: Tensor,
    y: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    logits = logit_scale * rows(x, normalize) @ rows(y, normalize).T + logit_bias
    sign = 2 * same_index(len(x), len(x), x.device).to(logits.dtype) - 1
    total = -F.logsigmoid(sign * logits).sum()
    return total / len(x) if reduction == "mean" else total


@per_batch
def pairwise_logsumexp(
    x: Tensor,
    y: Tensor | None = None,
    *,
    logit_scale: float,
    exclude: str = "none",
    x_log_weights: Tensor | None = None,
    y_log_weights: Tensor | None = None,
    x_ids: Tensor | None = None,
    y_ids: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    x = rows(x, normalize)
    if y is None:
        y, y_log_weights, y_ids = x, x_log_weights, x_ids
    else:
        y = rows(y, normalize)
    logits = logit_scale * x @ y.T
    logits = logits if x_log_weights is None else logits + x_log_weights[:, None]
    logits = logits if y_log_weights is None else logits + y_log_weights
    if exclude == "self":
        logits = logits.masked_fill(same_index(len(x), len(y), x.device), -math.inf)
    if exclude == "same_id":
        logits = logits.masked_fill(x_ids[:, None] == y_ids, -math.inf)
    return torch.logsumexp(logits, 1), torch.logsumexp(logits, 0)


def same_index(m: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The mask of ``exclude="self"``."""
    return torch.arange(m, device=device)[:, None] == torch.arange(n, device=device)


def assert_close(actual: Tensor, truth: Tensor, tolerance: float = 1e-10) -> None:
    """``|actual - truth| <= tolerance max(|truth|, size)``, with the ``size`` of the largest element, but 1 at most.

    What should be 0 is the rest of larger terms, which are not known here: ``size`` is 1e-3 at least.
    """
    actual, truth = actual.detach(), truth.detach()
    assert actual.shape == truth.shape, f"shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    size = truth.abs().amax().clamp(1e-3, 1) if truth.numel() else 1.0
    error = (actual - truth).abs() / truth.abs().clamp_min(size)
    assert (error <= tolerance).all(), f"error {error.max().item():.3g} > {tolerance:.3g}"


def assert_within_tolerance(
    actual: Tensor, peers: Sequence[Tensor], truth64: Tensor, what: str = "", *, largest_lse: float = 0.0
) -> None:
    """``max|k - ref64| <= 2 max|torch - ref64| + tiny``, for all elements and again for the small ones alone.

    ``peers`` are the results of PyTorch in the same dtype, one for each textbook way to write the formula; the
    least accurate of them counts.

    ``tiny`` is half a unit in the last place of the largest reference value: the error that rounding the
    reference itself to the dtype of the result may make. No implementation can promise less, and a PyTorch
    result that hits the nearest number by luck must not ask for more. It is not made larger: two roundings are
    what the factor 2 is for.

    The rule for the whole tensor lets an element that is a thousandth of the largest be pure noise. So it is
    applied again to the elements below 1/10, 1/100, ... of the largest, each set with its own ``tiny``: there
    by the root mean square, since the maximum of two sets of independent roundings differs by chance.

    ``largest_lse`` is for large scales. A log-sum-exp is returned, and kept for the gradient, as one number of the
    dtype: half a unit in its last place is a relative error that all the weights of its row share, the small entries
    beside the large ones, so that only the rule for the whole tensor applies.
    """
    truth = truth64.detach()
    assert all(peer.dtype == actual.dtype for peer in peers), f"{what}: {actual.dtype}, expected {peers[0].dtype}"
    assert actual.shape == truth.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    ours, *theirs = ((result.detach().double() - truth).abs() for result in (actual, *peers))
    half_ulp = torch.finfo(actual.dtype).eps / 2
    smallest = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps  # spacing of subnormals
    for below in (1.0, 0.1, 1e-2, 1e-3, 1e-4):
        chosen = truth.abs() <= below * truth.abs().max()
        if below < 1 and (largest_lse or chosen.sum() < 64):
            break

        def size(error: Tensor, chosen: Tensor = chosen, below: float = below) -> float:
            return error[chosen].max().item() if below == 1 else error[chosen].square().mean().sqrt().item()

        error, peer_error = size(ours), max(map(size, theirs))
        tiny = half_ulp * (1 + largest_lse) * truth[chosen].abs().max().item() + smallest
        assert error <= 2 * peer_error + tiny, (
            f"{what}, entries up to {below} of the largest: error {error:.3g} > {2 * peer_error + tiny:.3g} "
            f"(torch {peer_error:.3g}, tiny {tiny:.3g})"
        )
