"""The callback in real trainers of both packages, against the dense truth of the rows of an epoch."""

import csv
import importlib
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import torch
import torch.distributed as dist
from parity import library
from ranks import Ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader

library("lightning.pytorch")
library("pytorch_lightning")

from hyperkern.integrations import lightning as module  # noqa: E402, it imports the library
from hyperkern.integrations.lightning import AlignmentUniformity  # noqa: E402
from hyperkern.metrics import uniformity_limit  # noqa: E402

DIM, ROWS, BATCH = 6, 25, 8
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
NAMES = ["alignment", "uniformity", "uniformity_error", "uniformity_limit"]
NORMS = ["norm_mean", "norm_min", "norm_max", "norm_std"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # Lightning's
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    for package in (*PACKAGES, "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    return


def data(seed: int = 0, rows: int = ROWS) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, rows, DIM, generator=draw)
    return [{"x": own, "y": own + partner, "other": 2 * partner} for own, partner in zip(x, y, strict=True)]


def loader(seed: int = 0, rows: int = ROWS) -> DataLoader:
    return DataLoader(data(seed, rows), batch_size=BATCH)


def module_class(package: str) -> Any:
    """A module of that package whose steps return features."""
    library_module = importlib.import_module(package)

    class Module(library_module.LightningModule):
        def __init__(self, outputs: bool = True) -> None:
            super().__init__()
            self.encoder = nn.Linear(DIM, DIM)
            nn.init.eye_(self.encoder.weight)
            nn.init.zeros_(self.encoder.bias)
            self.outputs = outputs

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            z = self.encoder(batch["x"])
            loss = (z - batch["y"]).square().mean()
            return {"loss": loss, "z": z, "z2": self.encoder(batch["y"])}

        def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Any:
            if not self.outputs:
                return None
            return {"z": self.encoder(batch["x"]), "z2": self.encoder(batch["y"])}

        def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return self.validation_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module


def trainer(package: str, *callbacks: Any, **options: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "devices": 1,
    }
    return importlib.import_module(package).Trainer(callbacks=list(callbacks), **(quiet | options))


def columns(rows: list[dict[str, Tensor]], weight: Tensor | None = None, bias: Tensor | None = None) -> list[Tensor]:
    sides = [torch.stack([row[key] for row in rows]).double() for key in ("x", "y")]
    if weight is None:
        return sides
    return [side @ weight.double().T + bias.double() for side in sides]


def truth(x: Tensor, y: Tensor, **options: Any) -> dict[str, float]:
    norms = torch.linalg.vector_norm(x, dim=1)
    values = {
        "alignment": oracle.alignment(x, y),
        "uniformity": oracle.uniformity(x, **options),
        "uniformity_error": torch.zeros(()),
        "uniformity_limit": torch.tensor(uniformity_limit(DIM, **options)),
        "norm_mean": norms.mean(),
        "norm_min": norms.min(),
        "norm_max": norms.max(),
        "norm_std": norms.std(correction=0),
    }
    return {name: value.item() for name, value in values.items()}


def logged(metrics: dict[str, Any], prefix: str = "ssl/", suffix: str = "") -> dict[str, float]:
    return {
        name.removeprefix(prefix).removesuffix(suffix): float(value)
        for name, value in metrics.items()
        if name.startswith(prefix) and name.endswith(suffix)
    }


def near(values: dict[str, float], tolerance: float = 2e-6) -> Any:
    return pytest.approx(values, rel=tolerance, abs=tolerance)


# --- values


@pytest.mark.parametrize("package", PACKAGES)
class TestBothPackages:
    def test_validation(self, package: str) -> None:
        run, model = trainer(package, AlignmentUniformity("ssl", "z", "z2")), module_class(package)()
        run.validate(model, loader(), verbose=False)
        assert logged(run.callback_metrics) == near(truth(*columns(data())))
        run.validate(model, loader(1), verbose=False)
        assert logged(run.callback_metrics) == near(truth(*columns(data(1))))

    def test_a_fast_run_of_all_stages(self, package: str) -> None:
        callbacks = [AlignmentUniformity(stage, "z", "z2", stage=stage) for stage in ("train", "validate", "test")]
        run, model = trainer(package, *callbacks, fast_dev_run=True), module_class(package)()
        run.fit(model, loader(), loader(1))
        found = dict(run.callback_metrics)
        assert {name.split("/")[0] for name in found} == {"train", "validate"}
        # The first batch of training, before the step that it makes.
        assert logged(found, "train/") == near(truth(*columns(data()[:BATCH])))
        weights = model.encoder.weight.detach(), model.encoder.bias.detach()
        assert logged(found, "validate/") == near(truth(*columns(data(1)[:BATCH], *weights)))
        run.test(model, loader(2), verbose=False)
        assert logged(run.callback_metrics, "test/") == near(truth(*columns(data(2)[:BATCH], *weights)))

    def test_a_short_fit_with_a_logger(self, package: str, tmp_path: Path) -> None:
        logger = importlib.import_module(f"{package}.loggers").CSVLogger(tmp_path, name="", version="")
        callbacks = [AlignmentUniformity("ssl", "z", "z2"), AlignmentUniformity("raw", "x", reservoir=None)]
        run = trainer(package, *callbacks, max_epochs=3, logger=logger, log_every_n_steps=1)
        model, seen = module_class(package)(), []
        after_epochs(run, model, lambda: seen.append([p.detach().clone() for p in model.encoder.parameters()]))
        run.fit(model, loader(), loader(1))
        with (tmp_path / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["ssl/uniformity"]]
        assert len(rows) == len(seen) == 3  # not the sanity check
        for row, weights in zip(rows, seen, strict=True):
            assert logged(row) == near(truth(*columns(data(1), *weights)), 1e-5)
        constant = truth(*columns(data(1)))
        # Of the batch, without positives and without a reservoir.
        names = ["uniformity", "uniformity_limit", *NORMS]
        assert logged(rows[-1], "raw/") == near({name: constant[name] for name in names})
        assert [set(logged(row)) for row in rows] == [{*NAMES, *NORMS}] * 3


def after_epochs(run: Any, model: Any, call: Any) -> None:
    original = model.on_validation_epoch_end

    def hook() -> None:
        if not run.sanity_checking:
            call()
        original()

    model.on_validation_epoch_end = hook


def test_several_dataloaders() -> None:
    run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "z", "z2"))
    run.validate(module_class(PACKAGES[0])(), [loader(), loader(1, 11)], verbose=False)
    for index, rows in enumerate((data(), data(1, 11))):
        assert logged(run.callback_metrics, suffix=f"/dataloader_idx_{index}") == near(truth(*columns(rows)))
    assert len(run.callback_metrics) == 2 * len([*NAMES, *NORMS])


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_dataloaders_in_one_batch() -> None:
    both = importlib.import_module("lightning.pytorch.utilities").CombinedLoader(
        {"one": loader(), "two": loader(1)}, "min_size"
    )
    model = module_class(PACKAGES[0])()
    model.validation_step = lambda batch, batch_idx: {"z": batch["one"]["x"], "z2": batch["two"]["y"]}
    run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "z", "z2"))
    run.validate(model, both, verbose=False)
    (x, _), (_, y) = columns(data()), columns(data(1))
    assert logged(run.callback_metrics, suffix="/dataloader_idx_0") == near(truth(x, y))
    assert not logged(run.callback_metrics, suffix="/dataloader_idx_1")


def test_options() -> None:
    options = {"t": 3.0, "alpha": 1.0, "normalize": False, "pairs": "batch"}
    run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "z", "z2", **options))
    run.validate(module_class(PACKAGES[0])(), loader(), verbose=False)
    x, y = columns(data())
    found = logged(run.callback_metrics)
    assert found["alignment"] == pytest.approx(oracle.alignment(x, y, alpha=1, normalize=False).item(), rel=1e-6)
    parts = [part for part in x.split(BATCH) if len(part) > 1]
    sums = sum(oracle.uniformity(p, t=3.0, normalize=False).exp() * len(p) * (len(p) - 1) / 2 for p in parts)
    count = sum(len(p) * (len(p) - 1) / 2 for p in parts)
    assert found["uniformity"] == pytest.approx((sums / count).log().item(), rel=1e-6)
    assert set(found) == {"alignment", "uniformity", *NORMS}  # no limit off the sphere, no error without a sample


def test_a_reservoir_of_fewer_rows() -> None:
    found = []
    for seed in (0, 0, 1):
        run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "z", reservoir=16, seed=seed))
        run.validate(module_class(PACKAGES[0])(), loader(rows=100), verbose=False)
        found.append(logged(run.callback_metrics))
    value = truth(*columns(data(rows=100)))["uniformity"]
    assert found[0] == found[1] != found[2]
    assert 0 < abs(found[0]["uniformity"] - value) < 3 * found[0]["uniformity_error"] < 1.5


def test_every_epoch_draws_the_same_places() -> None:
    run, model = trainer(PACKAGES[0], AlignmentUniformity("ssl", "x", reservoir=16)), module_class(PACKAGES[0])()
    found = []
    for _ in range(2):
        run.validate(model, loader(rows=100), verbose=False)
        found.append(logged(run.callback_metrics))
    assert found[0] == found[1]


def test_half_precision() -> None:
    run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "z", "z2"), precision="bf16-true")
    run.validate(module_class(PACKAGES[0])(), loader(), verbose=False)
    rounded = [side.bfloat16().double() for side in columns(data())]
    assert logged(run.callback_metrics) == near(truth(*rounded), 0.02)


# --- runs and checkpoints


def test_a_resumed_run_logs_the_same(tmp_path: Path) -> None:
    def fitted(epochs: int, checkpoint: Path | None, reservoir: int = 16) -> Any:
        torch.manual_seed(0)
        callback = AlignmentUniformity("ssl", "z", "z2", reservoir=reservoir)
        run = trainer(PACKAGES[0], callback, max_epochs=epochs, num_sanity_val_steps=0)
        run.fit(module_class(PACKAGES[0])(), loader(), loader(1, 60), ckpt_path=checkpoint)
        return run

    path = tmp_path / "first.ckpt"
    fitted(1, None).save_checkpoint(path)
    assert torch.load(path, weights_only=True)["callbacks"] == {}
    assert logged(fitted(2, path).callback_metrics) == logged(fitted(2, None).callback_metrics)


def test_it_is_sent_to_other_processes_and_keeps_no_rows() -> None:
    callback = pickle.loads(pickle.dumps(AlignmentUniformity("ssl", "z", "z2")))
    assert callback.state_key == "AlignmentUniformity[name=ssl]"
    trainer(PACKAGES[0], callback).validate(module_class(PACKAGES[0])(), loader(), verbose=False)
    assert not callback._metrics
    assert callback.state_dict() == {}


def test_training_that_goes_on_within_an_epoch() -> None:
    callback, model = AlignmentUniformity("ssl", "x", stage="train"), module_class(PACKAGES[0])()
    callback.on_train_batch_end(None, model, {"loss": torch.zeros(())}, {"x": torch.ones(3, DIM)}, 7)
    assert int(callback._metrics[0]["norm"].count) == 3


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`", "ignore:You defined a `validation_step` but")
def test_steps_that_are_skipped() -> None:
    class Skipping(module_class(PACKAGES[0])):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    class Manual(module_class(PACKAGES[0])):
        automatic_optimization = False

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
            return None

    counted = data()[:BATCH] + data()[2 * BATCH :]
    for keys in (("z", "z2"), ("x", "y")):
        run = trainer(PACKAGES[0], AlignmentUniformity("ssl", *keys, stage="train"), max_epochs=1)
        run.fit(Skipping(), loader())
        assert logged(run.callback_metrics).keys() == {*NAMES, *NORMS}
    assert logged(run.callback_metrics) == near(truth(*columns(counted)))
    # What one returns that optimises by itself says nothing.
    run = trainer(PACKAGES[0], AlignmentUniformity("ssl", "x", "y", stage="train"), max_epochs=1)
    run.fit(Manual(), loader())
    assert logged(run.callback_metrics) == near(truth(*columns(data())))


# --- errors


def validate(callback: Any, model: Any = None) -> None:
    run = trainer(PACKAGES[0], *(callback if isinstance(callback, list) else [callback]))
    run.validate(model or module_class(PACKAGES[0])(), loader(), verbose=False)


def test_a_key_that_is_nowhere() -> None:
    with pytest.raises(ValueError, match=r"AlignmentUniformity 'ssl': target 'embedding' is not there: what the step "):
        validate(AlignmentUniformity("ssl", "embedding"))
    with pytest.raises(ValueError, match=r"positive 'z3'.* returned has 'z', 'z2'; the batch has 'x', 'y', 'other'$"):
        validate(AlignmentUniformity("ssl", "z", "z3"))
    with pytest.raises(ValueError, match="the step returned is no dictionary but NoneType; the batch has 'x'"):
        validate(AlignmentUniformity("ssl", "z"), module_class(PACKAGES[0])(outputs=False))


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ({"z": torch.ones(3, 2, DIM)}, ValueError, r"'ssl': target 'z' must have shape \(N, D\), got \(3, 2, 6\)"),
        ({"z": [1.0]}, TypeError, "target 'z' must be a torch.Tensor"),
        ({"z": torch.ones(3, DIM), "z2": torch.ones(2, DIM)}, ValueError, r"positive 'z2' must have the shape of targ"),
        ({"z": torch.ones(3, DIM), "z2": torch.ones(3, DIM).int()}, TypeError, "positive 'z2' must be float64"),
    ],
)
def test_features_that_are_none(outputs: dict[str, Any], error: type[Exception], message: str) -> None:
    model = module_class(PACKAGES[0])()
    model.validation_step = lambda batch, batch_idx: outputs
    with pytest.raises(error, match=message):
        validate(AlignmentUniformity("ssl", "z", "z2"), model)


def test_a_name_for_each() -> None:
    with pytest.raises(ValueError, match="name must be another one for each AlignmentUniformity, got 'ssl' twice"):
        validate([AlignmentUniformity("ssl", "z"), AlignmentUniformity("ssl", "z2")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "fit"}, "stage must be one of 'train', 'validate', 'test', got 'fit'"),
        ({"t": 0}, "t must be a finite number > 0, got 0"),
        ({"positive": "z2", "alpha": -1}, "alpha must be a finite number > 0, got -1"),
        ({"reservoir": 3}, "reservoir must be at least 16, got 3"),
        ({"pairs": "batch", "reservoir": 20}, "reservoir is for pairs='all'.*got reservoir=20"),
        ({"pairs": "none"}, "pairs must be one of 'all', 'batch', got 'none'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentUniformity("ssl", "z", **options)


# --- which package it is of


@pytest.mark.parametrize(
    ("installed", "imported", "chosen"),
    [
        (PACKAGES, [], PACKAGES[:1]),
        (PACKAGES[1:], [], PACKAGES[1:]),
        (PACKAGES, PACKAGES[1:], PACKAGES[1:]),
        (PACKAGES, PACKAGES, PACKAGES),
    ],
)
def test_the_callback_is_of_what_is_imported(
    installed: list[str], imported: list[str], chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = {name: type("Callback", (), {}) for name in PACKAGES}
    monkeypatch.setattr(module, "find_spec", lambda top: any(name.split(".")[0] == top for name in installed) or None)
    monkeypatch.setattr(module, "import_module", lambda name: SimpleNamespace(Callback=classes[name]))
    monkeypatch.setattr(module, "sys", SimpleNamespace(modules=imported))
    found = module._callback_class()
    assert [name for name in PACKAGES if issubclass(found, classes[name])] == chosen


def test_without_any_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda top: None)
    with pytest.raises(ImportError, match="needs Lightning; install with: pip install lightning"):
        module._callback_class()


# --- across processes


def validated(rank: int, package: str, rows: tuple[int, ...], reservoir: int | None) -> dict[str, float]:
    """What a process logs that has so many of the rows."""
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.simplefilter("ignore", FutureWarning)  # Lightning's own, of PyTorch
    start = sum(rows[:rank])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(rank))  # processes are there already, and their group
        run = trainer(
            package,
            AlignmentUniformity("ssl", "z", "z2", reservoir=reservoir),
            strategy="ddp",
            devices=len(rows),
            use_distributed_sampler=False,
        )
        own = DataLoader(data(rows=sum(rows))[start : start + rows[rank]], batch_size=BATCH)
        run.validate(module_class(package)(), own, verbose=False)
    assert dist.is_initialized()
    return logged(run.callback_metrics)


@pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")
@pytest.mark.parametrize(("package", "reservoir"), [(PACKAGES[0], 100), (PACKAGES[0], None), (PACKAGES[1], 20)])
def test_two_processes(ranks: Ranks, package: str, reservoir: int | None) -> None:
    first, second = ranks(2).run(validated, package, (24, 17), reservoir)
    assert first == second
    expected = truth(*columns(data(rows=41)))
    if reservoir is None:
        del expected["uniformity_error"]
    elif reservoir < 41:
        assert 0 < abs(first["uniformity"] - expected["uniformity"]) < 3 * first["uniformity_error"] < 1.5
        for name in ("uniformity", "uniformity_error"):
            del first[name], expected[name]
    assert first == near(expected)
