"""What the losses of two views have in common."""

from torch import Tensor, nn

from ... import autograd
from ...arguments import check_columns, check_rows


def check_views(view0: Tensor, view1: Tensor, names: tuple[str, str] = ("out0", "out1")) -> None:
    """Of one process. Several have to agree on what is wrong, which the losses see to."""
    check_rows(names[0], view0, batched=False)
    check_columns(names[1], view1, view0, same_rows=True, of=names[0])


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1 in the dtype of ``x``, those of the original where that has the precision."""
    # Half precision holds neither the squares nor 1e-12: in it a zero row becomes nan, and stays in a memory bank.
    return nn.functional.normalize(x, dim=1) if x.itemsize > 2 else autograd.prepare(x, normalize=True).to(x.dtype)
