"""For the ``Trainer`` of Hugging Face Transformers (5 and later): a contrastive loss without logits, and a callback.

`ContrastiveTrainerMixin` trains CLIP and SigLIP with the loss of all pairs, those of all processes, where the models
themselves make a matrix of logits of each process alone::

    class ContrastiveTrainer(ContrastiveTrainerMixin, Trainer):
        pass

`AlignmentUniformityCallback` adds alignment and uniformity of a model's features to the metrics of each evaluation.
"""

try:
    import transformers  # noqa: F401, what is here extends classes of it
except ModuleNotFoundError as error:
    raise ImportError(
        f"hyperkern.integrations.transformers: {error}; install with: pip install transformers"
    ) from error

from .callback import AlignmentUniformityCallback
from .mixin import ContrastiveOutput, ContrastiveTrainerMixin

__all__ = ["AlignmentUniformityCallback", "ContrastiveOutput", "ContrastiveTrainerMixin"]
