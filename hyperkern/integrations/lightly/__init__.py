"""Drop-in for lightly: ``from lightly.loss import X`` becomes ``from hyperkern.integrations.lightly import X``.

X is `NTXentLoss`, `DCLLoss`, `DCLWLoss`, `DirectCLRLoss`, `MACLLoss` or, of ``lightly.loss.hypersphere_loss``,
`HypersphereLoss`: the same constructors, memory bank and values, without a matrix of all pairs. What differs:

- losses are float32 (float64 for float64), also of half-precision features;
- ``temperature``, ``t``, ``alpha`` and ``sigma`` must be > 0, and all but `NTXentLoss`, `DirectCLRLoss` and `MACLLoss`
  need two rows: the original returns numbers without a meaning;
- options may be set after construction, but ``cross_entropy`` of `NTXentLoss` cannot be replaced.

A temperature (``t`` and ``lam`` of `HypersphereLoss`) may be a scalar tensor, with its gradient; ``sigma`` and
``alpha`` are numbers.

With ``gather_distributed=True`` and several processes a loss is the mean over the anchors of its own process, with the
rows of all processes as candidates. As the original's, its gradient is that of the sum of the losses of all processes,
for the rows of this one: after `DistributedDataParallel` has averaged, that of the mean. No gradient travels for it.
Processes may have different numbers of rows.
"""

from .dcl import DCLLoss, DCLWLoss
from .hypersphere import HypersphereLoss
from .memory_bank import MemoryBankModule
from .nt_xent import DirectCLRLoss, MACLLoss, NTXentLoss

__all__ = [
    "DCLLoss",
    "DCLWLoss",
    "DirectCLRLoss",
    "HypersphereLoss",
    "MACLLoss",
    "MemoryBankModule",
    "NTXentLoss",
]
