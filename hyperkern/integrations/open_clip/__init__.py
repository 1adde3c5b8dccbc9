"""Drop-in for OpenCLIP 3.3 and 4: ``from open_clip.loss import X`` becomes a line that names this module instead.

X is `ClipLoss`, `SigLipLoss`, `CoCaLoss` or `DistillClipLoss`: the same constructors, calls and values, without the
matrix of all logits. They normalise nothing, since the models do. ``from open_clip import create_loss`` (of either
version) and ``create_task`` (of version 4) become the same of this module: `create_loss` makes these losses of the
arguments of a training, `create_task` the task of OpenCLIP with them. What differs:

- a loss is float32 (float64 for float64) and computed in it, where the original's has the dtype of the features; but
  that of the captions is PyTorch's, as in the original;
- a ``logit_scale`` that is a number must be > 0;
- ``get_logits`` and ``get_ground_truth`` are there for callers: no loss looks at them, so that they cannot be replaced,
  nor ``labels`` given;
- ``get_logits`` adds a bias once, where the original does so twice in several processes without ``local_loss``;
- the gradient of the bias in `ClipLoss` is exactly 0, where the original has rounding errors;
- `CoCaLoss` and `DistillClipLoss` are no subclasses of `ClipLoss`.

In several processes, all those of `torch.distributed`, a process has the value of the original and its gradient for the
features, as the options ask for it. What differs:

- no gradient travels, but for the second loss of `DistillClipLoss`, and no process has a matrix of logits;
- processes may have different numbers of pairs;
- the gradient of a ``logit_scale`` is another on each process, of the same mean over processes: that which
  `DistributedDataParallel` takes;
- processes must weigh their losses alike before they go backward;
- horovod is not supported.
"""

from .clip import ClipLoss, CoCaLoss
from .distill import DistillClipLoss
from .factory import create_loss, create_task
from .siglip import SigLipLoss

__all__ = ["ClipLoss", "CoCaLoss", "DistillClipLoss", "SigLipLoss", "create_loss", "create_task"]
