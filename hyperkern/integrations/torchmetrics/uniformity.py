"""Uniformity of every row seen, of a sample of them, or within batches."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import losses
from ...arguments import check_choice, check_integer, check_positive, check_rows
from .row_metric import RowMetric, joined
from .sampling import draw_keys, sampling_error, smallest, stream

PAIRS = ("all", "batch")
_FEWEST_ROWS = 16  # of a reservoir, for a standard error that says something


class Uniformity(RowMetric):
    r"""Compute the uniformity of features.

    .. math:: \log \frac1P \sum_{i<j} e^{-t \lVert \hat x_i - \hat x_j \rVert^2}

    It is negative, lower is more uniform, and `UniformityLimit` is the value of a perfectly uniform distribution. Which
    of the P pairs count is chosen:

    - ``pairs="all"``: those of all rows seen, on all processes. Every row is kept, ``4 N D`` bytes, in every process
      once ``compute`` has gathered them, and each computes every pair, without a matrix of them.
    - ``pairs="all", reservoir=k``: those of k rows drawn uniformly from all rows seen on all processes, however many
      each has seen; with ``standard_error`` beside the value how far that may be from the one of all rows. Up to k rows
      it is exact.
    - ``pairs="batch"``: those of two rows of the same batch, of all batches. Nothing is kept but a sum. It is the
      logarithm of the mean potential of these pairs, not the mean of the batches' uniformities, which is lower and more
      so for small batches. If batches are drawn at random it estimates the value of all pairs, and of a data set that
      is sorted by class it does not.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``x`` (`torch.Tensor`): features ``(N, D)``, float64, float32, bfloat16 or float16, also no or a single row

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``uniformity`` (`torch.Tensor`): a scalar of the metric's dtype, at least float32; nan without a pair
    - with ``standard_error`` a dictionary of ``uniformity`` and ``uniformity_error``, two scalars

    ``forward`` returns the value of the batch. Rows are detached: a loss to differentiate is `hyperkern.uniformity`.

    Args:
        t: inverse width of the Gaussian potential, > 0. The value lies in ``[-4t, 0]`` for rows of unit length.
        normalize: whether rows are scaled to unit length first; without, distances are Euclidean.
        pairs: ``"all"`` or ``"batch"``.
        reservoir: with ``pairs="all"`` how many rows are kept at most, >= 16; ``None`` for every row.
        seed: of the reservoir's draws, >= 0. A new metric with the same seed that sees the same rows, in the same
            processes, keeps the same; after ``reset`` the draws go on. Metrics that are merged by ``merge_state``, or
            by a ``dist_sync_fn`` between processes without a `torch.distributed` group, need different ones.
        standard_error: with ``pairs="all"`` whether the standard error is returned too: 0 for every row, of a reservoir
            by the jackknife.
        kwargs: additional keyword arguments of ``torchmetrics.Metric``.

    Raises:
        TypeError: the input of ``update`` is no tensor or not of a floating dtype; an option that is no number.
        ValueError: a wrong shape, ``t <= 0``, unknown ``pairs``, ``reservoir < 16``, ``seed < 0``, or a ``reservoir``
            or ``standard_error`` with ``pairs="batch"``; from ``compute`` if merged metrics had the same seed.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.2; for the sample and its error docs/metrics.md.

    Example:
        >>> import torch
        >>> from hyperkern.integrations.torchmetrics import Uniformity
        >>> metric = Uniformity()
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        >>> metric.update(torch.tensor([[-1.0, 0.0]]))
        >>> metric.compute()
        tensor(-4.3963)

    Example:
        >>> metric = Uniformity(reservoir=64, standard_error=True)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        >>> metric.compute()
        {'uniformity': tensor(-4.3963), 'uniformity_error': tensor(0.)}
    """

    higher_is_better = False
    plot_upper_bound = 0.0
    _options = ("t", "normalize", "pairs", "reservoir", "seed", "standard_error")

    rows: list[Tensor]
    keys: list[Tensor]
    seen: Tensor
    log_potential: Tensor
    pair_count: Tensor

    def __init__(
        self,
        t: float = 2.0,
        normalize: bool = True,
        pairs: str = "all",
        reservoir: int | None = None,
        seed: int = 0,
        standard_error: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_choice("pairs", pairs, PAIRS)
        check_integer("seed", seed, 0)
        if reservoir is not None:
            check_integer("reservoir", reservoir, _FEWEST_ROWS)
        if pairs == "batch" and (reservoir is not None or standard_error):
            name, value = ("standard_error", True) if reservoir is None else ("reservoir", reservoir)
            raise ValueError(f"{name} is for pairs='all': pairs='batch' keeps no rows, got {name}={value}")
        self.t, self.normalize, self.pairs = check_positive("t", t), normalize, pairs
        self.reservoir, self.seed, self.standard_error = reservoir, seed, standard_error
        self._generator: torch.Generator | None = None
        if pairs == "batch":
            nothing = torch.full((), -math.inf, dtype=torch.float64)
            self.add_state("log_potential", nothing, dist_reduce_fx=partial(torch.logsumexp, dim=0))
            self.add_state("pair_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_identity(self.t, normalize)
            return
        # Gathered without a reduction: it would join the rows of a process with what another has instead of any.
        self.add_state("rows", [], dist_reduce_fx=None)
        if reservoir is not None:
            self.add_state("keys", [], dist_reduce_fx=None)
            self.add_state("seen", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def plot_lower_bound(self) -> float | None:
        """The value of two opposite points, which nothing on the sphere is below."""
        return -4 * self.t if self.normalize else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update state with a batch, and compute the value of it alone."""
        if self.reservoir is None:
            return super().forward(*args, **kwargs)
        # The state of the batch stands in for that of all rows: it neither knows how many were seen nor drops any.
        self._draws()
        value = super().forward(*args, **kwargs)
        self._drop()
        return value

    def update(self, x: Tensor) -> None:
        """Update state with features ``(N, D)``."""
        check_rows("x", x, may_be_empty=True, batched=False)
        if self.pairs == "batch":
            self._add_pairs(x)
            return
        width = next((part.shape[1] for part in self.rows if part.numel()), x.shape[1])
        if x.shape[1] != width:
            raise ValueError(f"x must have shape (N, {width}) like the rows seen before, got {tuple(x.shape)}")
        # A copy: a view would keep all of what it is a view of.
        rows = x.detach().to(self.value_dtype, copy=True, memory_format=torch.contiguous_format)
        self.rows.append(rows)
        if self.reservoir is not None:
            self.keys.append(draw_keys(len(x), self._draws(), x.device))
            self.seen = self.seen + len(x)
            self._drop()

    def compute(self) -> Tensor | dict[str, Tensor]:
        """Compute the uniformity of the pairs that count."""
        if self.pairs == "batch":
            return (self.log_potential - self.pair_count.to(self.log_potential.dtype).log()).to(self.value_dtype)
        self._check_keys()
        self._settle()
        (rows,), dtype = self.rows, self.value_dtype
        if len(rows) < 2:
            value = error = torch.full((), math.nan, dtype=dtype, device=rows.device)
        else:
            value = losses.uniformity(rows, t=self.t, normalize=self.normalize).to(dtype)
            error = torch.zeros_like(value)
        if not self.standard_error:
            return value
        if self.reservoir is not None and len(rows) >= 2:
            found = sampling_error(rows, self.seen.to(rows.device), t=self.t, normalize=self.normalize)
            error = found.to(rows.device, dtype)
        return {"uniformity": value, "uniformity_error": error}

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Sync the states; a process that has seen no rows takes part in what all do for each of its tensors."""
        if self.pairs == "all":
            self._settle()
        super().sync(*args, **kwargs)

    def _add_pairs(self, x: Tensor) -> None:
        pairs = len(x) * (len(x) - 1) // 2
        if pairs:
            value = losses.uniformity(x.detach(), t=self.t, normalize=self.normalize).to(self.log_potential.dtype)
            # In logarithms: potentials far apart would be 0.
            self.log_potential = torch.logaddexp(self.log_potential, value + math.log(pairs))
            self.pair_count = self.pair_count + pairs

    def _draws(self) -> torch.Generator:
        """What draws the keys of a reservoir, begun with the first rows."""
        if self._generator is None:
            self._generator = stream(self.seed, self.reservoir or 0, int(self.seen))
        return self._generator

    def _drop(self) -> None:
        """Rows that a reservoir has no place for go."""
        if self.reservoir is not None and sum(map(len, self.keys)) > self.reservoir:
            self._settle()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f"{prefix}seen" in state_dict:
            self._generator = None  # its next draws may be those of rows that were loaded
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _settle(self) -> None:
        """One tensor of the rows, and of a reservoir one of the keys: those that stay."""
        rows = joined(self.rows, torch.empty(0, 0, dtype=self.value_dtype, device=self.device))
        if self.reservoir is not None:
            keys = joined(self.keys, torch.empty(0, dtype=torch.int64, device=self.device))
            rows, keys = smallest(rows, keys, self.reservoir)
            self.keys = [keys]
        self.rows = [rows]

    def _check_keys(self) -> None:
        if self.reservoir is None or not self.keys:
            return
        keys = joined(self.keys, self.keys[0]).sort().values
        if (keys[1:] == keys[:-1]).any():
            raise ValueError(
                f"seed must differ between metrics that are merged, got {self.seed} twice: their draws are the same, "
                "and the rows kept of both are no random sample"
            )
