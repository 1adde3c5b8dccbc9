"""Whole losses of ordinary rows on a CPU: normalise, visit the pairs, make loss and gradient, project.

The gradient is made with the loss, for an incoming gradient of 1, and the backward pass multiplies it. What is not
ordinary (a row of zeros, of infinite or extreme elements, logits without a common bound) is left to the composition of
the primitives: it is seen before anything is lost, because on a CPU it is free to look.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...classes import class_index, class_sums_of
from ...spec import LossInputs, LossSpec, is_bounded
from .. import WholeLoss
from .pairs import Pairs, Tile, Weights, accurate_sum, energy, one_way, put_weights, two_sided
from .rows import Grads, Rows, Unbounded, prepared
from .softmax import SOFTPLUS_IS_LINEAR, Softmax

# Of SigLIP's exponentials.
_LARGEST_LOGIT = {torch.float32: 80.0, torch.float64: 600.0}


class Call(NamedTuple):
    """What is asked for, see `hyperkern.backends.Backend.loss`."""

    inputs: LossInputs
    spec: LossSpec
    need: Collection[str]


def _scale(inputs: LossInputs, spec: LossSpec) -> float:
    """The factor of the inner products; a tensor on a CPU may be read."""
    if inputs.scale is None:
        return spec.scale
    value = inputs.scale.item()
    if spec.temperature:
        value = 1 / value if value else math.nan
    return value


def _frozen(call: Call, rows: Rows) -> dict[str, Tensor]:
    """The features without a gradient, as prepared."""
    inputs, _, need = call
    found: dict[str, Tensor] = {}
    if not need:
        return found
    i = 0
    for name, given in (("x", inputs.x), ("y", inputs.y), ("queue", inputs.queue)):
        if given is not None:
            if name not in need:
                found[name] = rows.of[i]
            i += 1
    return found


def _add_positives(grads: Grads, weights: Tensor) -> None:
    """The gradients of the positives where they are not among the pairs."""
    for grad, partner in ((grads.of[0], grads.rows.of[1]), (grads.of[1], grads.rows.of[0])):
        if grad is not None:
            grad.addcmul_(partner, weights.unsqueeze(1))


def _reduced(
    call: Call,
    value: Tensor,
    grads: Grads,
    scale: float,
    anchors: int,
    *,
    per_pair: int = 1,
    symmetric: bool = False,
    of_bias: Tensor | None = None,
) -> WholeLoss:
    """The loss from its sum over anchors, of which a pair has ``per_pair``, and the state of the gradient."""
    inputs, spec, need = call
    share = 1 / anchors if spec.mean else 1 / per_pair
    scalars, radial = [], None
    if "scale" in need and inputs.scale is not None:
        radial = grads.inner_products()
        # Each pair is in them once from either side.
        of_scale = radial.sum().div_(2) if symmetric else radial[: grads.rows.sizes[0]].sum()
        of_scale.mul_(share)
        scalars.append(of_scale.mul_(-scale * scale) if spec.temperature else of_scale)
    if "bias" in need and of_bias is not None:
        scalars.append(of_bias.mul_(share))
    value = value.div_(anchors if spec.mean else per_pair).to(grads.rows.all.dtype)
    return WholeLoss((value,), (*scalars, *grads.state(scale * share, radial)), _frozen(call, grads.rows))


def _uniformity(call: Call) -> WholeLoss:
    inputs, spec, need = call
    rows = prepared(True, inputs.x, *(() if inputs.y is None else (inputs.y,)))
    x = rows.of[0]
    m, n = x.shape[0], 0 if inputs.y is None else inputs.y.shape[0]
    if not is_bounded(spec.scale, m * max(m, n), x.dtype):
        raise Unbounded
    grads = rows.grads(*["x" in need, "y" in need][: len(rows.of)])
    total, distinct = None, m * (m - 1) // 2 if not n or spec.in_batch else 0
    if n:
        total = energy(Pairs(x, rows.of[1], spec.scale), grads.of[0], grads.of[1])
    if distinct:  # every pair is met in both orders
        within = None if not n or grads.of[0] is None else torch.empty_like(grads.of[0])
        half = energy(Pairs(x, x, spec.scale, left_out=(0,)), grads.of[0] if within is None else within) / 2
        total = half if total is None else total + half
        if within is not None and grads.of[0] is not None:
            grads.of[0].add_(within)
    assert total is not None
    value = (total / (m * n + distinct)).log_().sub_(spec.scale).to(x.dtype)
    frozen = _frozen(call, rows) if n else {}
    return WholeLoss((value,), grads.state(total.reciprocal_().mul_(spec.scale)), frozen)


def _info_nce(call: Call) -> WholeLoss:
    inputs, spec, need = call
    queue, anchors = inputs.queue, inputs.x.shape[0]
    assert inputs.y is not None
    rows = prepared(spec.normalize, inputs.x, inputs.y, *(() if queue is None else (queue,)))
    softmax = Softmax(rows, _scale(inputs, spec), max(anchors, 0 if queue is None else queue.shape[0]))
    grads = rows.grads(*["x" in need or "scale" in need, "y" in need, "queue" in need][: len(rows.of)])
    x, y = rows.of[0], rows.of[1]
    positives = x.new_empty(anchors) if spec.in_batch else softmax.positives()
    sets = [softmax.pairs(x, y, (0,), ((0, positives),))] if spec.in_batch else []
    grads_y = [grads.of[1]] if spec.in_batch else []
    if queue is not None:
        sets.append(softmax.pairs(x, rows.of[2]))
        grads_y.append(grads.of[2])
    own = x.new_empty(anchors)

    def head(group: slice, sums: Tensor) -> Weights:
        others = sums.clone()
        row, missed = softmax.coupled(sums, positives[group])
        # The factor of the row multiplies what is put among the exponentials too.
        own[group] = others.neg_() if spec.in_batch else missed.neg_()
        return Weights(row, None, {0: own} if spec.in_batch else {})

    one_way(sets, head, grads.of[0], grads_y)
    if not spec.in_batch:
        if grads.of[1] is not None:
            grads.of[1].zero_()
        _add_positives(grads, own)
    return _reduced(call, softmax.value, grads, softmax.scale, anchors)


def _clip_loss(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.y is not None
    rows, pairs = prepared(spec.normalize, inputs.x, inputs.y), inputs.x.shape[0]
    softmax = Softmax(rows, _scale(inputs, spec), pairs)
    grads = rows.grads("x" in need or "scale" in need, "y" in need)
    x, y = rows.of
    positives = x.new_empty(pairs)

    def head(sums: Tensor) -> Weights:
        factors, missed = softmax.coupled(sums, positives)
        row, col = factors.unbind()
        return Weights(row, col, {0: missed.sum(0).neg_()})

    two_sided(softmax.pairs(x, y, (0,), ((0, positives),)), head, grads.of[0], grads.of[1])
    return _reduced(call, softmax.value, grads, softmax.scale, 2 * pairs, per_pair=2)


def _views(call: Call, *, decoupled: bool = False, weighted: bool = False) -> WholeLoss:
    """NT-Xent and its decoupled forms: one symmetric problem of the rows of both views."""
    inputs, spec, need = call
    assert inputs.y is not None
    rows, n = prepared(spec.normalize, inputs.x, inputs.y), inputs.x.shape[0]
    softmax = Softmax(rows, _scale(inputs, spec), 2 * n)
    grads = rows.grads(bool(need), bool(need))  # of one problem of all rows
    positives = rows.all.new_empty(n)

    def head(sums: Tensor) -> Weights:
        by_view = sums.view(2, n)
        if decoupled:
            weights = None
            if weighted:
                by_sigma = (rows.of[0] * rows.of[1]).sum(1) / spec.sigma
                weights = 2 - n * by_sigma.softmax(0)
            row = softmax.decoupled(by_view, positives, weights)
            own = torch.full_like(positives, -2.0) if weights is None else weights.mul(-2)
        else:
            row, missed = softmax.coupled(by_view, positives)
            own = missed.sum(0).neg_()
        own = own.repeat(2)
        return Weights(row.view(-1), None, {n: own, -n: own})

    z = rows.all
    two_sided(softmax.pairs(z, z, (0, n, -n), ((n, positives),)), head, grads.all)
    return _reduced(call, softmax.value, grads, softmax.scale, 2 * n, symmetric=True)


def _sup_con(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.labels is not None
    symmetric = inputs.y is None
    rows = prepared(spec.normalize, inputs.x, *(() if inputs.y is None else (inputs.y,)))
    x, candidates = rows.of[0], rows.of[-1]
    softmax = Softmax(rows, _scale(inputs, spec), candidates.shape[0])
    grads = rows.grads(*["x" in need or "scale" in need, "y" in need][: len(rows.of)])
    labels = [inputs.labels] if inputs.y_labels is None else [inputs.labels, inputs.y_labels]
    index, of_candidates = (found := class_index(*labels))[0], found[-1]
    classes = sum(label.shape[0] for label in labels)
    count = of_candidates.bincount(minlength=classes)[index]
    mean = class_sums_of(candidates[None], of_candidates[None], index[None], classes)[0]
    if symmetric:
        count, mean = count - 1, mean.sub_(x)
    has_positive = count > 0
    # Of a row without a positive all that follows is multiplied by 0.
    share = has_positive.to(x.dtype) / count.clamp(min=1)
    mean *= share.unsqueeze(1)
    positives = (x * mean).sum(1).mul_(softmax.scale).sub_(softmax.shift)

    def head(group: slice, sums: Tensor) -> Weights:
        if softmax.shift:
            softmax.check(sums)
        softmax.add((sums.log() - positives[group]).masked_fill_(~has_positive[group], 0))
        return Weights(sums.reciprocal_().masked_fill_(~has_positive[group], 0), None, {})

    if symmetric:
        everything = slice(0, x.shape[0])
        two_sided(softmax.pairs(x, x, (0,)), lambda sums: head(everything, sums[0]), grads.of[0])
    else:
        one_way([softmax.pairs(x, candidates)], head, grads.of[0], [grads.of[1]])
    if (grad := grads.of[0]) is not None:
        grad.sub_(mean, alpha=2 if symmetric else 1)  # as an anchor, and as a positive of others
    if not symmetric and (grad := grads.of[1]) is not None:
        grad -= class_sums_of((x * share.unsqueeze(1))[None], index[None], of_candidates[None], classes)[0]
    anchors = max(1, int(has_positive.sum().item()))
    return _reduced(call, softmax.value, grads, softmax.scale, anchors, symmetric=symmetric)


def _siglip(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.y is not None
    rows, pairs = prepared(spec.normalize, inputs.x, inputs.y), inputs.x.shape[0]
    scale, bias = _scale(inputs, spec), spec.bias if inputs.bias is None else inputs.bias.item()
    if not abs(scale) * rows.bound + abs(bias) < _LARGEST_LOGIT[rows.all.dtype]:
        raise Unbounded
    grads = rows.grads("x" in need or "scale" in need, "y" in need)
    x, y = rows.of[0], rows.of[1]
    partners = (x * y).sum(1).mul_(-scale).sub_(bias)
    own, of_bias = torch.sigmoid(partners).neg_(), x.new_zeros(())

    def weigh(exponentials: Tensor, tile: Tile) -> Tensor:
        value = accurate_sum(exponentials.log1p())
        exponentials.div_(exponentials + 1)
        put_weights(exponentials, tile, {0: own})
        if "bias" in need:
            of_bias.add_(exponentials.sum())
        return value

    total = energy(Pairs(x, y, scale, -bias, (0,)), grads.of[0], grads.of[1], weigh)
    total += F.softplus(partners, threshold=SOFTPLUS_IS_LINEAR).sum(dtype=torch.float64)
    return _reduced(call, total, grads, scale, pairs, of_bias=of_bias)


def _align_uniform(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.y is not None
    rows, n = prepared(True, inputs.x, inputs.y), inputs.x.shape[0]
    if not is_bounded(spec.scale, n * n, rows.all.dtype):
        raise Unbounded
    grads = rows.grads("x" in need, "y" in need)
    totals = [energy(Pairs(z, z, spec.scale, left_out=(0,)), grads.of[i]) for i, z in enumerate(rows.of)]
    total = torch.stack(totals)
    uniform = (total / (n * (n - 1))).log_().mean().sub_(spec.scale).to(rows.all.dtype)
    distances, directions = _alignment(rows, spec.alpha)
    align = distances.sum() / n
    loss = spec.align_weight * align + spec.uniform_weight * uniform
    if grads.all is None:
        return WholeLoss((loss, align, uniform), (), {})
    of_align = torch.cat((directions, -directions)).div_(n)[: grads.all.shape[0]]
    # The uniformity is half of the sum of both logarithms, of sums that have every pair twice.
    for grad, half in zip(grads.all.split(n), total, strict=False):
        grad.mul_(spec.scale / half)
    along, factor = grads.state(1.0)
    (of_align, _) = grads._replace(all=of_align).state(1.0)
    return WholeLoss((loss, align, uniform), (of_align, along, factor), _frozen(call, rows))


def _alignment(rows: Rows, alpha: float) -> tuple[Tensor, Tensor]:
    """``|x_i - y_i|^alpha`` of each pair and its gradient by ``x_i``; 0 at distance 0."""
    difference = rows.of[0] - rows.of[1]
    if alpha == 2:
        return (difference * difference).sum(1), difference.mul_(2)
    # In units of the largest component no square over- or underflows.
    unit = difference.abs().amax(1, keepdim=True)
    same = unit == 0
    unit.masked_fill_(same, 1)
    difference /= unit
    length = torch.linalg.vector_norm(difference, dim=1, keepdim=True).masked_fill_(same, 1)
    distance = (unit * length).pow_(alpha).masked_fill_(same, 0)
    # |d|^(alpha - 2) alone would overflow for a small distance.
    slope = alpha * (unit * length).pow_(alpha - 1) / length
    return distance.squeeze(1), difference.mul_(slope)


_LOSSES: dict[str, Callable[[Call], WholeLoss]] = {
    "align_uniform": _align_uniform,
    "clip_loss": _clip_loss,
    "dcl": functools.partial(_views, decoupled=True),
    "dclw": functools.partial(_views, decoupled=True, weighted=True),
    "info_nce": _info_nce,
    "nt_xent": _views,
    "siglip": _siglip,
    "sup_con": _sup_con,
    "uniformity": _uniformity,
}
LOSSES = frozenset(_LOSSES)


def loss(inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> WholeLoss | None:
    """A whole loss and the state of its gradient; ``None`` where it is left to the composition."""
    if inputs.x.device.type != "cpu" or inputs.x.dim() != 2:
        return None
    try:
        return _LOSSES[spec.loss](Call(inputs, spec, need))
    except Unbounded:
        return None


def shapes(inputs: LossInputs, spec: LossSpec, need: Collection[str]) -> list[tuple[int, ...]]:
    """Those of the values and of the state of `loss`."""
    outputs, dim = 3 if spec.loss == "align_uniform" else 1, inputs.x.shape[1]
    found: list[tuple[int, ...]] = [()] * (outputs + sum([name in need for name in ("scale", "bias")]))
    sizes = [value.shape[0] for value in (inputs.x, inputs.y, inputs.queue) if value is not None]
    wanted = ["x" in need or "scale" in need, "y" in need, "queue" in need]
    if need and spec.loss in ("nt_xent", "dcl", "dclw"):
        wanted = [True, True]
    if True in wanted:
        rows = sum(sizes[: max([i + 1 for i, want in enumerate(wanted) if want])])
        found += [(rows, dim)] * max(1, outputs - 1) + [(rows, 1) if spec.normalize else ()]
    return found


def loss_grad(
    needed: dict[str, Tensor], spec: LossSpec, state: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]
) -> dict[str, Tensor]:
    """The gradients that are needed, by the name of the input."""
    found: dict[str, Tensor] = {}
    c = cotangents[0]
    for name in ("scale", "bias"):
        if name in needed and c is not None:
            of_scalar, *rest = state
            found[name] = (of_scalar * c).to(needed[name].dtype).view(needed[name].shape)
            state = tuple(rest)
    if not state:
        return found
    *along, factor = state
    if spec.loss != "align_uniform" and c is not None:
        return found | _features(needed, along[0], factor * c)
    of_loss, of_align, of_uniformity = (0.0 if c is None else c for c in cotangents)
    weights = spec.align_weight * of_loss + of_align, spec.uniform_weight * of_loss + of_uniformity
    return _features(needed, along[0] * weights[0] + along[1] * weights[1], factor)


def _features(needed: dict[str, Tensor], along: Tensor, factor: Tensor) -> dict[str, Tensor]:
    """The gradients of the features: ``along`` the sphere of the first rows of all, and a factor of each or of all."""
    found: dict[str, Tensor] = {}
    stop = along.shape[0]
    for name in ("queue", "y", "x"):  # there are rows up to the last that is needed
        if name in needed:
            x = needed[name]
            part = slice(0, x.shape[0]) if name == "x" else slice(stop - x.shape[0], stop)
            stop = part.start
            found[name] = (along[part] * (factor[part] if factor.dim() else factor)).to(x.dtype)
    return found
