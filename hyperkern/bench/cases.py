"""The cases, and hyperkern's own implementations of them.

Arithmetic counts what every implementation must do: a similarity of each pair that counts (once for both its orders,
where the matrix is symmetric), kept for the gradient, and one product with the weights for each side that has a
gradient. One that keeps no N x N numbers computes similarities again, unless one pass makes loss and gradient: it gets
no credit for that.
"""

from __future__ import annotations

import functools

from torch import Tensor

from .. import losses, textbook
from .registry import Case, Count, Loss, add_case, case, implementation

MOCO_QUEUE = 131_072
CLASSES = 100
KEPT = "the similarities once, kept for the gradient"


def by_mode(forward: float, backward: float, both: float) -> Count:
    """Multiples of N^2 D."""
    multiple = {"forward": forward, "backward": backward, "both": both}
    return lambda n, d, mode: multiple[mode] * n * n * d


def _against_queue(n: int, d: int, mode: str) -> float:
    return {"forward": 2, "backward": 2, "both": 4}[mode] * float(n) * MOCO_QUEUE * d


case(
    "uniformity",
    inputs=1,
    flops=by_mode(1, 2, 3),
    counted="N²D for the similarities of the upper triangle, 2 N²D for the product with the weights, in one pass",
)(textbook.pdist_uniformity)

case(
    "uniformity_queue",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted=f"{KEPT}: 2 N²D, and 4 N²D for the gradients of rows and queue",
)(textbook.dense_uniformity_queue)

case(
    "align_uniform",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted="twice that of uniformity; alignment is O(ND)",
)(textbook.pdist_align_uniform)

case(
    "info_nce",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted=f"{KEPT}: 2 N²D, and 4 N²D for the gradients of both sides",
)(textbook.dense_info_nce)

case(
    "info_nce_queue",
    inputs=3,
    flops=by_mode(4, 8, 12),
    counted=f"{KEPT}, with keys and N further negatives: 4 N²D, and 8 N²D for the gradients, the negatives' too",
)(textbook.dense_info_nce_queue)

case(
    "info_nce_moco",
    inputs=2,
    queue=MOCO_QUEUE,
    flops=_against_queue,
    counted=f"{KEPT}, with a queue of K = {MOCO_QUEUE:,}: 2 NKD, and 2 NKD for the gradient of the rows alone",
)(textbook.dense_info_nce_moco)

case(
    "nt_xent",
    inputs=2,
    flops=by_mode(4, 8, 12),
    counted=f"{KEPT}, of the 2N rows of both views, M = 2N: M²D for the upper triangle, and 2 M²D for the gradient",
)(textbook.dense_nt_xent)

case(
    "dcl",
    inputs=2,
    flops=by_mode(4, 8, 12),
    counted="as nt_xent",
)(textbook.dense_dcl)

case(
    "dclw",
    inputs=2,
    flops=by_mode(4, 8, 12),
    counted="as nt_xent",
)(textbook.dense_dclw)

case(
    "sup_con",
    inputs=1,
    classes=CLASSES,
    flops=by_mode(1, 2, 3),
    counted=f"{KEPT}: N²D for the upper triangle, and 2 N²D for the gradient",
)(textbook.dense_sup_con)

case(
    "clip",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted=f"{KEPT}: 2 N²D, and 4 N²D for the gradients of both sides",
)(textbook.dense_clip)

case(
    "clip_learned",
    inputs=2,
    scalars=(textbook.LOGIT_SCALE,),
    flops=by_mode(2, 4, 6),
    counted="as clip; the gradient of the scale is O(N²)",
)(textbook.dense_clip)

case(
    "siglip",
    inputs=2,
    flops=by_mode(2, 4, 6),
    counted="as clip",
)(textbook.dense_siglip)

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


def align_uniform(x: Tensor, y: Tensor) -> Tensor:
    """The package's own, of whose results the loss is one."""
    return losses.align_uniform(x, y).loss


def info_nce(x: Tensor, y: Tensor, negatives: Tensor | None = None, *, in_batch: bool = True) -> Tensor:
    """The package's own, of further negatives where there are any."""
    return losses.info_nce(x, y, temperature=textbook.INFO_NCE_TEMPERATURE, negatives=negatives, in_batch=in_batch)


def clip_learned(x: Tensor, y: Tensor, logit_scale: Tensor) -> Tensor:
    """The package's own, whose scale gets a gradient."""
    return losses.clip_loss(x, y, logit_scale=logit_scale)


def _own(of: str, loss: Loss, slowdown: float = 1.5) -> None:
    """Enters the package's own loss of a case."""
    implementation(of, "hyperkern", package="hyperkern", slowdown=slowdown)(lambda: loss)


_own("uniformity", losses.uniformity, 1.1)
_own("uniformity_queue", losses.uniformity)
_own("align_uniform", align_uniform, 1.1)
_own("info_nce", info_nce)
_own("info_nce_queue", info_nce)
_own("info_nce_moco", functools.partial(info_nce, in_batch=False))
_own("nt_xent", functools.partial(losses.nt_xent, temperature=textbook.TEMPERATURE))
_own("dcl", functools.partial(losses.dcl, temperature=textbook.DECOUPLED_TEMPERATURE))
_own("dclw", functools.partial(losses.dclw, temperature=textbook.DECOUPLED_TEMPERATURE, sigma=textbook.SIGMA))
_own("sup_con", functools.partial(losses.sup_con, temperature=textbook.SUP_CON_TEMPERATURE))
_own("clip", functools.partial(losses.clip_loss, logit_scale=textbook.LOGIT_SCALE))
_own("clip_learned", clip_learned)
_own(
    "siglip",
    functools.partial(losses.siglip, logit_scale=textbook.SIGLIP_SCALE, logit_bias=textbook.SIGLIP_BIAS),
)
