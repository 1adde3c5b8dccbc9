"""The loss of CLIP and SigLIP in a ``Trainer``, over the pairs of all processes."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ... import losses
from ...distributed import GroupLike
from .._distributed import all_processes

# Those whose forward pass ends in the plain loss of CLIP or SigLIP of what `get_image_features` and
# `get_text_features` return.
MODEL_TYPES = ("altclip", "chinese_clip", "clip", "metaclip_2", "siglip", "siglip2")


@dataclass
class ContrastiveOutput(ModelOutput):
    """What a model returns to `ContrastiveTrainerMixin`: its own output without the logits.

    Attributes:
        loss: of all pairs.
        text_embeds: ``(N, D)`` unit rows of this process; in training not yet normalised inside of the forward pass.
        image_embeds: likewise.
        text_model_output: of the text encoder.
        vision_model_output: of the image encoder.
        logit_scale: the learned scale, inside of the forward pass alone.
        logit_bias: likewise, for SigLIP.
    """

    loss: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text_model_output: Any = None
    vision_model_output: Any = None
    logit_scale: Tensor | None = None
    logit_bias: Tensor | None = None


class ContrastiveTrainerMixin:
    """A ``Trainer`` whose loss is that of CLIP or SigLIP, of the pairs of all processes, without a matrix of logits.

    The features are those of the model's ``forward``, by its ``get_image_features`` and ``get_text_features``, under
    the same wrapper (`DistributedDataParallel`, FSDP) and mixed precision. The loss is the model's own of one process
    with the batches of all: `hyperkern.clip_loss`, or `hyperkern.siglip` for a model with a ``logit_bias``, with its
    learned scale. What the wrapper leaves after averaging is the gradient of that loss.

    What differs from the model's own loss:

    - with several processes, in training and in evaluation, all their pairs are candidates (see `contrastive_group`);
    - the loss is float32 (float64 for float64); a feature that is zero has a loss, not nan;
    - outputs have no ``logits_per_image`` and ``logits_per_text``: see `ContrastiveOutput`;
    - evaluations have a loss whether or not ``return_loss`` is in a batch.

    With gradient accumulation the loss of a step is the mean over its batches, as that of the model; a
    ``num_items_in_batch`` (of ``labels``, which there are none of) does not enter it.

    Raises:
        NotImplementedError: when it is called: ``label_smoothing_factor``, ``compute_loss_func``, ``torch_compile``,
            several GPUs in one process (``n_gpu > 1``), ``return_dict=False``.
        TypeError: likewise, a model of another type than those of ``MODEL_TYPES``, or with a ``forward`` of its own; a
            class that has it behind its trainer.
        ValueError: likewise, ``return_loss=False``.

    Source:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; Zhai et al.,
        "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """

    accelerator: Any
    args: Any
    label_smoother: Any
    compute_loss_func: Any
    # A mean over pairs: the trainer divides it by the number of batches of a step.
    loss_is_scaled_for_ga = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a trainer whose loss would be taken instead."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(ContrastiveTrainerMixin)]:
            if {"compute_loss", "train"} <= vars(base).keys() and not issubclass(base, ContrastiveTrainerMixin):
                raise TypeError(f"{cls.__name__}: ContrastiveTrainerMixin must stand before {base.__name__}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.can_return_loss = True

    def contrastive_group(self) -> GroupLike:
        """The processes whose pairs are one batch: all. Override it where some share a model, or for ``None``."""
        return all_processes(True)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, ContrastiveOutput]:
        """The loss of a batch, and with ``return_outputs`` a `ContrastiveOutput`."""
        self._check_options()
        # Unwrapping looks for what could be installed, each time.
        inner = model if isinstance(model, PreTrainedModel) else self.accelerator.unwrap_model(model)
        _check_model(inner)
        with _instead(inner, lambda **inputs: self._features(inner, inputs)):
            found: Any = model(**inputs)
        rows, group, scale = (found.image_embeds, found.text_embeds), self.contrastive_group(), found.logit_scale
        with self.accelerator.autocast():
            if found.logit_bias is None:
                loss: Tensor = losses.clip_loss(*rows, logit_scale=scale, group=group)
            else:
                bias = found.logit_bias
                loss = losses.siglip(*rows, logit_scale=scale, logit_bias=bias, group=group)
        if not return_outputs:
            return loss
        given = {name: value for name, value in found.items() if not name.startswith("logit_")}
        units = {name: F.normalize(given[name], dim=-1) for name in ("text_embeds", "image_embeds")}
        return loss, ContrastiveOutput(loss=loss, **given | units)

    def _features(self, model: Any, inputs: dict[str, Any]) -> ContrastiveOutput:
        """The forward pass of a model up to its features."""
        if inputs.pop("return_loss", None) is False:
            raise ValueError("return_loss=False leaves nothing to train with or to evaluate: leave it out")
        if inputs.pop("return_dict", None) is False:
            raise NotImplementedError("return_dict=False is not supported: outputs have names here")
        sides = {"vision": model.get_image_features, "text": model.get_text_features}
        named = {side: _inputs(getattr(function, "__func__", function)) for side, function in sides.items()}
        outputs, rows = {}, {}
        with self.accelerator.autocast():
            for side, function in sides.items():
                # What belongs to neither goes to both.
                others = frozenset.union(*named.values()) - named[side]
                outputs[side] = function(**{name: value for name, value in inputs.items() if name not in others})
                # In training the loss normalises them, in fewer steps; an evaluation's are what others look at.
                pooled = outputs[side].pooler_output
                rows[side] = pooled if model.training else F.normalize(pooled, dim=-1)
        bias = getattr(model, "logit_bias", None)
        return ContrastiveOutput(
            text_embeds=rows["text"],
            image_embeds=rows["vision"],
            text_model_output=outputs["text"],
            vision_model_output=outputs["vision"],
            # With the outputs, where the wrapper looks for the parameters that were used.
            logit_scale=model.logit_scale.exp(),
            logit_bias=None if bias is None else bias.clone(),
        )

    def _check_options(self) -> None:
        refused = {
            "label_smoothing_factor": (self.args.label_smoothing_factor, self.label_smoother is not None),
            "compute_loss_func": (self.compute_loss_func, self.compute_loss_func is not None),
            "torch_compile": (self.args.torch_compile, bool(self.args.torch_compile)),
            "n_gpu": (self.args.n_gpu, self.args.n_gpu > 1),
        }
        for name, (value, given) in refused.items():
            if given:
                raise NotImplementedError(f"{name}={value!r} is not supported by {type(self).__name__}")


@functools.cache
def _inputs(method: Callable[..., Any]) -> frozenset[str]:
    """What a method of a class of models takes."""
    return frozenset(inspect.signature(method).parameters) - {"kwargs", "self"}


def _check_model(model: Any) -> None:
    kind = getattr(getattr(model, "config", None), "model_type", None)
    own = not type(model).forward.__module__.startswith("transformers.")
    if kind not in MODEL_TYPES or own or not all(hasattr(model, f"get_{side}_features") for side in ("image", "text")):
        what = "with a forward of its own" if own and kind in MODEL_TYPES else f"of type {kind!r}"
        raise TypeError(
            f"the model must be one of Transformers of type {', '.join(MODEL_TYPES)}, got {type(model).__name__} {what}"
        )


@contextmanager
def _instead(model: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the model are calls of ``forward``: its wrapper and hooks see an ordinary forward pass."""
    before = vars(model).get("forward")
    model.forward = forward
    try:
        yield
    finally:
        if before is None:
            del model.forward
        else:
            model.forward = before
