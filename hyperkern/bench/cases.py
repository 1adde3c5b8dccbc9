"""The cases, and hyperkern's own implementations of them.

Arithmetic counts what every implementation without an N x N matrix in memory must do: a similarity of each pair that
counts (once for both its orders, where the matrix is symmetric), that similarity again for the gradient unless one pass
makes both, and one product with the weights for each side.
"""

from __future__ import annotations

import functools

from torch import Tensor

from .. import losses
from . import textbook
from .registry import Case, Count, Loss, add_case, case, implementation


def by_mode(forward: float, backward: float, both: float) -> Count:
    """Multiples of N^2 D."""
    multiple = {"forward": forward, "backward": backward, "both": both}
    return lambda n, d, mode: multiple[mode] * n * n * d


case(
    "uniformity",
    inputs=1,
    flops=by_mode(1, 2, 3),
    counted="N²D for the similarities of the upper triangle, 2 N²D for the product with the weights, in one pass",
)(textbook.pdist_uniformity)

case(
    "align_uniform",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted="twice that of uniformity; alignment is O(ND)",
)(textbook.pdist_align_uniform)

case(
    "nt_xent",
    inputs=2,
    flops=by_mode(4, 12, 16),
    counted="of the 2N rows of both views, M = 2N: M²D for the upper triangle, again M²D and 2 M²D for the gradient",
)(textbook.dense_nt_xent)

case(
    "clip",
    inputs=2,
    flops=by_mode(2, 6, 8),
    counted="2 N²D for the similarities, again 2 N²D and 4 N²D for the gradients of both sides",
)(textbook.dense_clip)

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


@implementation("uniformity", "hyperkern", package="hyperkern", slowdown=1.1)
def uniformity() -> Loss:
    """The package's own."""
    return losses.uniformity


@implementation("align_uniform", "hyperkern", package="hyperkern", slowdown=1.1)
def align_uniform() -> Loss:
    """The package's own."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return losses.align_uniform(x, y).loss

    return loss


@implementation("nt_xent", "hyperkern", package="hyperkern", slowdown=1.1)
def nt_xent() -> Loss:
    """The package's own."""
    return functools.partial(losses.nt_xent, temperature=textbook.TEMPERATURE)


@implementation("clip", "hyperkern", package="hyperkern", slowdown=1.1)
def clip() -> Loss:
    """The package's own."""
    return functools.partial(losses.clip_loss, logit_scale=textbook.LOGIT_SCALE)
