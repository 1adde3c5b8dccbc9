"""A callback that logs alignment and uniformity of what the steps of a LightningModule return.

It is for trainers of ``lightning.pytorch`` and of ``pytorch_lightning``, which are different classes. A trainer calls
the hooks of any callback in its list; only for one given outside of a list, ``Trainer(callbacks=callback)``, it looks
for its own class. So the callback is of the package that is imported already, of both if both are, else of one that is
installed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from ..arguments import check_choice, check_rows

PACKAGES = ("lightning.pytorch", "pytorch_lightning")
STAGES = ("train", "validate", "test")
# A sample of more would know the uniformity better than a curve shows it; a CPU compares its pairs in a second or two.
DEFAULT_RESERVOIR = 8192


def _callback_class() -> Any:
    installed = [name for name in PACKAGES if find_spec(name.split(".")[0])]
    if not installed:
        raise ImportError("hyperkern.integrations.lightning needs Lightning; install with: pip install lightning")
    names = [name for name in installed if name in sys.modules] or installed[:1]
    classes = tuple(import_module(name).Callback for name in names)
    return classes[0] if len(classes) == 1 else type("Callback", classes, {})


Callback: Any = _callback_class()

from torchmetrics import MetricCollection  # noqa: E402, a part of any Lightning

from .torchmetrics import Alignment, NormStatistics, Uniformity, UniformityLimit  # noqa: E402


class AlignmentUniformity(Callback):
    """Logs alignment, uniformity, its limit and the norms of named outputs, at the end of an epoch.

    What ``validation_step`` returns, or else the batch, is a dictionary with the features under ``target``, ``(N, D)``,
    and those of their partners under ``positive``::

        trainer = Trainer(callbacks=[AlignmentUniformity("ssl", target="z1", positive="z2")])

    logs, of all rows of the epoch on all processes,

    - ``ssl/alignment`` of the pairs, if ``positive`` is given;
    - ``ssl/uniformity`` of the target, and with a reservoir ``ssl/uniformity_error``, its standard error;
    - ``ssl/uniformity_limit``, what uniformly distributed features would have, if they are normalised;
    - ``ssl/norm_mean``, ``norm_min``, ``norm_max``, ``norm_std`` of the target's rows before they are normalised.

    With several dataloaders each has values of its own, ``ssl/alignment/dataloader_idx_0`` and so on; one that gave no
    rows on any process has none. Every epoch draws the same places of its reservoir: nothing of an epoch is kept, so a
    checkpoint has no state of this callback, and a run resumed between epochs logs the values of one not interrupted.
    The rows of the sanity check are treated like others; the trainer logs nothing of them. Those of a step that is
    skipped, whose ``training_step`` returns ``None``, do not count.

    Args:
        name: what the values are logged under; no two of these callbacks of a trainer may have the same.
        target: key of the features, looked for in what the step returns, then in the batch.
        positive: key of the positives of the features, row by row, likewise; ``None`` for no alignment.
        t: inverse width of the Gaussian potential, > 0.
        alpha: exponent of the alignment, > 0.
        normalize: whether rows are scaled to unit length first.
        pairs: which pairs of rows count, ``"all"`` or those within a ``"batch"``, as in
            `hyperkern.integrations.torchmetrics.Uniformity`.
        reservoir: with ``pairs="all"`` how many rows the uniformity is taken of at most, drawn from all of the epoch;
            ``None`` for all of them, which are kept. ``pairs="batch"`` has none.
        seed: of the reservoir's draws.
        stage: whose steps are looked at: ``"validate"``, ``"test"``, or ``"train"``, whose features change in an epoch.

    Raises:
        TypeError: an option of a wrong type; in a step, features that are no floating tensor.
        ValueError: an option out of its range; a name that is taken; in a step, a key that neither outputs nor batch
            have, or features of a wrong shape.

    Source:
        Wang & Isola, ICML 2020, Section 4.1; docs/metrics.md.
    """

    def __init__(
        self,
        name: str,
        target: str,
        positive: str | None = None,
        *,
        t: float = 2.0,
        alpha: float = 2.0,
        normalize: bool = True,
        pairs: str = "all",
        reservoir: int | None = DEFAULT_RESERVOIR,
        seed: int = 0,
        stage: str = "validate",
    ) -> None:
        super().__init__()
        check_choice("stage", stage, STAGES)
        self.name, self.target, self.positive = name, target, positive
        self.t, self.alpha, self.normalize = t, alpha, normalize
        self.pairs, self.seed, self.stage = pairs, seed, stage
        by_default = pairs == "batch" and reservoir == DEFAULT_RESERVOIR
        self.reservoir = None if by_default else reservoir
        self._metrics: list[Any] = []  # one collection for each dataloader, within an epoch
        self._collection()  # what is wrong with the options is said here, not in an epoch

    @property
    def state_key(self) -> str:
        """What tells callbacks of different names apart."""
        return f"AlignmentUniformity[name={self.name}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses a name that another callback has: the logged values would be mixed."""
        names = [callback.name for callback in trainer.callbacks if isinstance(callback, AlignmentUniformity)]
        if names.count(self.name) > 1:
            raise ValueError(f"name must be another one for each AlignmentUniformity, got {self.name!r} twice")

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to collect."""
        self._begin("train", pl_module, 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Adds the rows of a step."""
        if not self._metrics:  # a run resumed within an epoch has no start of it
            self._begin("train", pl_module, 1)
        if outputs or not pl_module.automatic_optimization:  # else the step was skipped
            self._add("train", outputs, batch, 0)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the values of the epoch."""
        self._log("train", pl_module)

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to collect."""
        self._begin("validate", pl_module, len(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds the rows of a step."""
        self._add("validate", outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the values of the epoch."""
        self._log("validate", pl_module)

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begins to collect."""
        self._begin("test", pl_module, len(trainer.num_test_batches))

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds the rows of a step."""
        self._add("test", outputs, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Logs the values of the epoch."""
        self._log("test", pl_module)

    def _collection(self) -> Any:
        has_error = self.reservoir is not None
        metrics: dict[str, Any] = {
            "uniformity": Uniformity(self.t, self.normalize, self.pairs, self.reservoir, self.seed, has_error),
            "uniformity_limit": UniformityLimit(self.t),
            "norm": NormStatistics(),
        }
        alignment = Alignment(self.alpha, self.normalize)
        return MetricCollection(metrics | ({"alignment": alignment} if self.positive is not None else {}))

    def _begin(self, stage: str, pl_module: Any, dataloaders: int) -> None:
        # For each dataloader on each process, with rows or not: the states of all processes are gathered together.
        if stage == self.stage:
            self._metrics = [self._collection().to(pl_module.device) for _ in range(dataloaders)]

    def _add(self, stage: str, outputs: Any, batch: Any, dataloader_idx: int) -> None:
        if stage != self.stage:
            return
        rows = {"x": self._found("target", self.target, outputs, batch)}
        if self.positive is not None:
            rows["y"] = self._found("positive", self.positive, outputs, batch)
            if rows["y"].shape != rows["x"].shape:
                raise ValueError(
                    f"{self._called('positive', self.positive)} must have the shape of target {self.target!r}, "
                    f"{tuple(rows['x'].shape)}, got {tuple(rows['y'].shape)}"
                )
        self._metrics[dataloader_idx].update(**rows)

    def _log(self, stage: str, pl_module: Any) -> None:
        if stage != self.stage:
            return
        for index, metrics in enumerate(self._metrics):
            values = metrics.compute()
            if values["uniformity_limit"].isnan():
                continue  # no rows on any process
            if not self.normalize:
                del values["uniformity_limit"]
            suffix = f"/dataloader_idx_{index}" if len(self._metrics) > 1 else ""
            named = {f"{self.name}/{key}{suffix}": value for key, value in values.items()}
            # The same on all processes already; Lightning warns of values that it does not reduce itself.
            pl_module.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, add_dataloader_idx=False)
        self._metrics = []

    def _called(self, option: str, key: str) -> str:
        return f"AlignmentUniformity {self.name!r}: {option} {key!r}"

    def _found(self, option: str, key: str, outputs: Any, batch: Any) -> Tensor:
        places = {"what the step returned": outputs, "the batch": batch}
        for place in places.values():
            if isinstance(place, Mapping) and key in place:
                rows: Tensor = place[key]
                check_rows(self._called(option, key), rows, may_be_empty=True, batched=False)
                return rows
        seen = [
            f"{where} has {', '.join(map(repr, place)) or 'no keys'}"
            if isinstance(place, Mapping)
            else f"{where} is no dictionary but {type(place).__name__}"
            for where, place in places.items()
        ]
        raise ValueError(f"{self._called(option, key)} is not there: {'; '.join(seen)}")
