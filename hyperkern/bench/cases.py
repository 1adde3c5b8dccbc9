"""The cases: what the table of losses says is measured, with the package's own implementations, and a yardstick.

Arithmetic counts what every implementation must do: a similarity of each pair that counts (once for both its orders,
where the matrix is symmetric), kept for the gradient, and one product with the weights for each side that has a
gradient. One that keeps no N x N numbers computes similarities again, unless one pass makes loss and gradient: it gets
no credit for that.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from .. import catalog
from .registry import Case, Count, Loss, add_case, implementation


def by_mode(forward: float, backward: float, both: float, columns: int = 0) -> Count:
    """Multiples of N^2 D, or of N D times a number of columns."""
    multiple = {"forward": forward, "backward": backward, "both": both}
    return lambda n, d, mode: multiple[mode] * n * (columns or n) * d


def _enter(loss: catalog.Loss, measured: catalog.Measured) -> None:
    use, products = measured.use, measured.products
    gradients = 1 if measured.queue else 2  # sides that have one
    features = sum(name in ("x", "y", "view", "negatives") for name in use.inputs) - bool(measured.queue)
    add_case(
        Case(
            *(use.name, features, measured.truth),
            by_mode(products, gradients * products, (1 + gradients) * products, measured.queue),
            *(measured.counted, "dense"),
            queue=measured.queue,
            classes=catalog.CLASSES if "labels" in use.inputs else 0,
            scalars=tuple(use.learned.values()),
        )
    )
    own = use.of(loss.function)
    if loss.function.__annotations__["return"] is not Tensor:
        own = partial(_first, own)
    implementation(use.name, "hyperkern", package="hyperkern", slowdown=measured.slowdown)(lambda: own)


def _first(loss: Loss, *inputs: Tensor) -> Tensor:
    """The loss of one with several results."""
    return loss(*inputs)[0]


for _loss in catalog.TABLE.values():
    for _measured in _loss.measured:
        _enter(_loss, _measured)

add_case(
    Case(
        "yardstick",
        inputs=1,
        truth=None,
        flops=by_mode(2, 4, 6),
        counted="no loss: a matrix product of the library (2, 4, 6 N²D) and an attention (4, 10, 14 N²D), Q = K = V",
        baseline="matrix product",
    )
)
