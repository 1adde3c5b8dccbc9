"""What the contrastive losses share: the scale, the logits of the positives, how log-sum-exps are joined.

With the logit ``p_i`` of the positive and the log-sum-exp ``o_i`` of the *other* candidates the negative
log-probability of the positive is ``-log(e^p / (e^p + e^o)) = log(1 + e^(o - p))``: see `nll_from_excess` for why it
is computed in this form.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import autograd
from ..arguments import accurate_dtype
from ..spec import PairSpec, PairTerms, accumulate_dtype, is_bounded


def scaled(
    x: Tensor,
    scale: float | Tensor,
    terms: int,
    *,
    unit: bool,
    precision: str,
    weighted: bool = False,
    exclude: str = "none",
) -> tuple[Tensor, PairSpec]:
    """The rows of one side and the problem with the scale in it.

    A tensor's value must not be read, and its gradient is the inner product of the rows with their own
    gradient: multiplied into the rows, it needs neither.

    Args:
        x: prepared rows of one side.
        scale: of the logits.
        terms: the most terms of one sum of exponentials.
        unit: whether the rows of both sides have unit length.
        precision: `PairSpec.precision`.
        weighted: whether log-weights are added to the logits, which are then not bounded.
        exclude: `PairSpec.exclude`.
    """
    if isinstance(scale, Tensor):
        return x * scale.to(x.dtype).reshape(()), PairSpec(1.0, exclude=exclude, precision=precision)
    bounded = unit and not weighted and is_bounded(scale, terms, x.dtype)
    return x, PairSpec(scale, bounded, exclude, precision=precision)


def scaled_views(
    views: Sequence[Tensor], temperature: float | Tensor, terms: int, *, unit: bool, precision: str
) -> tuple[list[Tensor], PairSpec]:
    """The same where every side meets every other, itself included: each takes half of a tensor's logarithm."""
    if isinstance(temperature, Tensor):
        # Its rounding would be in every logit twice.
        accurate = temperature.reshape(()).to(accurate_dtype(views[0]))
        root = accurate.rsqrt().to(views[0].dtype)
        return [view * root for view in views], PairSpec(1.0, precision=precision)
    scale = 1 / temperature
    return list(views), PairSpec(scale, unit and is_bounded(scale, terms, views[0].dtype), precision=precision)


def number_or_tensor(value: float | Tensor, in_its_place: float = 1.0) -> tuple[float, Tensor | None]:
    """The two places that a `hyperkern.spec.LossSpec` and its inputs have for a number."""
    return (in_its_place, value) if isinstance(value, Tensor) else (float(value), None)


def inverse(temperature: float | Tensor, x: Tensor) -> float | Tensor:
    """The scale of the logits, in the dtype of the rows."""
    return 1 / (temperature.to(accumulate_dtype(x.dtype)) if isinstance(temperature, Tensor) else temperature)


def positive_logits(x: Tensor, y: Tensor, spec: PairSpec) -> Tensor:
    """``scale <x_i, y_i>``."""
    return spec.scale * (x * y).sum(-1)


def queue_lse(x: Tensor, queue: Tensor, spec: PairSpec, terms: PairTerms | None, backend: str | None) -> Tensor:
    """The log-sum-exp of each row over further candidates."""
    return autograd.row_lse(x, queue, spec=spec, terms=terms, backend=backend)[0]


def logsumexp(logits: Tensor) -> Tensor:
    """Over the last dimension; -inf, with gradient 0, if all are -inf.

    PyTorch's gradient is nan there, and elsewhere made of the rounded result: of large logits it does not sum to one.
    """
    known = logits.detach()
    # A rank without rows has no maximum.
    top = torch.cat([known, torch.full_like(known.sum(-1, keepdim=True), -torch.inf)], -1).amax(-1, keepdim=True)
    top = top.masked_fill(top == -torch.inf, 0)
    total = (logits - top).exp().sum(-1)
    empty = total == 0
    return (total.masked_fill(empty, 1).log() + top.squeeze(-1)).masked_fill(empty, -torch.inf)


def merged(*parts: Tensor) -> Tensor:
    """The log-sum-exp over several sets of candidates from that of each; -inf, with gradient 0, if all are empty."""
    total, *rest = parts
    for part in rest:
        # Not logaddexp: its gradient is made of its rounded result, where this one is made of the difference, so that
        # what one side gets the other loses; and its second derivative is nan where one is e^88 times the other (e^709
        # in float64).
        empty = (total == -torch.inf) & (part == -torch.inf)
        first = total >= part
        high, low = torch.where(first, total, part), torch.where(first, part, total)
        both = high + nll_from_excess((low - high).masked_fill(empty, 0))
        total = both.masked_fill(empty, -torch.inf)
    return total


def nll_from_excess(excess: Tensor) -> Tensor:
    """``-log p`` of the positive, ``log(1 + e^excess)``, from the excess of all other candidates over it.

    Never negative, exact 0 without other candidates, and to full relative accuracy for a confident model, where the
    difference of two nearly equal logarithms would be rounding alone.
    """
    # From 40 on it is the excess itself, to the last bit of float64. For logaddexp see `merged`.
    return F.softplus(excess, threshold=40.0)
