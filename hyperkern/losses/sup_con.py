"""Supervised contrastive loss: the positives of a row are the rows of its class."""

import torch
from torch import Tensor

from .. import autograd
from ..arguments import REDUCTIONS, check_backend, check_choice, check_columns, check_rows, check_scale, check_vector
from ..distributed import Agreement, GroupLike
from ..options import ScaledLoss
from ..spec import LossInputs, LossSpec, product_precision
from .logits import inverse, merged, number_or_tensor, scaled, scaled_views


def sup_con(
    x: Tensor,
    labels: Tensor,
    y: Tensor | None = None,
    y_labels: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""Supervised contrastive loss: each row picks the rows of its class among all others.

    .. math::
        \ell_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{e^{\hat x_i \cdot \hat x_p / \tau}}
            {\sum_{a \ne i} e^{\hat x_i \cdot \hat x_a / \tau}}
            = \log \sum_{a \ne i} e^{\hat x_i \cdot \hat x_a / \tau}
            - \frac{\hat x_i \cdot \sum_{p \in P(i)} \hat x_p}{\tau\, |P(i)|}

    The right-hand side needs no matrix of pairs: one sum for each class or, in kernels, a comparison of the labels of a
    pair that is visited anyway. For V views of N samples pass their ``V N`` rows with the labels repeated.

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features, float64, float32, bfloat16 or float16, any strides.
        labels: ``(N,)`` or ``(B, N)`` integers, the classes.
        y: ``(M, D)`` or ``(B, M, D)`` other features as the candidates instead of those of ``x``, a queue for instance.
        y_labels: ``(M,)`` or ``(B, M)``, their classes.
        temperature: > 0; a scalar tensor is learnable, and its value is neither read nor checked. Learn its logarithm
            and pass ``log_temperature.exp()``.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` over the rows that have a positive, ``"sum"``, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``labels`` are those of this one, ``y`` and
            ``y_labels`` the same on all of them.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(N,)`` (``(B, N)``) for ``reduction="none"``;
        float64 for float64 input, float32 otherwise. A row without a positive, the only one of its class, has loss 0
        and gradient 0 and does not count in the mean; it is a negative of the others. If no row has a
        positive the loss is 0.

    Raises:
        TypeError: an input is no tensor, not of a wanted dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, ``y`` without ``y_labels`` or the reverse, different devices,
            ``temperature <= 0``, an unknown ``reduction``, an unknown or unusable ``backend``.

    Source:
        Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, Eq. 2.
    """
    with Agreement(group, "sup_con", temperature=temperature, normalize=normalize, reduction=reduction) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_vector("labels", labels, "x", x, integer=True)
        if (y is None) != (y_labels is None):
            given, missing = ("y_labels", "y") if y is None else ("y", "y_labels")
            raise ValueError(f"{given} is given, {missing} is None: candidates need both")
        if y is not None and y_labels is not None:
            check_columns("y", y, x)
            check_vector("y_labels", y_labels, "y", y, integer=True)
        temperature = check_scale("temperature", temperature, x)
        check_choice("reduction", reduction, REDUCTIONS)
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, labels=labels)
        agreed.same(y=y, y_labels=y_labels)
    ranks = agreed.ranks
    precision = product_precision(x)
    number, tensor = number_or_tensor(temperature)
    inputs = LossInputs(x, y, scale=tensor, labels=labels, y_labels=y_labels)

    def composed(inputs: LossInputs) -> tuple[Tensor]:
        x, y = autograd.prepare(inputs.x, normalize=normalize, backend=backend), inputs.y
        temperature = number if inputs.scale is None else inputs.scale
        remote = None
        if y is None or y_labels is None:
            (x,), spec = scaled_views([x], temperature, ranks.total, unit=normalize, precision=precision)
            remote = autograd.share(ranks, x, labels=labels)
            candidates, (index,) = x, autograd.class_index(labels)
            candidate_index, own = index, 1
            row_lse, _ = autograd.row_lse(x, None, spec=spec._replace(exclude="self"), backend=backend)
        else:
            y = autograd.prepare(y, normalize=normalize, backend=backend)
            x, spec = scaled(x, inverse(temperature, x), y.shape[-2], unit=normalize, precision=precision)
            candidates, own = y, 0
            index, candidate_index = autograd.class_index(labels, y_labels)
            row_lse, _ = autograd.row_lse(x, y, spec=spec, backend=backend)

        classes = x.shape[-2] + (0 if y is None else y.shape[-2])
        sums = autograd.class_sums(candidates, candidate_index, index, classes)
        ones = torch.ones_like(candidates[..., :1])
        count = autograd.class_sums(ones, candidate_index, index, classes).squeeze(-1) - own
        if own:
            sums = sums - x
        positives = (x * sums).sum(-1)
        if remote is not None:
            there = autograd.remote_row_lse(x, None, remote, spec=spec, labels=labels, backend=backend)
            row_lse, positives, count = (
                merged(row_lse, there.row_lse),
                positives + there.positives,
                count + there.number,
            )
        has_positive = count > 0
        mean_positive = spec.scale * positives / count.clamp_min(1)
        # Of a single row the log-sum-exp is -inf.
        losses = torch.where(has_positive, row_lse.masked_fill(~has_positive, 0) - mean_positive, 0)
        if reduction == "none":
            return (losses,)
        total = autograd.sum_over_ranks(losses.sum(-1), ranks)
        return (total if reduction == "sum" else total / ranks.sum(has_positive.sum(-1)).clamp_min(1),)

    if reduction == "none" or not ranks.alone:
        return composed(inputs)[0]
    whole = LossSpec(
        "sup_con",
        1.0 if tensor is not None else 1 / number,
        temperature=tensor is not None,
        normalize=normalize,
        mean=reduction == "mean",
        precision=precision,
    )
    return autograd.loss(inputs, whole, composed, backend=backend)[0]


class SupConLoss(ScaledLoss):
    """`hyperkern.sup_con` as a module that can learn its temperature."""

    temperature: float = 0.1

    def forward(self, x: Tensor, labels: Tensor, y: Tensor | None = None, y_labels: Tensor | None = None) -> Tensor:
        """The loss of the features ``x`` ``(N, D)`` with classes ``labels`` ``(N,)``; see `hyperkern.sup_con`."""
        return sup_con(x, labels, y, y_labels, **self.given())
