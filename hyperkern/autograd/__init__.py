"""The only autograd functions: normalisation and the pairwise primitives, differentiable more than once.

Each derivative is a `torch.autograd.Function` of its own whose backward is plain PyTorch (for the primitives in
`hyperkern.second_order`), so a gradient penalty works and nothing is silently dropped. Inside the functions every
operand has a leading batch dimension, which also serves `torch.func.vmap`.

`align_uniform` is a whole loss in few launches, for backends that have one; elsewhere a loss is a composition.
"""

from .classes import class_index, class_sums
from .pairs import energy, row_lse
from .rows import prepare
from .step import align_uniform

__all__ = ["align_uniform", "class_index", "class_sums", "energy", "prepare", "row_lse"]
