"""Drop-in for PyTorch Metric Learning: import `NTXentLoss`, `SupConLoss` or `CrossBatchMemory` from here.

Instead of from its ``losses``. They have the calls and the values of the original, without a matrix of all pairs where
that would have more than 512 x 512 elements. `NTXentLoss` keeps a few numbers for each positive pair, since each has a
term of its own (for C classes of equal size ``N^2 / C`` of them, for two views of each sample ``4 N``), `SupConLoss`
none.

**Options.** The distance may be ``CosineSimilarity`` or ``DotProductSimilarity``, of any norms, with ``p=2`` and
``power=1``; the reducer any of the original's or one derived from its ``BaseReducer``; ``embedding_regularizer`` any of
its regularizers. Others are refused, in the constructor and when they are set after it. The temperature may be a
tensor, or a parameter, which is learned.

**Pairs.** ``indices_tuple`` names pairs or triplets, as miners do. They take time and memory for what is named, and a
matrix of all pairs only where the features of those named would take more.

**Wrappers** of the original take these losses as its own: ``SelfSupervisedLoss``, ``MultipleLosses``,
``CrossBatchMemory`` and, in several processes, ``DistributedLossWrapper``. `CrossBatchMemory` from here names no pairs,
and is the one to take in several processes.

What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the features;
- the original bounds a term of `NTXentLoss` by ``-log(tiny)``, 87.3 in float32, and has no gradient beyond;
- the default reducer of `SupConLoss` averages over the rows whose loss is > 0, as the original does: where losses are
  as small as their rounding errors, which rows count is a matter of rounding;
- the terms that a reducer gets are not in the order of the original, their indices say whose they are.
"""

from .losses import NTXentLoss, SupConLoss
from .memory import CrossBatchMemory

__all__ = ["CrossBatchMemory", "NTXentLoss", "SupConLoss"]
