"""Alignment of positive pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import losses
from ...arguments import check_columns, check_positive, check_rows
from .row_metric import RowMetric


class Alignment(RowMetric):
    r"""Compute the alignment of positive pairs.

    .. math:: \frac1N \sum_i \lVert \hat x_i - \hat y_i \rVert_2^\alpha

    The mean over all pairs seen, on all processes. It is summed in float64, of features of any dtype.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``x`` (`torch.Tensor`): features ``(N, D)``, float64, float32, bfloat16 or float16; no rows are no pairs
    - ``y`` (`torch.Tensor`): those of the partners, like ``x``

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``alignment`` (`torch.Tensor`): a scalar of the metric's dtype, at least float32; nan where no pair was seen

    Args:
        alpha: exponent of the distance, > 0.
        normalize: whether rows are scaled to unit length first.
        kwargs: additional keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: an input of ``update`` is no tensor, not of a floating dtype, or the dtypes differ; an option that
            is no number.
        ValueError: wrong shapes or devices, or ``alpha <= 0``.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.1.

    Example:
        >>> import torch
        >>> from hyperkern.integrations.torchmetrics import Alignment
        >>> metric = Alignment()
        >>> metric(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 2.0]]))
        tensor(1.)
    """

    is_differentiable = True  # the value that `forward` returns of a batch; `compute` is of states without a graph
    higher_is_better = False
    plot_lower_bound = 0.0
    _options = ("alpha", "normalize")

    total: Tensor
    count: Tensor

    def __init__(self, alpha: float = 2.0, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha, self.normalize = check_positive("alpha", alpha), normalize
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_identity(self.alpha, normalize)

    def update(self, x: Tensor, y: Tensor) -> None:
        """Update state with positive pairs, ``(N, D)`` both."""
        check_rows("x", x, may_be_empty=True, batched=False)
        check_columns("y", y, x, same_rows=True, may_be_empty=True)
        if len(x) == 0:
            return
        pairs = losses.alignment(x, y, alpha=self.alpha, normalize=self.normalize, reduction="none")
        self.total = self.total + pairs.sum(dtype=self.total.dtype)
        self.count = self.count + len(x)

    def compute(self) -> Tensor:
        """Compute the mean over all pairs seen."""
        return (self.total / self.count).to(self.value_dtype)
