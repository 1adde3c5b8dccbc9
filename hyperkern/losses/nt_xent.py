"""Losses of several views of the same samples: NT-Xent of SimCLR and its decoupled forms."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import autograd
from ..arguments import (
    REDUCTIONS,
    check_backend,
    check_choice,
    check_columns,
    check_positive,
    check_rows,
    check_scale,
    check_vector,
    is_empty_queue,
    reduce_rows,
    renamed,
)
from ..distributed import Agreement, GroupLike, Ranks
from ..options import ScaledLoss
from ..spec import LossInputs, LossSpec, PairSpec, product_precision
from .logits import merged, nll_from_excess, number_or_tensor, positive_logits, queue_lse, scaled_views


def nt_xent(
    x: Tensor,
    y: Tensor,
    *views: Tensor,
    temperature: float | Tensor = 0.5,
    negatives: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""NT-Xent: each row picks its counterpart in another view among the other samples of all views.

    With ``O_a`` the sum over the candidates of an anchor ``a``, the rows of all V views that show another sample,

    .. math::
        \ell_{a p} = -\log \frac{e^{\hat z_a \cdot \hat z_p / \tau}}
            {e^{\hat z_a \cdot \hat z_p / \tau} + O_a}, \qquad
        O_a = \sum_{b:\, s(b) \ne s(a)} e^{\hat z_a \cdot \hat z_b / \tau}

    averaged over the V - 1 positives ``p`` of an anchor, then over all V N anchors.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of the first view, float64, float32, bfloat16 or float16, any strides.
        y: those of the second view, like ``x``; row i shows the sample of row i.
        *views: those of further views.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked. Learn its logarithm
            and pass ``log_temperature.exp()``.
        negatives: ``(K, D)`` or ``(B, K, D)`` further negatives of every anchor, a queue for instance, of the dtype of
            ``x``. An empty queue, K = 0, counts as none.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the V N anchors, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; the views are those of this one, ``negatives`` are
            the same on all of them.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(V N,)`` (``(B, V N)``) for ``reduction="none"``, one
        view after the other; float64 for float64 input, float32 otherwise. A single sample without negatives has
        nothing to tell apart: loss 0.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``temperature <= 0``, an unknown ``reduction``, an
            unknown or unusable ``backend``.

    Source:
        Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, Eq. 1.
    """
    sides, checked = (x, y, *views), _Checked(temperature, normalize, reduction)
    with Agreement(group, "nt_xent", **checked._asdict()) as agreed:
        checked, backend = _check_views(sides, checked, agreed, negatives, backend)

    def composed(sides: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        options = checked._replace(temperature=temperature)
        others, positives = _candidates(sides, options, agreed.ranks, negatives, backend)
        losses = [
            torch.stack([nll_from_excess(rest - logits) for logits in of_view]).mean(0)
            for rest, of_view in zip(others, positives, strict=True)
        ]
        return reduce_rows(torch.cat(losses, -1), reduction, agreed.ranks, len(sides))

    if views or not (negatives is None or is_empty_queue(negatives)):
        return composed(sides, checked.temperature)
    return _of_two_views("nt_xent", x, y, checked, agreed.ranks, composed, backend)


def dcl(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Decoupled contrastive loss: NT-Xent without the positive in the denominator.

    .. math::
        \ell_a = -w_a\, \hat z_a \cdot \hat z_{p(a)} / \tau
            + \log \sum_{b:\, s(b) \ne s(a)} e^{\hat z_a \cdot \hat z_b / \tau}

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of one view, N >= 2, float64, float32, bfloat16 or float16, any strides.
        y: those of the other, like ``x``; row i is the partner of row i.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked.
        x_weights: ``w`` of the anchors in ``x``, ``(N,)`` or ``(B, N)``; by default 1. See `dclw`.
        y_weights: those of the anchors in ``y``, likewise.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the 2N anchors, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one, the
            weights those of its rows.
        backend: name of a backend to force; by default the best usable one.
        weights: deprecated, ``x_weights`` and ``y_weights`` as a pair.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(2N,)`` (``(B, 2N)``) for ``reduction="none"``, first
        the anchors in ``x``; float64 for float64 input, float32 otherwise. It can be negative.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, fewer than two rows, ``weights`` that are no pair, different devices,
            ``temperature <= 0``, an unknown ``reduction``, an unknown or unusable ``backend``.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022, Eq. 6.
    """
    if weights is not None:
        renamed("dcl", "weights", "x_weights and y_weights", x_weights, y_weights)
        if not isinstance(weights, tuple) or len(weights) != 2:
            raise ValueError(
                f"weights must be two tensors, for the anchors in x and in y, got {type(weights).__name__}"
            )
        x_weights, y_weights = weights
    checked = _Checked(temperature, normalize, reduction)
    with Agreement(group, "dcl", **checked._asdict()) as agreed:
        checked, backend = _check_views((x, y), checked, agreed, None, backend)
        for name, of_rows, rows in (("x", x_weights, x), ("y", y_weights, y)):
            if of_rows is not None:
                check_vector(f"{name}_weights", of_rows, name, rows)
                agreed.shard(**{f"{name}_weights": of_rows})
    ranks = agreed.ranks
    _check_negatives(x, ranks)

    def composed(sides: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        return _decoupled(sides, checked._replace(temperature=temperature), ranks, (x_weights, y_weights), backend)

    if x_weights is not None or y_weights is not None:
        return composed((x, y), checked.temperature)
    return _of_two_views("dcl", x, y, checked, ranks, composed, backend)


def dclw(
    x: Tensor,
    y: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    sigma: float = 0.5,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""Decoupled contrastive loss whose positives weigh less the more alike they are already.

    The weight of a positive is ``w_i = 2 - N softmax_i(x_i . y_i / sigma)``, of the von Mises-Fisher density and the
    rows that the loss multiplies, normalised or not; it is not differentiated.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of one view, N >= 2, float64, float32, bfloat16 or float16, any strides.
        y: those of the other, like ``x``; row i is the partner of row i.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked.
        sigma: width of the weighting, > 0.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the 2N anchors, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        As `dcl`.

    Raises:
        TypeError: as `dcl`.
        ValueError: as `dcl`, and ``sigma <= 0``.

    Source:
        Yeh et al., "Decoupled Contrastive Learning", ECCV 2022.
    """
    checked = _Checked(temperature, normalize, reduction)
    with Agreement(group, "dclw", sigma=sigma, **checked._asdict()) as agreed:
        sigma = check_positive("sigma", sigma)
        checked, backend = _check_views((x, y), checked, agreed, None, backend)
    ranks = agreed.ranks
    _check_negatives(x, ranks)

    def composed(sides: Sequence[Tensor], temperature: float | Tensor) -> Tensor:
        # Not by no_grad, which is for reverse mode alone.
        a, b = (autograd.prepare(side.detach(), normalize=normalize, backend=backend) for side in sides)
        logits = positive_logits(a, b, PairSpec(1 / sigma))
        # Beside the maximum: a log-sum-exp of large logits has lost digits of its sum. A rank without rows has none.
        top = torch.cat([logits, torch.full_like(logits.sum(-1, keepdim=True), -torch.inf)], -1).amax(-1, keepdim=True)
        exponentials = (logits - ranks.max(top)).exp()
        weights = 2 - ranks.total * exponentials / ranks.sum(exponentials.sum(-1, keepdim=True))
        return _decoupled(sides, checked._replace(temperature=temperature), ranks, (weights, weights), backend)

    return _of_two_views("dclw", x, y, checked, ranks, composed, backend, sigma=float(sigma))


class NTXentLoss(ScaledLoss):
    """`hyperkern.nt_xent` as a module that can learn its temperature."""

    temperature: float = 0.5

    def forward(self, x: Tensor, y: Tensor, *views: Tensor, negatives: Tensor | None = None) -> Tensor:
        """The loss of two or more views of the same samples, each ``(N, D)``, and ``(K, D)`` further negatives."""
        return nt_xent(x, y, *views, negatives=negatives, **self.given())


class DCLLoss(ScaledLoss):
    """`hyperkern.dcl` as a module that can learn its temperature."""

    temperature: float = 0.1

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        x_weights: Tensor | None = None,
        y_weights: Tensor | None = None,
        weights: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The loss of the partners ``(x_i, y_i)``, both ``(N, D)``, and the weights ``(N,)`` of either's positives."""
        return dcl(x, y, x_weights=x_weights, y_weights=y_weights, weights=weights, **self.given())


class DCLWLoss(ScaledLoss):
    """`hyperkern.dclw` as a module that can learn its temperature."""

    temperature: float = 0.1
    sigma: float = 0.5

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of the partners ``(x_i, y_i)``, both ``(N, D)``."""
        return dclw(x, y, **self.given())


class _Checked(NamedTuple):
    """The options that all losses of this file have."""

    temperature: float | Tensor
    normalize: bool
    reduction: str


def _check_views(
    views: tuple[Tensor, ...], options: _Checked, agreed: Agreement, negatives: Tensor | None, backend: str | None
) -> tuple[_Checked, str | None]:
    """The options and the backend as they are used from here on."""
    first, may_be_empty = views[0], agreed.may_be_empty
    names = ["x", "y", *(f"views[{i}]" for i in range(len(views) - 2))]
    check_rows("x", first, may_be_empty=may_be_empty)
    for name, view in zip(names[1:], views[1:], strict=True):
        check_columns(name, view, first, same_rows=True, may_be_empty=may_be_empty)
    temperature = check_scale("temperature", options.temperature, first)
    check_choice("reduction", options.reduction, REDUCTIONS)
    if negatives is not None:
        check_columns("negatives", negatives, first, may_be_empty=True)
    if agreed.may_be_empty:
        backend = check_backend(backend, first, agreed)
    agreed.shard(**dict(zip(names, views, strict=True)))
    agreed.same(negatives=negatives)
    return options._replace(temperature=temperature), backend


def _check_negatives(x: Tensor, ranks: Ranks) -> None:
    if ranks.total < 2:
        raise ValueError(f"x must have at least 2 rows: one alone has no negatives, got shape {tuple(x.shape)}")


def _of_two_views(
    loss: str,
    x: Tensor,
    y: Tensor,
    options: _Checked,
    ranks: Ranks,
    composed: Callable[[Sequence[Tensor], float | Tensor], Tensor],
    backend: str | None,
    **further: Any,
) -> Tensor:
    """A loss of two views and nothing else; ``composed`` makes it of the views and the temperature."""
    number, tensor = number_or_tensor(options.temperature)

    def of_inputs(inputs: LossInputs) -> tuple[Tensor]:
        assert inputs.y is not None
        return (composed((inputs.x, inputs.y), number if inputs.scale is None else inputs.scale),)

    inputs = LossInputs(x, y, scale=tensor)
    if not ranks.alone or options.reduction == "none":
        return of_inputs(inputs)[0]
    whole = LossSpec(
        loss,
        1.0 if tensor is not None else 1 / number,
        temperature=tensor is not None,
        normalize=options.normalize,
        mean=options.reduction == "mean",
        precision=product_precision(x),
        **further,
    )
    return autograd.loss(inputs, whole, of_inputs, backend=backend)[0]


def _decoupled(
    sides: Sequence[Tensor],
    options: _Checked,
    ranks: Ranks,
    weights: tuple[Tensor | None, Tensor | None],
    backend: str | None,
) -> Tensor:
    others, positives = _candidates(sides, options, ranks, None, backend)
    logits = [p if w is None else p * w.to(p.dtype) for (p,), w in zip(positives, weights, strict=True)]
    return reduce_rows(torch.cat(others, -1) - torch.cat(logits, -1), options.reduction, ranks, 2)


def _candidates(
    views: Sequence[Tensor], options: _Checked, ranks: Ranks, negatives: Tensor | None, backend: str | None
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """For each view the log-sum-exp over the other samples of all views, and the logits of its V - 1 positives."""
    sides = autograd.prepare_views(*views, normalize=options.normalize, backend=backend)
    terms = len(views) * ranks.total
    if negatives is not None and not is_empty_queue(negatives):
        sides.append(autograd.prepare(negatives, normalize=options.normalize, backend=backend))
        terms = max(terms, negatives.shape[-2])
    precision = product_precision(views[0])
    rows, spec = scaled_views(sides, options.temperature, terms, unit=options.normalize, precision=precision)
    rows, queue = rows[: len(views)], rows[len(views) :]
    # On other ranks there are other samples only: all views against all in one problem.
    together = None if ranks.alone else torch.cat(rows, -2)
    remote = None if together is None else autograd.share(ranks.of_views(len(rows)), together)
    # A view against itself and against another one: what both diagonals leave out shows the same sample.
    other_samples = spec._replace(exclude="self")
    parts = [[autograd.row_lse(row, None, spec=other_samples, backend=backend)[0]] for row in rows]
    positives: list[list[Tensor]] = [[] for _ in rows]
    for i, j in itertools.combinations(range(len(rows)), 2):
        by_row, by_col = autograd.row_lse(rows[i], rows[j], spec=other_samples, need_cols=True, backend=backend)
        logits = positive_logits(rows[i], rows[j], spec)
        for at, part in ((i, by_row), (j, by_col)):
            parts[at].append(part)
            positives[at].append(logits)
    if together is not None and remote is not None:
        there = autograd.remote_row_lse(together, None, remote, spec=spec, backend=backend).row_lse
        of_views = there.unflatten(-1, (len(rows), views[0].shape[-2])).unbind(-2)
        for merging, part in zip(parts, of_views, strict=True):
            merging.append(part)
    for merging, row in zip(parts, rows, strict=True):
        merging += [queue_lse(row, n, spec, None, backend) for n in queue]
    return [merged(*of_view) for of_view in parts], positives
