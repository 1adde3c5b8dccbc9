"""The loss of SimCSE, which its code computes inside of the model's forward.

`simcse_loss` takes the pooled embeddings of the sentences, ``z1, z2`` from two passes with different dropout
(unsupervised) or of premises and entailed hypotheses, then with contradictions ``z3`` as hard negatives (supervised),
and has the value and gradients of the original, without a matrix of all pairs. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the embeddings;
- the original gathers the embeddings of all processes in training, the gradient kept for the own ones: do that before
  the call, or each process has the loss of its own batch.
"""

from torch import Tensor, nn

from .. import autograd, losses
from ..arguments import check_columns, check_number, check_positive, check_rows
from ..losses.logits import merged, nll_from_excess, positive_logits
from ..spec import PairSpec, is_bounded, product_precision


def simcse_loss(
    z1: Tensor, z2: Tensor, z3: Tensor | None = None, temp: float = 0.05, hard_negative_weight: float = 0.0
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

    Returns:
        A scalar, float64 for float64 input, float32 otherwise.

    Raises:
        TypeError: an input is no floating tensor, or the dtypes differ.
        ValueError: wrong or different shapes, different devices, ``temp <= 0``, a weight that is not finite.

    Source:
        Gao et al., "SimCSE: Simple Contrastive Learning of Sentence Embeddings", EMNLP 2021, Eqs. 4 and 5.
    """
    check_rows("z1", z1, batched=False)
    check_columns("z2", z2, z1, same_rows=True)
    if z3 is not None:
        check_columns("z3", z3, z1, same_rows=True)
    check_positive("temp", temp)
    check_number("hard_negative_weight", hard_negative_weight)
    if z3 is None or hard_negative_weight == 0:
        return losses.info_nce(z1, z2, temperature=temp, negatives=z3)
    scale, precision = 1 / temp, product_precision(z1)
    sentences, partners, negatives = (autograd.prepare(side, normalize=True) for side in (z1, z2, z3))
    spec = PairSpec(scale, is_bounded(scale, len(z1), sentences.dtype), "self", precision=precision)
    others = [autograd.row_lse(sentences, columns, spec=spec)[0] for columns in (partners, negatives)]
    own = positive_logits(sentences, negatives, spec) + hard_negative_weight
    return nll_from_excess(merged(*others, own) - positive_logits(sentences, partners, spec)).mean()


class SimCSELoss(nn.Module):
    """`simcse_loss` as a module.

    Args:
        temp: temperature, > 0.
        hard_negative_weight: added to the logit of a sentence and its own hard negative.

    Raises:
        TypeError: a number that is none.
        ValueError: ``temp <= 0``, a weight that is not finite.
    """

    def __init__(self, temp: float = 0.05, hard_negative_weight: float = 0.0) -> None:
        super().__init__()
        check_positive("temp", temp)
        check_number("hard_negative_weight", hard_negative_weight)
        self.temp, self.hard_negative_weight = temp, hard_negative_weight

    def forward(self, z1: Tensor, z2: Tensor, z3: Tensor | None = None) -> Tensor:
        """The loss of sentences, their partners and, if there are any, their hard negatives, ``(N, D)`` each."""
        return simcse_loss(z1, z2, z3, self.temp, self.hard_negative_weight)

    def extra_repr(self) -> str:
        """The options."""
        return f"temp={self.temp}, hard_negative_weight={self.hard_negative_weight}"
