"""Drop-in for solo-learn: import `simclr_loss_func` from here instead of from ``solo.losses.simclr``.

The same call and the same value, without a matrix of all pairs. What differs:

- the loss is float32 (float64 for float64);
- it is computed from logarithms, where the original's exponentials overflow at temperatures below 0.012 in float32;
- a sample that occurs once has no positive, for which the original returns inf: it raises a `ValueError`;
- one process only: `hyperkern.nt_xent` has this loss of two views for several.
"""

import torch
from torch import Tensor, distributed

from .. import losses
from ..arguments import check_positive, check_rows, check_vector
from ..losses.logits import logsumexp, nll_from_excess
from ._distributed import all_processes
from ._positives import block_logits, classes_of


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    r"""SimCLR's loss with all positives of a row in one logarithm.

    .. math::
        -\frac1M \sum_i \log \frac{\sum_{p \in P(i)} e^{\hat z_i \cdot \hat z_p / \tau}}
            {\sum_{a \ne i} e^{\hat z_i \cdot \hat z_a / \tau}}

    with ``P(i)`` the other rows of the sample of row i. A few numbers are kept for each pair of rows of a sample: for V
    views of N samples ``V^2 N``, for classes as the indexes as many as there are pairs in them.

    Args:
        z: ``(M, D)`` features, those of all views; they are normalised here.
        indexes: ``(M,)`` integers, the sample (or the class) of each row.
        temperature: > 0.

    Returns:
        A scalar.

    Raises:
        NotImplementedError: there are several processes, whose features the original gathers.
        TypeError: an input is no tensor or of a wrong dtype.
        ValueError: wrong shapes, ``temperature <= 0``, or a sample that occurs only once.

    Source:
        Chen et al., ICML 2020, Eq. 1, for two views; Khosla et al., NeurIPS 2020, Eq. 3 less ``log |P(i)|``, for more.
    """
    check_rows("z", z)
    if z.dim() != 2:
        raise ValueError(f"z must have shape (M, D), got {tuple(z.shape)}")
    check_vector("indexes", indexes, "z", z, integer=True)
    check_positive("temperature", temperature)
    if all_processes(True) is not None:
        raise NotImplementedError(
            f"simclr_loss_func gathers features across processes, of which there are {distributed.get_world_size()}: "
            "use hyperkern.nt_xent(x, y, temperature=temperature, group=hyperkern.Group()) for two views"
        )
    classes = classes_of(indexes)
    if any(block.rows.shape[1] == 1 for block in classes.blocks):
        raise ValueError("indexes must name each sample at least twice: a row without another view has no positive")
    negatives, _ = losses.pairwise_logsumexp(z, logit_scale=1 / temperature, exclude="same_id", x_ids=classes.row_ids)
    terms = []
    for block, logits in zip(classes.blocks, block_logits(z, None, classes.blocks, temperature), strict=True):
        itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=z.device)
        positives = logsumexp(logits.masked_fill(itself, -torch.inf))
        terms.append(nll_from_excess(negatives[block.rows] - positives).flatten())
    return torch.cat(terms).mean()
