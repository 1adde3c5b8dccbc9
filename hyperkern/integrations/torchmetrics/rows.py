"""What stands beside alignment and uniformity: the limit of the dimension, and norms."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...arguments import check_positive, check_rows
from ...metrics import uniformity_limit
from .row_metric import RowMetric


class UniformityLimit(RowMetric):
    """Compute the uniformity of the uniform distribution on the sphere that the features lie on.

    A constant of the dimension, to be shown beside `Uniformity`, which tends to it and not to ``-inf``.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``x`` (`torch.Tensor`): features ``(N, D)``

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``uniformity_limit`` (`torch.Tensor`): a scalar of the metric's dtype, at least float32; nan before an update

    Args:
        t: inverse width of the Gaussian potential, > 0.
        kwargs: additional keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: the input of ``update`` is no tensor or not of a floating dtype; ``t`` is no number.
        ValueError: a wrong shape or ``t <= 0``.

    Source:
        `hyperkern.metrics.uniformity_limit`.

    Example:
        >>> import torch
        >>> from hyperkern.integrations.torchmetrics import UniformityLimit
        >>> UniformityLimit()(torch.randn(4, 128))
        tensor(-3.9375)
    """

    plot_upper_bound = 0.0
    _options = ("t",)

    dim: Tensor

    def __init__(self, t: float = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.t = check_positive("t", t)
        self.add_state("dim", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(self, x: Tensor) -> None:
        """Update state with features ``(N, D)``, of which only the dimension counts."""
        check_rows("x", x, may_be_empty=True, batched=False)
        self.dim = torch.full_like(self.dim, x.shape[1])

    def compute(self) -> Tensor:
        """Compute the limit for the dimension seen."""
        dim = int(self.dim)
        value = uniformity_limit(dim, self.t) if dim else math.nan
        return torch.full((), value, dtype=self.value_dtype, device=self.device)


class NormStatistics(RowMetric):
    """Compute mean, minimum, maximum and standard deviation of the rows' Euclidean norms, as they come.

    What normalisation hides: norms that grow make gradients small, norms that vanish make directions noise.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``x`` (`torch.Tensor`): features ``(N, D)``, float64, float32, bfloat16 or float16

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - a dictionary of ``norm_mean``, ``norm_min``, ``norm_max`` and ``norm_std``, scalars of the metric's dtype, at
      least float32, and nan where no row was seen; the standard deviation is over N, not N - 1, and of sums of squares
      in float64: below some 1e-8 of the mean it is rounding

    Args:
        kwargs: additional keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: the input of ``update`` is no tensor or not of a floating dtype.
        ValueError: a wrong shape.

    Example:
        >>> import torch
        >>> from hyperkern.integrations.torchmetrics import NormStatistics
        >>> NormStatistics()(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        {'norm_mean': tensor(3.), 'norm_min': tensor(1.), 'norm_max': tensor(5.), 'norm_std': tensor(2.)}
    """

    plot_lower_bound = 0.0

    count: Tensor
    total: Tensor
    squares: Tensor
    least: Tensor
    most: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name, start, reduction in (
            ("total", 0.0, "sum"),
            ("squares", 0.0, "sum"),
            ("least", math.inf, "min"),
            ("most", -math.inf, "max"),
        ):
            self.add_state(name, torch.full((), start, dtype=torch.float64), dist_reduce_fx=reduction)

    def update(self, x: Tensor) -> None:
        """Update state with features ``(N, D)``."""
        check_rows("x", x, may_be_empty=True, batched=False)
        if len(x) == 0:
            return
        norms = torch.linalg.vector_norm(x.detach(), dim=-1, dtype=self.total.dtype)
        self.count = self.count + len(x)
        self.total = self.total + norms.sum()
        self.squares = self.squares + norms.square().sum()
        self.least = torch.minimum(self.least, norms.min())
        self.most = torch.maximum(self.most, norms.max())

    def compute(self) -> dict[str, Tensor]:
        """Compute the statistics of all rows seen."""
        mean = self.total / self.count
        deviation = (self.squares / self.count - mean.square()).clamp_min(0).sqrt()
        none = self.count == 0
        values = {
            "norm_mean": mean,
            "norm_min": self.least.masked_fill(none, math.nan),
            "norm_max": self.most.masked_fill(none, math.nan),
            "norm_std": deviation,
        }
        return {name: value.to(self.value_dtype) for name, value in values.items()}
