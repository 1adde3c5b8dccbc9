"""Ways to call the package's losses that have no textbook formula of their own, for their peak memory.

A file for ``hyperkern bench --load``. The truth is the same loss in float64, which shows what rounding does to it: what
it computes is held against dense formulas by the tests.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import hyperkern as hk
from hyperkern import textbook
from hyperkern.bench import case, implementation
from hyperkern.bench.cases import by_mode
from hyperkern.bench.registry import Loss
from hyperkern.catalog import CLASSES


def _variant(name: str, inputs: int, multiple: int, loss: Loss, *scalars: float) -> None:
    """Enters one; the similarities are ``multiple`` N²D, and so is the gradient of each of their two sides."""
    flops = by_mode(multiple, 2 * multiple, 3 * multiple)
    counted = f"{multiple} N²D for the similarities, and twice that for the gradients"
    case(name, inputs=inputs, flops=flops, counted=counted, baseline="hyperkern", scalars=scalars)(loss)
    implementation(name, "hyperkern", package="hyperkern", slowdown=1.5)(lambda: loss)


def _masked_and_weighted(x: Tensor, y: Tensor) -> Tensor:
    """InfoNCE without false negatives, corrected for how often keys are drawn."""
    rows = torch.arange(x.shape[0], device=x.device)
    return hk.info_nce(x, y, ids=rows // 2, y_log_weights=(rows % 7 + 1).log())


def _in_classes(x: Tensor, queue: Tensor) -> Tensor:
    """SupCon of rows in classes against a queue."""
    labels = torch.arange(x.shape[0], device=x.device) % CLASSES
    return hk.sup_con(x, labels, queue, labels)


_variant("uniformity + queue with a gradient", 2, 3, functools.partial(hk.uniformity, intra=True))
_variant(
    *("info_nce + a hard negative per row", 3, 2),
    lambda x, y, h: hk.info_nce(x, y, hard_negatives=h.unsqueeze(-2)),
)
_variant("info_nce + ids and log-weights", 2, 2, _masked_and_weighted)
_variant("nt_xent + third view", 3, 9, hk.nt_xent)
_variant("nt_xent + learned temperature", 2, 4, lambda x, y, t: hk.nt_xent(x, y, temperature=t), 0.2)
_variant("sup_con + queue with a gradient", 2, 3, _in_classes)
_variant(
    *("siglip + learned scale and bias", 2, 2, lambda x, y, s, b: hk.siglip(x, y, logit_scale=s, logit_bias=b)),
    *(textbook.SIGLIP_SCALE, textbook.SIGLIP_BIAS),
)
