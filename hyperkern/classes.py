"""Classes of rows: numbered from 0 on, and sums over the rows of each."""

import torch
from torch import Tensor


def class_sums_of(x: Tensor, index: Tensor, of: Tensor, classes: int) -> Tensor:
    """`class_sums` without a derivative, of ``(B, N, D)`` rows."""
    batch, _, dim = x.shape
    # Of all batch elements at once: each has classes of its own.
    offset = classes * torch.arange(batch, device=x.device).unsqueeze(1)
    sums = x.new_zeros(batch * classes, dim)
    index, rows = (index + offset).flatten(), x.reshape(-1, dim)
    # In the order of the rows: index_add does that on a CPU, index_put, which sorts, on a GPU.
    sums.index_put_((index,), rows, accumulate=True) if x.is_cuda else sums.index_add_(0, index, rows)
    return sums.index_select(0, (of + offset).flatten()).view(batch, of.shape[1], dim)


def class_index(*labels: Tensor) -> list[Tensor]:
    """Classes numbered from 0 on, the same for equal labels of any of the tensors.

    Args:
        *labels: ``(N_k,)`` or ``(B, N_k)`` integers.

    Returns:
        Tensors of the same shapes with integers from 0 to less than the sum of the N_k. No value is read on the host.
    """
    together = torch.cat(labels, -1)
    ordered, order = together.sort(dim=-1, stable=True)
    is_new = torch.zeros_like(order)  # of the dtype of an index, whatever that of the labels
    is_new[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    index = torch.empty_like(order).scatter(-1, order, is_new.cumsum(-1))
    return list(index.split_with_sizes([part.shape[-1] for part in labels], -1))
