"""Drop-ins for losses of Sentence Transformers, whose module of losses has the same names, and an evaluator for it.

The losses take the constructor arguments of the originals (those of version 6.2) and a trainer and the library's own
wrappers, such as ``MatryoshkaLoss``, call them alike. All directions, partitions and hardness modes have the values and
gradients of the original, without a matrix of all pairs. What differs:

- the loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the embeddings;
- ``similarity_fct`` is the library's ``cos_sim`` or ``dot_score``, ``model.similarity`` where it is one of these, or
  ``None`` for the cosine;
- options that are set after construction are checked like those that are given to it.

How a batch is encoded is left to the library, so that dropout draws the same numbers: a loss without a cache joins
columns where the original does, one with it cuts them where the original does, whatever the features hold.

With ``gather_across_devices=True`` and several processes a loss is the mean over the anchors of its own process, with
the columns of all processes as candidates. As the original's, its gradient is that of the sum of the losses of all
processes, for the embeddings of this one: after `DistributedDataParallel` has averaged, that of the mean. No gradient
travels for it. Processes may have different numbers of samples, but not none; on each all columns have as many.

Importing this package does not import Sentence Transformers; `AlignmentUniformityEvaluator`, which extends a class of
it, is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from .cached import CachedMultipleNegativesRankingLoss, CachedMultipleNegativesSymmetricRankingLoss
from .ranking import MultipleNegativesRankingLoss, MultipleNegativesSymmetricRankingLoss

if TYPE_CHECKING:
    from .evaluator import AlignmentUniformityEvaluator

__all__ = [
    "AlignmentUniformityEvaluator",
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
]


def __getattr__(name: str) -> Any:
    """The evaluator, which needs the library."""
    if name != "AlignmentUniformityEvaluator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .evaluator import AlignmentUniformityEvaluator

    return AlignmentUniformityEvaluator
