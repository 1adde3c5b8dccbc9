r"""Alignment and uniformity as metrics of TorchMetrics, for what a training or an evaluation shows of its features.

They are updated, computed, reset, collected and plotted like the library's own, and synchronised over processes by it.
``MetricCollection([Alignment(), Uniformity(), UniformityLimit()])`` is updated by keywords, ``update(x=x, y=y)``: each
takes of them what it knows.
"""

from .alignment import Alignment
from .rows import NormStatistics, UniformityLimit
from .uniformity import Uniformity

__all__ = ["Alignment", "NormStatistics", "Uniformity", "UniformityLimit"]
