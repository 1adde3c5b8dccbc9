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

from ...spec import LossInputs, LossSpec, is_bounded
from .. import WholeLoss
from .normalize import Grads, Rows, Unbounded, prepared
from .pairs import Pairs, Tile, Weights, accurate_sum, energy, one_way, put_weights, two_sided
from .softmax import SOFTPLUS_IS_LINEAR, Softmax

# Numbers of float32 and of float64.
_LARGEST = torch.finfo(torch.float32).max, torch.finfo(torch.float64).max
# Of SigLIP's exponentials.
_LARGEST_LOGIT = {torch.float32: 80.0, torch.float64: 600.0}
_SCALARS, _FEATURES = ("scale", "bias"), ("x", "y", "queue")
# The order of the gradients in a state.
ORDER = _SCALARS + _FEATURES
# A row of a symmetric problem and itself.
_ITSELF = ((0, None),)


class Call(NamedTuple):
    """What is asked for, see `hyperkern.backends.Backend.loss`."""

    inputs: LossInputs
    spec: LossSpec
    need: Collection[str]


def _scale(inputs: LossInputs, spec: LossSpec) -> float:
    """The factor of the inner products, finite and >= 0; a tensor on a CPU may be read."""
    value = spec.scale
    if inputs.scale is not None:
        value = inputs.scale.item()
        if spec.temperature:
            value = 1 / value if value else math.nan
    if not 0 <= value <= _LARGEST[inputs.x.dtype == torch.float64]:  # nan is neither
        raise Unbounded
    return value


def _number(value: float, like: Tensor) -> Tensor:
    """A scalar of the dtype of a tensor, infinite beyond its range."""
    if abs(value) > _LARGEST[like.dtype == torch.float64]:
        value = math.copysign(math.inf, value)
    return like.new_full((), value)


def _frozen(call: Call, rows: Rows) -> dict[str, Tensor]:
    """The features without a gradient, as prepared."""
    found: dict[str, Tensor] = {}
    if call.need:
        for name, given, of in zip(_FEATURES, rows.given, rows.of, strict=False):
            if name not in call.need:
                found[name] = of.clone() if of is given else of
    return found


def _add_positives(grads: Grads, weights: Tensor) -> None:
    """The gradients of the positives where they are not among the pairs."""
    for grad, partner in ((grads.of[0], grads.rows.of[1]), (grads.of[1], grads.rows.of[0])):
        if grad is not None:
            grad.addcmul_(partner, weights.unsqueeze(1))


def _reduced(
    call: Call,
    value: float,
    grads: Grads,
    scale: float,
    anchors: int,
    *,
    per_pair: int = 1,
    symmetric: bool = False,
    of_bias: float = 0.0,
) -> WholeLoss:
    """The loss from its sum over anchors, of which a pair has ``per_pair``, and the state of the gradient."""
    (inputs, spec, need), x = call, grads.rows.of[0]
    count = anchors if spec.mean else per_pair
    of_scale = "scale" in need and inputs.scale is not None
    scalars, state, products = [], [], 0.0
    for i, name in enumerate(_FEATURES[: len(grads.of)]):
        if grads.of[i] is not None and (name in need or of_scale):
            found, radial = grads.behind(i, scale / count)
            if name in need:
                state.append(found)
            if of_scale and (symmetric or name == "x"):
                products += radial.sum(dtype=torch.float64).item()
    if of_scale:
        # Each pair is in them once from either side.
        by_scale = products / (2 * count if symmetric else count)
        scalars.append(_number(by_scale * (-scale * scale if spec.temperature else 1), x))
    if "bias" in need:
        scalars.append(_number(of_bias / count, x))
    return WholeLoss((_number(value / count, x),), (*scalars, *state), _frozen(call, grads.rows))


def _uniformity(call: Call) -> WholeLoss:
    inputs, spec, need = call
    rows = prepared(True, inputs.x, *(() if inputs.y is None else (inputs.y,)))
    x = rows.of[0]
    m, n = x.shape[0], 0 if inputs.y is None else inputs.y.shape[0]
    if not is_bounded(spec.scale, m * max(m, n), x.dtype):
        raise Unbounded
    grads = rows.grads(*["x" in need, "y" in need][: len(rows.of)])
    total, distinct = 0.0, m * (m - 1) // 2 if not n or spec.in_batch else 0
    if n:
        total = energy(Pairs(x, rows.of[1], spec.scale), grads.of[0], grads.of[1])
    if distinct:  # every pair is met in both orders
        within = None if not n or grads.of[0] is None else torch.empty_like(grads.of[0])
        among = Pairs(x, x, spec.scale, symmetric=True, left_out=_ITSELF)
        total += energy(among, grads.of[0] if within is None else within) / 2
        if within is not None and grads.of[0] is not None:
            grads.of[0].add_(within)
    value, state = _number(math.log(total / (m * n + distinct)) - spec.scale, x), []
    for i, grad in enumerate(grads.of):
        if grad is not None:
            state.append(grads.behind(i, spec.scale / total)[0])
    return WholeLoss((value,), tuple(state), _frozen(call, rows) if n else {})


def _info_nce(call: Call) -> WholeLoss:
    inputs, spec, need = call
    queue, anchors = inputs.queue, inputs.x.shape[0]
    assert inputs.y is not None
    rows = prepared(spec.normalize, inputs.x, inputs.y, *(() if queue is None else (queue,)))
    softmax = Softmax(rows, _scale(inputs, spec), max(anchors, 0 if queue is None else queue.shape[0]))
    grads = rows.grads(*["x" in need or "scale" in need, "y" in need, "queue" in need][: len(rows.of)])
    x, y = rows.of[0], rows.of[1]
    positives = x.new_empty(anchors) if spec.in_batch else softmax.logits(x, y)
    sets = [softmax.pairs(x, y, (0, positives))] if spec.in_batch else []
    grads_y = [grads.of[1]] if spec.in_batch else []
    if queue is not None:
        sets.append(softmax.pairs(x, rows.of[2]))
        grads_y.append(grads.of[2])
    of_partners = []

    def head(group: slice, sums: Tensor) -> Weights:
        row = softmax.coupled(sums, positives[group])
        if spec.in_batch:  # the factor of the row multiplies what is put among the exponentials too
            return Weights(row, None, {0: sums.neg_()})
        of_partners.append(sums.mul_(row).neg_())
        return Weights(row, None, {})

    one_way(sets, head, grads.of[0], grads_y)
    if not spec.in_batch:
        if grads.of[1] is not None:
            grads.of[1].zero_()
        _add_positives(grads, torch.cat(of_partners))
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
        factors = softmax.coupled(sums, positives)
        row, col = factors.unbind()
        return Weights(row, col, {0: sums.mul_(factors).sum(0).neg_()})

    two_sided(softmax.pairs(x, y, (0, positives)), head, grads.of[0], grads.of[1])
    return _reduced(call, softmax.value, grads, softmax.scale, 2 * pairs, per_pair=2)


def _views(call: Call, *, decoupled: bool = False, weighted: bool = False) -> WholeLoss:
    """NT-Xent and its decoupled forms: one symmetric problem of the rows of both views."""
    inputs, spec, need = call
    assert inputs.y is not None
    rows, n = prepared(spec.normalize, inputs.x, inputs.y), inputs.x.shape[0]
    z = torch.cat(list(rows.of))
    rows = rows._replace(of=z.split(n))
    softmax = Softmax(rows, _scale(inputs, spec), 2 * n)
    of_z, positives = torch.empty_like(z) if need else None, z.new_empty(n)
    grads = Grads(rows, (None, None) if of_z is None else of_z.split(n))

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
            row = softmax.coupled(by_view, positives)
            own = by_view.mul_(row).sum(0).neg_()
        own = own.repeat(2)
        return Weights(row.view(-1), None, {n: own, -n: own})

    two_sided(softmax.among(z, (0, None), (n, positives), (-n, None)), head, of_z)
    return _reduced(call, softmax.value, grads, softmax.scale, 2 * n, symmetric=True)


def _sup_con(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.labels is not None
    symmetric = inputs.y is None
    rows = prepared(spec.normalize, inputs.x, *(() if inputs.y is None else (inputs.y,)))
    x, candidates = rows.of[0], rows.of[-1]
    softmax = Softmax(rows, _scale(inputs, spec), candidates.shape[0])
    grads = rows.grads(*["x" in need or "scale" in need, "y" in need][: len(rows.of)])
    index, of_candidates, count = _classes(inputs)
    class_sums = candidates.new_zeros(len(count), x.shape[1]).index_add_(0, of_candidates, candidates)
    count, mean = count.index_select(0, index), class_sums.index_select(0, index)
    if symmetric:
        count, mean = count.sub_(1), mean.sub_(x)
    anchors, alone, share = x.shape[0], None, count.to(x.dtype).reciprocal_()
    if not count.min().item():  # of a row without a positive all that follows is multiplied by 0
        alone = count == 0
        anchors -= int(alone.sum().item())
        share.masked_fill_(alone, 0)
    mean *= share.unsqueeze(1)
    positives = softmax.logits(x, mean)

    def head(group: slice, sums: Tensor) -> Weights:
        if softmax.shift:
            softmax.check(sums)
        losses, factors = sums.log().sub_(positives[group]), sums.reciprocal_()
        if alone is not None:
            losses.masked_fill_(alone[group], 0)
            factors.masked_fill_(alone[group], 0)
        softmax.add(losses)
        return Weights(factors, None, {})

    if symmetric:
        everything = slice(0, x.shape[0])
        two_sided(softmax.among(x, *_ITSELF), lambda sums: head(everything, sums), grads.of[0])
    else:
        one_way([softmax.pairs(x, candidates)], head, grads.of[0], [grads.of[1]])
    if (grad := grads.of[0]) is not None:
        grad.sub_(mean, alpha=2 if symmetric else 1)  # as an anchor, and as a positive of others
    if not symmetric and (grad := grads.of[1]) is not None:
        grad -= class_sums.zero_().index_add_(0, index, x * share.unsqueeze(1)).index_select(0, of_candidates)
    return _reduced(call, softmax.value, grads, softmax.scale, max(1, anchors), symmetric=symmetric)


def _classes(inputs: LossInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Of the rows and of the candidates, numbered from 0 on, and how many candidates each has.

    Sorting is the library's: unlike `hyperkern.classes` this may look how many classes there are.
    """
    labels, of_y = inputs.labels, inputs.y_labels
    assert labels is not None
    if of_y is None:
        _, index, count = labels.unique(return_inverse=True, return_counts=True)
        return index, index, count
    classes, index = torch.cat((labels, of_y)).unique(return_inverse=True)
    index, of_candidates = index.tensor_split((len(labels),))
    return index, of_candidates, of_candidates.bincount(minlength=len(classes))


def _siglip(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.y is not None
    rows, pairs = prepared(spec.normalize, inputs.x, inputs.y), inputs.x.shape[0]
    scale, bias = _scale(inputs, spec), spec.bias if inputs.bias is None else inputs.bias.item()
    if not scale * rows.bound + abs(bias) < _LARGEST_LOGIT[rows.of[0].dtype]:
        raise Unbounded
    grads = rows.grads("x" in need or "scale" in need, "y" in need)
    x, y = rows.of[0], rows.of[1]
    partners = torch.rsub(torch.linalg.vecdot(x, y), -bias, alpha=scale)
    own, of_bias = torch.sigmoid(partners).neg_(), 0.0

    def weigh(exponentials: Tensor, tile: Tile) -> float:
        nonlocal of_bias
        value = accurate_sum(exponentials.log1p())
        exponentials.div_(exponentials + 1)
        put_weights(exponentials, tile, {0: own})
        if "bias" in need:
            of_bias += exponentials.sum().item()
        return value

    total = energy(Pairs(x, y, scale, -bias, left_out=_ITSELF), grads.of[0], grads.of[1], weigh)
    total += F.softplus(partners, threshold=SOFTPLUS_IS_LINEAR).sum(dtype=torch.float64).item()
    return _reduced(call, total, grads, scale, pairs, of_bias=of_bias)


def _align_uniform(call: Call) -> WholeLoss:
    inputs, spec, need = call
    assert inputs.y is not None
    rows, n = prepared(True, inputs.x, inputs.y), inputs.x.shape[0]
    if not is_bounded(spec.scale, n * n, rows.of[0].dtype):
        raise Unbounded
    grads = rows.grads("x" in need, "y" in need)
    uniform, slopes = -spec.scale, []
    for z, grad in zip(rows.of, grads.of, strict=True):
        total = energy(Pairs(z, z, spec.scale, symmetric=True, left_out=_ITSELF), grad)
        # The uniformity is half of the sum of both logarithms, of sums that have every pair twice.
        uniform += 0.5 * math.log(total / (n * (n - 1)))
        slopes.append(spec.scale / total)
    distances, directions = _alignment(rows, spec.alpha)
    align = distances.sum(dtype=torch.float64).item() / n
    loss = spec.align_weight * align + spec.uniform_weight * uniform
    values = tuple([_number(value, directions) for value in (loss, align, uniform)])
    of_align = Grads(rows, (directions, -directions))
    state = [
        term.behind(i, factor)[0]
        for term, factors in ((of_align, (1 / n, 1 / n)), (grads, slopes))
        for i, factor in enumerate(factors)
        if grads.of[i] is not None
    ]
    return WholeLoss(values, tuple(state), _frozen(call, rows))


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
    outputs = 3 if spec.loss == "align_uniform" else 1
    features = [tuple(getattr(inputs, name).shape) for name in _FEATURES if name in need]
    return [()] * (outputs + sum([name in need for name in _SCALARS])) + features * max(1, outputs - 1)


def loss_grad(
    needed: dict[str, Tensor], spec: LossSpec, state: tuple[Tensor, ...], cotangents: tuple[Tensor | None, ...]
) -> dict[str, Tensor]:
    """The gradients that are needed, by the name of the input."""
    names, c = [name for name in ORDER if name in needed], cotangents[0]
    if spec.loss == "align_uniform":
        of_loss, of_align, of_uniformity = (0.0 if c is None else c for c in cotangents)
        weights = spec.align_weight * of_loss + of_align, spec.uniform_weight * of_loss + of_uniformity
        terms = zip(state[: len(names)], state[len(names) :], strict=True)
        state = tuple([align * weights[0] + uniform * weights[1] for align, uniform in terms])
    else:
        assert c is not None
        state = tuple([grad * c for grad in state])
    found = {}
    for name, grad in zip(names, state, strict=True):
        given = needed[name]
        # A step that changes nothing takes its time too.
        found[name] = grad if grad.dtype == given.dtype else grad.to(given.dtype)
        if grad.dim() != given.dim():
            found[name] = found[name].view(given.shape)
    return found
