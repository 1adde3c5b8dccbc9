"""For the ``Trainer`` of Hugging Face Transformers (5 and later): a contrastive loss without logits, and a callback.

`ContrastiveTrainerMixin` trains CLIP and SigLIP with the loss of all pairs, those of all processes, where the models
themselves make a matrix of logits of each process alone::

    class ContrastiveTrainer(ContrastiveTrainerMixin, Trainer):
        pass

`AlignmentUniformityCallback` adds alignment and uniformity of a model's features to the metrics of each evaluation.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from .. import losses
from ..arguments import check_choice, check_positive
from ..distributed import GroupLike
from ..evaluation import Evaluation, evaluate
from ._distributed import all_processes, on_first_process

try:
    from transformers import PreTrainedModel, TrainerCallback
    from transformers.utils import ModelOutput
except ModuleNotFoundError as error:
    raise ImportError(
        f"hyperkern.integrations.transformers: {error}; install with: pip install transformers"
    ) from error

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


class AlignmentUniformityCallback(TrainerCallback):
    """Alignment and uniformity of what a model returns, among the metrics of each evaluation.

    The features are taken from the output of the model in each prediction step, by a forward hook that is there from
    the first event on that the trainer calls: give the callback to its constructor, ``callbacks=[...]``, or call
    `attach`. They are kept on the CPU, each sample once, those of all processes on the first one at the end. It works
    without ``compute_metrics``, with any precision, and sees no labels or logits.

    With the prefix of the evaluation, ``eval`` by default, the metrics are

    ================================== ==========================================================================
    ``eval_alignment``                 mean distance of positive pairs to the power ``alpha``, with ``positives``
    ``eval_uniformity``                of the features, or with ``positives`` the mean of both sides
    ``eval_uniformity_limit``          that of the uniform distribution, for unit rows: lower is not to be had
    ``eval_<output>_uniformity``       of one side
    ``eval_<output>_norm_min``         the smallest, mean (``_norm_mean``) and largest (``_norm_max``) norm of its rows
    ================================== ==========================================================================

    ``trainer.evaluate`` returns them, ``metric_for_best_model`` may name them, and the trainer's state and progress
    show them. Trackers that ``report_to`` names come before a callback that is given to the constructor, and see them
    only with `attach`.

    Args:
        features: name of an output, ``(N, D)`` or, for one vector of each sample, any further name.
        positives: name of the output with the partner of each row; ``None`` for uniformity alone.
        t: inverse width of the Gaussian potential, > 0.
        alpha: exponent of the alignment distance, > 0.
        normalize: whether rows are scaled to unit length first.
        method: ``"exact"``, every pair, or ``"estimate"``, see `hyperkern.evaluate`, which computes all this.
        columns: how many columns an estimate draws.

    Raises:
        TypeError: a number that is none; in an evaluation, outputs that are not floating tensors.
        ValueError: an option out of its range; in an evaluation, fewer than two samples, an unknown output, metrics
            that another callback has added under the same names.

    Source:
        Wang & Isola, ICML 2020, Section 4.1.
    """

    def __init__(
        self,
        features: str = "image_embeds",
        positives: str | None = "text_embeds",
        *,
        t: float = 2.0,
        alpha: float = 2.0,
        normalize: bool = True,
        method: str = "exact",
        columns: int = 1024,
    ) -> None:
        check_positive("t", t)
        check_positive("alpha", alpha)
        check_choice("method", method, ("exact", "estimate"))
        self.names = [features] if positives is None else [features, positives]
        self.options: dict[str, Any] = {
            "t": t,
            "alpha": alpha,
            "normalize": normalize,
            "method": method,
            "columns": columns,
        }
        self._hooked: Any = None
        self._last: list[Tensor] | None = None
        self._loader: Any = None  # of the evaluation that the rows are of
        self._rows: list[list[Tensor]] = []

    def attach(self, trainer: Any) -> "AlignmentUniformityCallback":
        """Adds it to a trainer before its other callbacks, and returns it."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(other for other in callbacks if other is not self)]
        self._hook(trainer.model)
        return self

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Watches the model."""
        self._hook(model)

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Watches the model, which may be another one than before."""
        self._hook(model)
        self._rows = []

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the features of a batch."""
        if args.n_gpu > 1:
            raise NotImplementedError(f"n_gpu={args.n_gpu} is not supported: start one process for each GPU")
        if self._last is None:
            raise ValueError(
                "the callback has seen no output of the model: give it to the constructor of the trainer, "
                "callbacks=[...], or call its method attach(trainer)"
            )
        rows, self._last = self._last, None
        loader = kwargs.get("eval_dataloader")
        if loader is not self._loader:  # an evaluation before was broken off
            self._loader, self._rows = loader, []
        kept = _own_samples(len(rows[0]), loader)
        self._rows.append([side[:kept].cpu() for side in rows])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Adds the metrics to what an evaluation logs."""
        prefix = next((key[: -len("_runtime")] for key in logs or {} if key.endswith("_runtime")), None)
        if prefix is None or not self._rows:
            return
        batches, self._rows, self._loader = self._rows, [], None
        found = on_first_process(self._evaluated, [torch.cat(side) for side in zip(*batches, strict=True)])
        metrics = {f"{prefix}_{name}": value for name, value in found.items()}
        taken = [name for name in metrics if name in logs]
        if taken:
            raise ValueError(f"the evaluation has a metric {taken[0]!r} already: a trainer has one such callback")
        logs.update(metrics)
        if state.log_history:
            state.log_history[-1].update(metrics)

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        """Forgets what was predicted, which is no evaluation."""
        self._rows, self._loader = [], None

    def __getstate__(self) -> dict[str, Any]:
        """Copies go with those of the model that is watched: without the rows and the data."""
        return {**vars(self), "_last": None, "_loader": None, "_rows": []}

    def _hook(self, model: Any) -> None:
        if model is None or model is self._hooked:
            return
        self._hooked = model
        model.register_forward_hook(self._keep)

    # A method, not a function made in one: a model with it can be pickled.
    def _keep(self, module: nn.Module, _: Any, output: Any) -> None:
        if module is self._hooked and not module.training:
            self._last = [_named(output, name).detach() for name in self.names]

    def _evaluated(self, rows: list[Tensor]) -> dict[str, float]:
        positives = rows[1] if len(rows) > 1 else None
        return dict(_metrics(evaluate(rows[0], positives, **self.options), self.names))


def _metrics(result: Evaluation, names: list[str]) -> Iterator[tuple[str, float]]:
    """Names and values, without the prefix."""
    if result.alignment is not None:
        yield "alignment", result.alignment
    yield "uniformity", result.uniformity
    if result.floor is not None:
        yield "uniformity_limit", result.floor
    for name, side in zip(names, result.sides, strict=True):
        yield f"{name}_uniformity", side.uniformity
        for which, norm in zip(("min", "mean", "max"), side.norms, strict=True):
            yield f"{name}_norm_{which}", norm


def _named(output: Any, name: str) -> Tensor:
    """One of the outputs of a model."""
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    if found is None:
        there = ", ".join(output) if isinstance(output, Mapping) else type(output).__name__
        raise ValueError(f"the model returned no {name!r}, but {there}")
    if not (isinstance(found, Tensor) and found.is_floating_point() and found.dim() == 2):
        kind = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"the output {name!r} must be floating features (N, D), got {kind}")
    return found


def _own_samples(count: int, loader: Any) -> int:
    """How many rows of the batch of this process are samples, not repetitions that fill up the last batch."""
    remainder = getattr(loader, "remainder", -1)
    if not getattr(loader, "end_of_dataloader", False) or remainder <= 0 or all_processes(True) is None:
        return count
    return min(count, max(0, remainder - distributed.get_rank() * count))


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
