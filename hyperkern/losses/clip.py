"""The two-way losses of image-text models: CLIP's softmax and SigLIP's sigmoid."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from .. import autograd
from ..arguments import (
    REDUCTIONS,
    check_backend,
    check_choice,
    check_columns,
    check_rows,
    check_scalar,
    check_scale,
    check_vector,
    reduce_rows,
)
from ..autograd.across_ranks import RemoteLSE
from ..distributed import Agreement, GroupLike, Ranks
from ..options import Option, ScaledLoss, one_of
from ..spec import LossInputs, LossSpec, PairSpec, PairTerms, product_precision
from .logits import merged, nll_from_excess, number_or_tensor, positive_logits, scaled


def clip_loss(
    x: Tensor,
    y: Tensor,
    *,
    logit_scale: float | Tensor,
    ids: Tensor | None = None,
    labels: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""The two-way contrastive loss, of CLIP and of Wang & Isola's paper.

    .. math::
        L = \frac{1}{2N} \sum_i \Bigl( \log \sum_j e^{s\, \hat x_i \cdot \hat y_j}
            + \log \sum_j e^{s\, \hat x_j \cdot \hat y_i} - 2 s\, \hat x_i \cdot \hat y_i \Bigr)

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of one view or modality, float64, float32, bfloat16 or float16,
            any strides.
        y: features of the other, like ``x``; row i is the partner of row i.
        logit_scale: ``s = 1 / temperature`` > 0; for a model that learns its logarithm, as CLIP does, pass
            ``model.logit_scale.exp()``. A scalar tensor is learnable, and its value is neither read nor checked.
        ids: ``(N,)`` or ``(B, N)`` integers, what the pairs show: rows of equal ids are no negatives of each other
            (repeated captions, for instance).
        labels: ``(N,)`` or ``(B, N)`` integers, the classes of the pairs: the target of a row is spread evenly over all
            rows of its class on the other side, and ``s x_i . y_i`` above is the mean over these, in either direction.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"`` or ``"sum"`` over the N pairs, or ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar (``(B,)`` with a leading batch dimension), or ``(N,)`` (``(B, N)``) for ``reduction="none"``;
        float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no tensor, not of a wanted dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``logit_scale <= 0``, an unknown ``reduction``,
            ``ids`` beside ``labels``, an unknown or unusable ``backend``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, Figure 3;
        Wang & Isola, ICML 2020, Eq. 1, with the negatives of the other view. With labels Yang et al., "Unified
        Contrastive Learning in Image-Text-Label Space", CVPR 2022, Eqs. 2 to 4.
    """
    options: dict[str, Any] = {"logit_scale": logit_scale, "normalize": normalize, "reduction": reduction}
    with Agreement(group, "clip_loss", **options) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_columns("y", y, x, same_rows=True, may_be_empty=agreed.may_be_empty)
        logit_scale = check_scale("logit_scale", logit_scale, x)
        check_choice("reduction", reduction, REDUCTIONS)
        if ids is not None:
            check_vector("ids", ids, "x", x, integer=True)
        if labels is not None:
            check_vector("labels", labels, "x", x, integer=True)
            if ids is not None:
                raise ValueError("ids leave out pairs that labels make positives: give one of them")
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, y=y, ids=ids, labels=labels)
    ranks, precision = agreed.ranks, product_precision(x)
    number, tensor = number_or_tensor(logit_scale)
    inputs = LossInputs(x, y, scale=tensor)

    def composed(inputs: LossInputs) -> tuple[Tensor]:
        x, y = autograd.prepare_views(inputs.x, inputs.y, normalize=normalize, backend=backend)
        scale = number if inputs.scale is None else inputs.scale
        # A partner has the same id.
        exclude = "self" if ids is None else "same_id"
        x, spec = scaled(x, scale, ranks.total, unit=normalize, precision=precision, exclude=exclude)
        remote, there = autograd.share(ranks, y, ids=ids, labels=labels), None
        terms = None if ids is None else PairTerms(row_ids=ids, col_ids=ids)
        other_cols, other_rows = autograd.row_lse(x, y, spec=spec, terms=terms, need_cols=True, backend=backend)
        if remote is not None:
            there = autograd.remote_row_lse(
                x, y, remote, spec=spec, terms=terms, labels=labels, need_cols=True, backend=backend
            )
            other_cols, other_rows = merged(other_cols, there.row_lse), merged(other_rows, there.col_lse)
        positives = positive_logits(x, y, spec)
        by_row, by_col = nll_from_excess(other_cols - positives), nll_from_excess(other_rows - positives)
        if labels is not None:
            mean_of_row, size = _of_class(x, y, labels, spec, there)
            mean_of_col = mean_of_row
            if reduction == "none":  # summed, both directions have the same pairs with the same weights
                back = autograd.share(ranks, x, labels=labels)
                if back is not None:
                    there = autograd.remote_row_lse(y, x, back, spec=spec, labels=labels, backend=backend)
                mean_of_col, _ = _of_class(y, x, labels, spec, there)
            by_row = torch.where(size == 1, by_row, merged(other_cols, positives) - mean_of_row)
            by_col = torch.where(size == 1, by_col, merged(other_rows, positives) - mean_of_col)
        return (reduce_rows((by_row + by_col) / 2, reduction, ranks),)

    if ids is not None or labels is not None or reduction == "none" or not ranks.alone:
        return composed(inputs)[0]
    whole = LossSpec("clip_loss", number, normalize=normalize, mean=reduction == "mean", precision=precision)
    return autograd.loss(inputs, whole, composed, backend=backend)[0]


def _of_class(x: Tensor, y: Tensor, labels: Tensor, spec: PairSpec, there: RemoteLSE | None) -> tuple[Tensor, Tensor]:
    """The mean logit of each row with all rows of its class on the other side, and how many these are."""
    (index,) = autograd.class_index(labels)
    ones = torch.ones_like(y[..., :1])
    sums, count = (autograd.class_sums(rows, index, index, y.shape[-2]) for rows in (y, ones))
    positives, size = (x * sums).sum(-1), count.squeeze(-1)
    if there is not None:
        positives, size = positives + there.positives, size + there.number
    return spec.scale * positives / size, size


class CLIPLoss(ScaledLoss):
    """`hyperkern.clip_loss` as a module that can learn its scale."""

    logit_scale: float = 1 / 0.07

    def forward(self, x: Tensor, y: Tensor, *, ids: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The two-way loss of the partners ``(x_i, y_i)``, both ``(N, D)`` or ``(B, N, D)``."""
        return clip_loss(x, y, ids=ids, labels=labels, **self.given())


def siglip(
    x: Tensor,
    y: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    normalize: bool = True,
    reduction: str = "mean",
    group: GroupLike = None,
    backend: str | None = None,
) -> Tensor:
    r"""The sigmoid loss of SigLIP: every pair is a decision of its own, partners or not.

    .. math::
        L = \frac1N \sum_i \Bigl( \log(1 + e^{-\ell_{ii}}) + \sum_{j \ne i} \log(1 + e^{\ell_{ij}}) \Bigr), \qquad
        \ell_{ij} = s\, \hat x_i \cdot \hat y_j + b

    Args:
        x: ``(N, D)`` or ``(B, N, D)`` features of one view or modality, float64, float32, bfloat16 or float16,
            any strides.
        y: features of the other, like ``x``; row i is the partner of row i.
        logit_scale: ``s`` > 0, ``model.logit_scale.exp()`` for instance; SigLIP starts at 10. A scalar tensor is
            learnable, and its value is neither read nor checked.
        logit_bias: ``b``; SigLIP starts at -10. A scalar tensor is learnable.
        normalize: whether rows are scaled to unit length first.
        reduction: ``"mean"``, the sum over all pairs divided by N as in the paper, or ``"sum"``. The pairs of a row
            are not kept apart: there is no ``"none"``.
        group: the ranks that share the batch, a `torch.distributed.ProcessGroup`, a `DeviceMesh` of one dimension or a
            `hyperkern.Group`; ``x`` and ``y`` are those of this one.
        backend: name of a backend to force; by default the best usable one.

    Returns:
        A scalar, or ``(B,)`` with a leading batch dimension; float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no tensor, not of a floating dtype, or the dtypes differ.
        ValueError: a wrong or empty shape, different devices, ``logit_scale <= 0``, a bias that is not finite, an
            unknown ``reduction``, an unknown or unusable ``backend``.

    Source:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023, Section 3.2.
    """
    own, ranks = own_decisions(
        x,
        y,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        normalize=normalize,
        reduction=reduction,
        group=group,
        backend=backend,
    )
    if ranks.alone:
        return own
    total = autograd.sum_over_ranks(own, ranks)
    return total / ranks.total if reduction == "mean" else total


class SigLIPLoss(ScaledLoss):
    """`hyperkern.siglip` as a module that can learn its scale and bias."""

    logit_scale: float = 10.0
    logit_bias: float = -10.0
    reduction: Annotated[str, Option('``"mean"`` or ``"sum"``.', one_of("mean", "sum"), "an unknown ``reduction``")] = (
        "mean"
    )

    def _complete(self) -> None:
        super()._complete()
        self.learned_bias = nn.Parameter(torch.tensor(float(self.logit_bias))) if self.learnable else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of all pairs of ``x`` and ``y``, both ``(N, D)`` or ``(B, N, D)``; row i goes with row i."""
        options = self.given()
        if self.learned_bias is not None:
            options["logit_bias"] = self.learned_bias
        return siglip(x, y, **options)


def own_decisions(
    x: Tensor,
    y: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor,
    normalize: bool,
    reduction: str = "mean",
    group: GroupLike,
    backend: str | None = None,
) -> tuple[Tensor, Ranks]:
    """The part of this rank in `siglip`, and who shares the batch.

    It is the sum over the pairs of its rows of ``x`` with all rows of ``y``; reduced where nobody shares it. Its
    gradient is that of the sum of the parts of all ranks, which must go backward with the same gradient.
    """
    options: dict[str, Any] = {
        "logit_scale": logit_scale,
        "logit_bias": logit_bias,
        "normalize": normalize,
        "reduction": reduction,
    }
    with Agreement(group, "siglip", **options) as agreed:
        check_rows("x", x, may_be_empty=agreed.may_be_empty)
        check_columns("y", y, x, same_rows=True, may_be_empty=agreed.may_be_empty)
        logit_scale = check_scale("logit_scale", logit_scale, x)
        logit_bias = check_scalar("logit_bias", logit_bias, x)
        check_choice("reduction", reduction, ("mean", "sum"))
        if agreed.may_be_empty:
            backend = check_backend(backend, x, agreed)
        agreed.shard(x=x, y=y)
    ranks, precision = agreed.ranks, product_precision(x)
    scale_number, scale_tensor = number_or_tensor(logit_scale)
    bias_number, bias_tensor = number_or_tensor(logit_bias, 0.0)
    inputs = LossInputs(x, y, scale=scale_tensor, bias=bias_tensor)

    def composed(inputs: LossInputs) -> tuple[Tensor]:
        x, y = autograd.prepare_views(inputs.x, inputs.y, normalize=normalize, backend=backend)
        scale = scale_number if inputs.scale is None else inputs.scale
        x, spec = scaled(x, scale, ranks.total, unit=normalize, precision=precision)
        remote = autograd.share(ranks, y)
        spec = PairSpec(spec.scale, exclude="self", precision=precision)
        bias = x.new_full((), bias_number) if inputs.bias is None else inputs.bias.to(x.dtype)
        u = bias.reshape(()).expand(x.shape[:-1])
        terms = PairTerms(u=u)
        # First, so that backward comes to them last: their gradients would wait beside those of the pairs, twice 2 N D.
        partners = nll_from_excess(-(positive_logits(x, y, spec) + u))
        others = autograd.energy(x, y, spec=spec, terms=terms, potential="softplus", backend=backend)
        if remote is not None:
            others = others + autograd.remote_energy(
                x, y, remote, spec=spec, terms=terms, potential="softplus", backend=backend
            )
        total = others + partners.sum(-1)
        return (total / ranks.total if ranks.alone and reduction == "mean" else total,)

    if not ranks.alone:
        return composed(inputs)[0], ranks
    whole = LossSpec(
        "siglip", scale_number, bias=bias_number, normalize=normalize, mean=reduction == "mean", precision=precision
    )
    return autograd.loss(inputs, whole, composed, backend=backend)[0], ranks
