"""The only autograd functions: normalisation and the pairwise primitives, differentiable more than once.

Each derivative is a `torch.autograd.Function` of its own whose backward is plain PyTorch (for the primitives in
`hyperkern.second_order`), so a gradient penalty works and nothing is silently dropped. Forward mode is in subclasses,
see `hyperkern.autograd.functions.dual`. Inside the functions every operand has a leading batch dimension, which also
serves `torch.func.vmap`.

`remote_row_lse`, `remote_energy` and the sums over ranks are what a loss over a shared batch has besides.

`loss` is a loss in one function, for backends that have it; elsewhere it is a composition.
"""

from ..classes import class_index
from .across_ranks import logsumexp_over_ranks, remote_energy, remote_row_lse, share, sum_over_ranks
from .classes import class_sums
from .compiled import eager
from .normalize import check_backend, prepare, prepare_views, settle_backend
from .pairs import energy, row_lse
from .whole import loss

__all__ = [
    "check_backend",
    "class_index",
    "class_sums",
    "eager",
    "energy",
    "logsumexp_over_ranks",
    "loss",
    "prepare",
    "prepare_views",
    "remote_energy",
    "remote_row_lse",
    "row_lse",
    "settle_backend",
    "share",
    "sum_over_ranks",
]
