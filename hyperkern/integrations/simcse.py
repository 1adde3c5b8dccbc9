"""The loss of SimCSE, which its code computes inside of the model's forward.

`simcse_loss` takes the pooled embeddings of the sentences, ``z1, z2`` from two passes with different dropout
(unsupervised) or of premises and entailed hypotheses, then with contradictions ``z3`` as hard negatives (supervised),
and has the value and gradients of the original, without a matrix of all pairs. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the embeddings;
- the original gathers the embeddings of all processes in training: here ``gather_distributed=True`` asks for it. A
  process then has the loss of all sentences, and as from the original the gradient of that loss for its own ones, of
  which `DistributedDataParallel` leaves ``1 / world_size`` of the complete one. No gradient travels, and a process
  makes the logits of its own sentences alone. Processes may have different numbers of sentences;
- the loss of masked tokens (``mlm_weight``) is the caller's.
"""

from torch import Tensor, nn

from .. import autograd, losses
from ..arguments import check_columns, check_number, check_positive, check_rows, reduce_rows
from ..distributed import Agreement, Group
from ..losses.logits import merged, nll_from_excess, positive_logits
from ..spec import PairSpec, is_bounded, product_precision
from ._distributed import all_processes, check_gathers


def simcse_loss(
    z1: Tensor,
    z2: Tensor,
    z3: Tensor | None = None,
    temp: float = 0.05,
    hard_negative_weight: float = 0.0,
    gather_distributed: bool = False,
) -> Tensor:
    r"""Each sentence picks its partner among those of the batch and the hard negatives of all sentences.

    .. math::
        -\frac1N \sum_i \log \frac{e^{\hat z^1_i \cdot \hat z^2_i / \tau}}
            {\sum_j e^{\hat z^1_i \cdot \hat z^2_j / \tau} + \sum_j e^{\hat z^1_i \cdot \hat z^3_j / \tau + w [i = j]}}

    Args:
        z1: ``(N, D)`` embeddings of the sentences, float64, float32, bfloat16 or float16; normalised here.
        z2: those of their partners, like ``z1``: the same sentences under another dropout, or what follows from them.
        z3: those of their hard negatives, like ``z1``; ``None`` for none.
        temp: temperature, > 0.
        hard_negative_weight: ``w``, added to the logit of a sentence and its own hard negative: the logarithm of how
            often that one counts. Not used without ``z3``.
        gather_distributed: whether the sentences of all processes are one batch; in one process without effect.

    Returns:
        A scalar, float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong or different shapes, different devices, ``temp <= 0``, a weight that is not finite,
            something to gather without `torch.distributed`, or arguments that differ between the processes.

    Source:
        Gao et al., "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021, Eqs. 4 and 5.
    """
    check_gathers(gather_distributed)
    group = None if all_processes(gather_distributed) is None else Group(grad_scale="sum")
    with Agreement(group, "simcse_loss", temp=temp, hard_negative_weight=hard_negative_weight) as agreed:
        check_rows("z1", z1, may_be_empty=agreed.may_be_empty, batched=False)
        check_columns("z2", z2, z1, same_rows=True, may_be_empty=agreed.may_be_empty, of="z1")
        if z3 is not None:
            check_columns("z3", z3, z1, same_rows=True, may_be_empty=agreed.may_be_empty, of="z1")
        check_positive("temp", temp)
        check_number("hard_negative_weight", hard_negative_weight)
        agreed.shard(z1=z1, z2=z2, z3=z3)
    if z3 is None or (hard_negative_weight == 0 and group is None):
        return losses.info_nce(z1, z2, temperature=temp, negatives=z3, group=group)
    ranks, scale, precision = agreed.ranks, 1 / temp, product_precision(z1)
    sentences, partners, negatives = (autograd.prepare(side, normalize=True) for side in (z1, z2, z3))
    spec = PairSpec(scale, is_bounded(scale, ranks.total, sentences.dtype), "self", precision=precision)
    others = [positive_logits(sentences, negatives, spec) + hard_negative_weight]
    for columns in (partners, negatives):
        remote = autograd.share(ranks, columns)
        others.append(autograd.row_lse(sentences, columns, spec=spec)[0])
        if remote is not None:
            others.append(autograd.remote_row_lse(sentences, columns, remote, spec=spec).row_lse)
    nll = nll_from_excess(merged(*others) - positive_logits(sentences, partners, spec))
    return reduce_rows(nll, "mean", ranks)


class SimCSELoss(nn.Module):
    """`simcse_loss` as a module.

    Args:
        temp: temperature, > 0.
        hard_negative_weight: added to the logit of a sentence and its own hard negative.
        gather_distributed: whether the sentences of all processes are one batch, in training; ``eval()`` has those of
            each process.

    Raises:
        TypeError: a number that is none.
        ValueError: ``temp <= 0``, a weight that is not finite, or something to gather without `torch.distributed`.
    """

    def __init__(self, temp: float = 0.05, hard_negative_weight: float = 0.0, gather_distributed: bool = False) -> None:
        super().__init__()
        check_positive("temp", temp)
        check_number("hard_negative_weight", hard_negative_weight)
        check_gathers(gather_distributed)
        self.temp, self.hard_negative_weight, self.gather_distributed = temp, hard_negative_weight, gather_distributed

    def forward(self, z1: Tensor, z2: Tensor, z3: Tensor | None = None) -> Tensor:
        """The loss of sentences, their partners and, if there are any, their hard negatives, ``(N, D)`` each."""
        gathers = self.gather_distributed and self.training
        return simcse_loss(z1, z2, z3, self.temp, self.hard_negative_weight, gathers)

    def extra_repr(self) -> str:
        """The options."""
        options = ("temp", "hard_negative_weight", "gather_distributed")
        return ", ".join(f"{name}={getattr(self, name)}" for name in options)
