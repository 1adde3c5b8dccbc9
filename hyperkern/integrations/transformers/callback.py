"""Alignment and uniformity among the metrics of an evaluation."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import TrainerCallback

from ...arguments import check_choice, check_positive
from ...evaluation import Evaluation, evaluate
from .._distributed import all_processes, on_first_process


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
