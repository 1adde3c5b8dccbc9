"""What OpenCLIP's training makes of its arguments."""

import importlib
import inspect
from typing import Any, TypeAlias

from torch import nn

from .clip import ClipLoss, CoCaLoss
from .distill import DistillClipLoss
from .siglip import SigLipLoss

Loss: TypeAlias = ClipLoss | CoCaLoss | DistillClipLoss | SigLipLoss

LOSSES: dict[str, type[Loss]] = {loss.__name__: loss for loss in (ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss)}


def create_loss(args: Any) -> Loss:
    """The loss that ``open_clip.create_loss`` makes of the same arguments, as the one of this module.

    Args:
        args: the namespace of OpenCLIP's training: ``distill``, ``model``, ``siglip``, ``rank``, ``world_size``,
            ``local_loss``, ``gather_with_grad``, ``loss_dist_impl``, ``coca_caption_loss_weight`` and
            ``coca_contrastive_loss_weight``, as far as the loss has them; of version 3 ``horovod`` too.

    Returns:
        A `DistillClipLoss` with ``distill``; else by ``model`` a `CoCaLoss`; else with ``siglip`` a `SigLipLoss`; else
        a `ClipLoss`.

    Raises:
        AttributeError: an argument that is missing.
        NotImplementedError: a GenLIP or GenLAP ``model``, whose loss is not contrastive; ``horovod`` with several
            processes or ``siglip``.
    """
    horovod, model = getattr(args, "horovod", False), args.model.lower()
    processes = {"rank": args.rank, "world_size": args.world_size}
    if not args.distill and "coca" not in model:
        if "genlip" in model or "genlap" in model:
            raise NotImplementedError(f"model={args.model!r} has a loss of tokens alone: use open_clip.create_loss")
        if args.siglip:
            if horovod:
                raise NotImplementedError("horovod=True with siglip=True: neither OpenCLIP nor this replacement has it")
            return SigLipLoss(cache_labels=True, dist_impl=args.loss_dist_impl, **processes)
    options: dict[str, Any] = {
        "local_loss": args.local_loss,
        "gather_with_grad": args.gather_with_grad,
        "cache_labels": True,
        "use_horovod": horovod,
        **processes,
    }
    if args.distill:
        return DistillClipLoss(**options)
    if "coca" in model:
        return CoCaLoss(args.coca_caption_loss_weight, args.coca_contrastive_loss_weight, **options)
    return ClipLoss(**options)


def create_task(
    args: Any, model: nn.Module, dist_model: nn.Module | None = None, naflex_data_config: Any = None
) -> Any:
    """The task that ``open_clip.create_task`` makes of the same arguments, with the loss of this module in it.

    Args:
        args: the namespace of OpenCLIP's training.
        model: a model of OpenCLIP.
        dist_model: the teacher, with ``args.distill``.
        naflex_data_config: of models with native resolutions, handed on.

    Returns:
        A ``TrainingTask`` of OpenCLIP, made by it; its ``loss`` is one of this module.

    Raises:
        ImportError: OpenCLIP is not installed, or is older than version 4, which has no tasks.
        NotImplementedError: a task whose loss is not contrastive.
    """
    try:
        open_clip: Any = importlib.import_module("open_clip")
    except ImportError as error:
        raise ImportError("create_task makes a task of OpenCLIP: pip install open_clip_torch") from error
    if not hasattr(open_clip, "create_task"):
        version = getattr(open_clip, "__version__", "without a version")
        raise ImportError(f"create_task needs OpenCLIP 4, whose training has tasks, got {version}: use create_loss")
    task = open_clip.create_task(args, model, dist_model=dist_model, naflex_data_config=naflex_data_config)
    original = getattr(task, "loss", None)
    if type(original).__name__ not in LOSSES:
        raise NotImplementedError(
            f"{type(task).__name__} of model={args.model!r} has no contrastive loss: use open_clip.create_task"
        )
    task.loss = _like(original)
    return task


def _like(original: Any) -> Loss:
    """The loss of this module with the options of an original."""
    loss = LOSSES[type(original).__name__]
    options = {name: getattr(original, name) for name in inspect.signature(loss).parameters if hasattr(original, name)}
    if loss is CoCaLoss:
        options["pad_id"] = original.caption_loss.ignore_index
    return loss(**options)
