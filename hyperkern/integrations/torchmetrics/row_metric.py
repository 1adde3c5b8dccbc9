"""What the metrics share: states that keep their precision, options that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...arguments import accurate_dtype

try:
    from torchmetrics import Metric
except ImportError:
    raise ImportError(
        "hyperkern.integrations.torchmetrics needs TorchMetrics; install with: pip install torchmetrics"
    ) from None


class RowMetric(Metric):
    """A metric of rows of features.

    Attributes:
        _options: what may not be set later: states were made of it.
    """

    is_differentiable = False
    full_state_update = False
    _options: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuses an option of a metric that has one already."""
        if name in self._options and name in self.__dict__:
            raise AttributeError(f"{type(self).__name__} is made with its {name}: make another one with {value!r}")
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Any:
        """Moves the states. Their dtypes stay: a sum in half precision is wrong after a few thousand rows."""
        this = super()._apply(fn, exclude_state=tuple(self._defaults))
        for name, default in self._defaults.items():
            if isinstance(default, Tensor):
                self._defaults[name] = _moved(default, self.device)
                setattr(self, name, _moved(getattr(self, name), self.device))
            else:
                setattr(self, name, [part.to(self.device) for part in getattr(self, name)])
        return this

    def add_identity(self, *options: float) -> None:
        """Adds a state of the options that the sums are made with.

        A ``MetricCollection`` lets metrics share their states if these are equal after the first batch. Sums with
        different options can be, of collapsed features for instance, and differ later.
        """
        self.add_state("identity", torch.tensor(options, dtype=torch.float64), dist_reduce_fx="max")

    def merge_state(self, incoming_state: Any) -> None:
        """Adds the states of another metric, made with the same options.

        Raises:
            ValueError: an option differs; but for a ``seed``, which has to.
        """
        if isinstance(incoming_state, RowMetric):
            for name in self._options:
                here, there = getattr(self, name), getattr(incoming_state, name, None)
                if name != "seed" and here != there:
                    raise ValueError(f"merged metrics must have the same {name}, got {here!r} and {there!r}")
        super().merge_state(incoming_state)

    @property
    def value_dtype(self) -> torch.dtype:
        """That of the metric, ``set_dtype``, but not below float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot a single or multiple values from the metric.

        Args:
            val: a result of ``forward`` or ``compute``, or a list of them; by default what ``compute`` returns.
            ax: a matplotlib axis to draw on; by default one of a new figure.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        return self._plot(val, ax)


def _moved(state: Tensor, device: torch.device) -> Tensor:
    # Where the device has no float64 the state is what the device has.
    narrow = state.dtype == torch.float64 and accurate_dtype(torch.empty(0, device=device)) != torch.float64
    return state.to(device, torch.float32 if narrow else state.dtype)


def joined(parts: Sequence[Tensor], nothing: Tensor) -> Tensor:
    """The parts in one tensor, on the device of the last; those of other processes may be without rows and columns.

    Raises:
        ValueError: rows of different widths, in batches of ``forward``, metrics that are merged, or processes.
    """
    filled = [part for part in parts if part.numel()]
    widths = sorted({part.shape[-1] for part in filled if part.dim() == 2})
    if len(widths) > 1:
        raise ValueError(f"x must have rows of one width in all batches and processes, got {widths}")
    return torch.cat([part.to(filled[-1].device) for part in filled]) if filled else nothing
