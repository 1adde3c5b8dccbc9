"""What every loss is set against: the textbook formulas as PyTorch computes them, and its own products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import textbook
from ..catalog import MOCO_QUEUE
from .cases import by_mode
from .registry import Loss, implementation

MOST_DENSE = 16384
HALF = ("bfloat16", "float16")


def _with_torch(
    case: str,
    dense: Loss,
    chunked: Loss | None,
    pdist: Loss | None = None,
    most_dense: int = MOST_DENSE,
    guesses: tuple[float, float, float] = (3.3, 2.1, 9.0),
) -> None:
    """What PyTorch alone offers for a case; the guesses are those of the slowdowns: dense, compiled, chunked."""
    implementation(case, "dense", most_rows=most_dense, slowdown=guesses[0])(lambda: dense)
    implementation(case, "compiled", most_rows=most_dense, slowdown=guesses[1], compiled=True)(
        lambda: torch.compile(dense, dynamic=False)
    )
    if chunked is not None:
        implementation(case, "chunked", slowdown=guesses[2])(lambda: chunked)
    if pdist is not None:
        # It knows no half precision, and its gradient takes seconds from here on.
        implementation(case, "pdist", most_rows=4096, dtypes=("float64", "float32"), slowdown=30)(lambda: pdist)


SYMMETRIC = (2.5, 1.6, 7.0)

_with_torch(
    *("uniformity", textbook.dense_uniformity, textbook.chunked_uniformity, textbook.pdist_uniformity),
    guesses=SYMMETRIC,
)
_with_torch(
    *("align_uniform", textbook.dense_align_uniform, textbook.chunked_align_uniform, textbook.pdist_align_uniform),
    guesses=SYMMETRIC,
)
_with_torch("uniformity_queue", textbook.dense_uniformity_queue, textbook.chunked_uniformity_queue)
_with_torch("info_nce", textbook.dense_info_nce, textbook.chunked_info_nce)
# As many logits as the others have at most.
_with_torch(
    *("info_nce_queue", textbook.dense_info_nce_queue, textbook.chunked_info_nce_queue), most_dense=MOST_DENSE // 2
)
_with_torch("info_nce_moco", textbook.dense_info_nce_moco, None, most_dense=MOST_DENSE**2 // MOCO_QUEUE)
_with_torch("nt_xent", textbook.dense_nt_xent, textbook.chunked_nt_xent, most_dense=MOST_DENSE // 2)
_with_torch("dcl", textbook.dense_dcl, textbook.chunked_dcl, most_dense=MOST_DENSE // 2)
_with_torch("dclw", textbook.dense_dclw, textbook.chunked_dclw, most_dense=MOST_DENSE // 2)
_with_torch("sup_con", textbook.dense_sup_con, textbook.chunked_sup_con, guesses=(5.0, 3.0, 10.0))
_with_torch("clip", textbook.dense_clip, textbook.chunked_clip)
_with_torch("clip_learned", textbook.dense_clip, textbook.chunked_clip)
_with_torch("siglip", textbook.dense_siglip, textbook.chunked_siglip)


@implementation("yardstick", "matrix product", most_rows=MOST_DENSE, slowdown=1)
def matrix_product() -> Loss:
    """The library's product of the rows with themselves, stored."""
    return lambda x: x @ x.T


@implementation("yardstick", "attention", dtypes=("float32", *HALF), slowdown=2, flops=by_mode(4, 10, 14))
def attention() -> Loss:
    """`scaled_dot_product_attention` with Q = K = V, one head."""

    def run(x: Tensor) -> Tensor:
        rows = x[None, None]
        return F.scaled_dot_product_attention(rows, rows, rows)

    return run
