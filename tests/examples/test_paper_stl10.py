"""The paper's recipe on STL-10, on generated images in the files of STL-10."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_torchrun import run
from torch import Tensor, nn
from torchvision.datasets import STL10

import hyperkern
from examples.digits.config import OptionError
from examples.paper.objective import Objective
from examples.paper.recipes.checkpoint import Checkpoint
from examples.paper.recipes.session import Session, unwrapped
from examples.paper.recipes.stl10 import choose, command, data, encoder, evaluate, linear, train

CPU = torch.device("cpu")
ALONE = Session(CPU, 0, 1, None)
TINY = {"CONVOLUTIONS": (4, 6, 8, 6, 4), "HIDDEN": 16}
IMAGES = {"train": 20, "test": 12, "unlabeled": 17}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STL-10 in small: noise, dark of the first class, bright of the last."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    binary = root / "stl10_binary"
    binary.mkdir()
    for split, rows in IMAGES.items():
        labels = random.permutation(np.arange(rows) % 2 * 9)
        pixels = random.integers(0, 60, (rows, *data.SHAPE)) + 20 * labels[:, None, None, None]
        pixels.astype(np.uint8).tofile(binary / f"{split}_X.bin")
        if split != "unlabeled":
            (labels + 1).astype(np.uint8).tofile(binary / f"{split}_y.bin")
    return root


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder of few channels."""
    for name, value in TINY.items():
        monkeypatch.setattr(encoder, name, value)


@pytest.fixture
def stl10(folder: Path, tiny: None, tmp_path: Path) -> Callable[..., int]:
    """The command, with options that make it quick."""

    def call(*options: str, out: Path = tmp_path) -> int:
        quick = ("--data", str(folder), "--out", str(out), "--batch", "8", "--workers", "0", "--device", "cpu")
        return command.main([*quick, *options])

    return call


def training(**options: object) -> train.Training:
    usual = {"objective": Objective(1, 1), "batch": 8, "epochs": 1, "lr": 0.01, "dim": 5, "seed": 0, "amp": False}
    return train.Training(**{**usual, "steps": 2, **options})


# The encoder


def test_layers_are_the_published_ones() -> None:
    with torch.device("meta"):
        full = encoder.Encoder(128)
    convolutions = 27 * 96 + 9 * (96 * 192 + 192 * 384 + 384 * 384 + 384 * 192)
    norms = 2 * (96 + 192 + 384 + 384 + 192 + 4096 + 4096)
    dense = 192 * 7 * 7 * 4096 + 4096 * 4096 + 4096 * 128 + 128
    assert sum(weight.numel() for weight in full.parameters()) == convolutions + norms + dense == 58_678_368
    shapes, images = [], torch.empty(2, 3, 64, 64, dtype=torch.uint8, device="meta")
    for layer in range(-8, 0):
        shapes.append(tuple(full(images, layer=layer).shape[1:]))
    assert shapes == [(96, 31, 31), (192, 15, 15), (384, 15, 15), (384, 15, 15), (192, 7, 7), (4096,), (4096,), (128,)]


def test_first_weights(tiny: None) -> None:
    one = encoder.new_encoder(64, seed=3)
    drawn = torch.cat(
        [part.weight.detach().flatten() for part in one.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    )
    assert abs(drawn.mean()) < 1e-3
    assert drawn.std() == pytest.approx(0.02, rel=0.03)
    assert not one.blocks[-1][0].bias.any()
    for norm in (module for module in one.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))):
        assert (norm.weight == 1).all()
        assert not norm.bias.any()
    same, other = (encoder.new_encoder(64, seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(value, one.state_dict()[name]) for name, value in same.items())
    assert not torch.equal(other["blocks.0.0.weight"], same["blocks.0.0.weight"])


def test_bytes_are_normalised_by_channel(tiny: None) -> None:
    one = encoder.new_encoder(8, 0).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    scaled = (images / 255 - torch.tensor(encoder.MEAN)[:, None, None]) / torch.tensor(encoder.STD)[:, None, None]
    torch.testing.assert_close(one(images, layer=0), one.blocks[0](scaled))


# The data


def test_images_are_those_of_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)  # of generated files
    ours = data.load(folder)
    for split, theirs in (("train", ours.train), ("test", ours.test)):
        original = STL10(folder, split)
        np.testing.assert_array_equal(theirs.labels, original.labels)
        assert len(theirs.pixels) == len(original) == IMAGES[split]
        for index in (0, 7, len(original) - 1):
            np.testing.assert_array_equal(theirs.pixels[index].swapaxes(1, 2), original.data[index])
    original = STL10(folder, "train+unlabeled")
    assert len(ours.unlabelled) == len(original) == 37
    for index in (0, 19, 20, 36):
        np.testing.assert_array_equal(ours.unlabelled[index].swapaxes(1, 2), original.data[index])
    whole = data.Views(ours.unlabelled, lambda image: torch.tensor(np.asarray(image)), seed=0)[0, 20][0]
    np.testing.assert_array_equal(whole, np.asarray(original[20][0]))


def test_folder_itself_can_be_given(folder: Path) -> None:
    assert len(data.load(folder / "stl10_binary").test.labels) == 12


def views_of(folder: Path, workers: int, epoch: int, seed: int = 0, batch: int = 4) -> Tensor:
    views = data.Views(data.load(folder).test.pixels, data.PAIRS, seed, copies=2)
    return torch.cat(list(views.batches(data.in_order(12, batch, epoch), workers, CPU)), dim=1)


def test_views_depend_on_seed_epoch_and_image_alone(folder: Path) -> None:
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), views_of(folder, 0, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == (2, 12, 3, 64, 64)
    assert first.dtype == torch.uint8
    torch.manual_seed(2)
    assert torch.equal(first, views_of(folder, 2, 0, batch=5))
    for other in (views_of(folder, 0, 1), views_of(folder, 0, 0, seed=1), first.flip(0), first.roll(1, dims=1)):
        assert not (first.flatten(2) == other.flatten(2)).all(dim=2).any()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(
            lambda binary: (binary / "unlabeled_X.bin").unlink(), r"--download.*no unlabeled_X.bin", id="missing"
        ),
        pytest.param(
            lambda binary: (binary / "test_X.bin").write_bytes(b"x" * 50_000), "50000 bytes, no whole", id="cut"
        ),
        pytest.param(lambda binary: (binary / "test_X.bin").write_bytes(b""), "0 bytes, no whole", id="empty"),
        pytest.param(lambda binary: (binary / "train_y.bin").write_bytes(b"\1" * 19), "each of 20 images", id="labels"),
        pytest.param(lambda binary: (binary / "train_y.bin").write_bytes(b"\0" * 20), "a class, 1 to 10", id="classes"),
    ],
)
def test_wrong_files_are_named(folder: Path, tmp_path: Path, spoil: Callable, said: str) -> None:
    binary = tmp_path / "stl10_binary"
    binary.mkdir()
    for path in (folder / "stl10_binary").iterdir():
        (binary / path.name).write_bytes(path.read_bytes())
    spoil(binary)
    with pytest.raises(OptionError, match=said) as raised:
        data.load(tmp_path)
    assert str(raised.value).startswith("argument --data: ")


# Training


def test_an_epoch_has_each_image_once() -> None:
    (epoch,) = training(steps=None).batches(101, ALONE, 0)
    batches = list(epoch)
    assert [len(batch) for batch in batches] == [8] * 12 + [5]
    assert sorted(index for batch in batches for _, index in batch) == list(range(101))
    (other,) = training(steps=None, epochs=2).batches(101, ALONE, 1)
    assert [index for _, index in next(other)] != [index for _, index in batches[0]]


@pytest.mark.parametrize(("rows", "steps"), [(96, 12), (98, 12), (99, 12), (100, 13)])
def test_processes_share_each_batch(rows: int, steps: int) -> None:
    (whole,) = training(steps=None).batches(rows, ALONE, 0)
    shares = [next(training(steps=None).batches(rows, ALONE._replace(rank=rank, ranks=2), 0)) for rank in (0, 1)]
    together = [first + second for first, second in zip(*map(list, shares), strict=True)]
    assert together == list(itertools.islice(whole, steps))
    assert len(together) == steps == train.steps_of_epoch(training(steps=None), rows, 2)


def test_schedule_is_the_published_one(folder: Path, tiny: None, tmp_path: Path) -> None:
    options = command.training_of(command.parser().parse_args(["--data", "."]))
    assert options == train.Training(
        Objective(0.98, 0.96, 0, 2, 2, 0.19), 768, 200, pytest.approx(0.36), 128, 0, False, None
    )
    assert [round(share * 200) for share in train.DROPS] == [155, 170, 185]
    assert [round(share * 100) for share in linear.DROPS] == [60, 80]
    train.train(training(epochs=10, steps=1), data.load(folder).test.pixels, tmp_path, 0, ALONE)
    state = torch.load(tmp_path / "train.pt", weights_only=True)["parts"]["optimizer"]["param_groups"][0]
    assert state["lr"] == pytest.approx(0.01 * 0.1**3)
    assert (state["momentum"], state["weight_decay"], state["nesterov"]) == (0.9, 1e-4, False)


def test_two_steps_of_everything(stl10: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert stl10("--steps", "2") == 0
    said = capsys.readouterr().out
    assert "epoch 1/1: loss" in said
    assert "81.15" in said
    assert "mean nothing" in said
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["tried"]
    assert list(found["results"]) == [*evaluate.MEASURES, "alignment", "uniformity"]
    for measure in evaluate.MEASURES:
        assert 0 <= found["results"][measure]["here"] <= 100
        assert found["results"][measure]["published"]
    assert found["options"]["align-weight"] == 0.98
    assert found["published with"]["epochs"] == 200
    assert "epochs 200 (here 1)" in said


@pytest.mark.parametrize(
    ("stage", "epochs", "options"),
    [
        ("train", 3, ["--steps", "1", "--epochs", "3", "--train-only"]),
        ("linear", 2, ["--steps", "1", "--probe-epochs", "2"]),
        ("folds", 2, ["--probe-epochs", "2", "--choose"]),
    ],
    ids=["train", "linear", "folds"],
)
def test_resumed_is_uninterrupted(
    stage: str,
    epochs: int,
    options: list[str],
    stl10: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def go_on(folder: Path) -> int:
        return stl10(*options, *([str(folder)] if stage == "folds" else []), out=folder)

    if stage == "folds":
        made_up(whole, 8)
        made_up(parts, 8)
    assert go_on(whole) == 0
    save = Checkpoint.save

    def interrupted(self: Checkpoint, done: int, here: Session) -> None:
        save(self, done, here)
        if self.path == parts / f"{stage}.pt" and done == epochs - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", interrupted)
        assert go_on(parts) == 130
    assert torch.load(parts / f"{stage}.pt", weights_only=True)["epochs"] == epochs - 1
    assert "the same command goes on" in capsys.readouterr().err
    assert go_on(parts) == 0
    ours, theirs = (flat(torch.load(of / f"{stage}.pt", weights_only=True)) for of in (whole, parts))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert ours["/epochs"] == epochs
    if stage == "linear":
        assert (whole / "result.json").read_text() == (parts / "result.json").read_text()


def flat(state: object, name: str = "") -> dict[str, Tensor]:
    """Numbers and tensors of a checkpoint by their places."""
    if isinstance(state, dict):
        return {key: value for part, inner in state.items() for key, value in flat(inner, f"{name}/{part}").items()}
    if isinstance(state, list):
        return flat(dict(enumerate(state)), name)
    return {name: torch.as_tensor(state)} if isinstance(state, (Tensor, float, int)) else {}


def test_another_training_does_not_go_on(stl10: Callable, capsys: pytest.CaptureFixture) -> None:
    options = ["--train-only", "--steps", "1"]
    assert stl10(*options) == 0
    with pytest.raises(SystemExit):
        stl10(*options, "--align-weight", "2")
    assert "argument --align-weight: " in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_it(stl10: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert stl10("--train-only", "--steps", "2", "--lr", "1e30") == 1
    assert "the loss is" in capsys.readouterr().err
    assert not (tmp_path / "train.pt").exists()


def test_bfloat16_changes_little(folder: Path, tiny: None, tmp_path: Path) -> None:
    pixels = data.load(folder).test.pixels
    start = encoder.new_encoder(5, 0).blocks[-1][0].weight
    full, half = (
        train.train(training(amp=amp, steps=1), pixels, tmp_path / str(amp), 0, ALONE).blocks[-1][0].weight - start
        for amp in (False, True)
    )
    assert not torch.equal(full, half)
    assert F.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.95


# Several processes


def gradients(rank: int, objective: Objective, rows: int, pixels: data.Images, ranks: int) -> dict[str, Tensor]:
    """Of one batch. Batch norm has its first running statistics: those of a batch are a process's own on a CPU."""
    for name, value in TINY.items():
        setattr(encoder, name, value)
    here = Session(CPU, rank, ranks, hyperkern.Group() if ranks > 1 else None)
    model = here.parallel(encoder.new_encoder(6, seed=0).double()).eval()
    (epoch,) = training(objective=objective, batch=rows).batches(rows, here, 0)
    (views,) = data.Views(pixels, data.PAIRS, 0, copies=2).batches(epoch, 0, CPU)
    objective(*model(views.flatten(0, 1)).chunk(2), here.group).loss.backward()
    return {name: value.grad for name, value in unwrapped(model).named_parameters()}


@pytest.mark.parametrize("rows", [8, 7])
@pytest.mark.parametrize(
    "objective", [Objective(1, 1), Objective(0.5, 0.2, 0.7, 1, 3, 0.2)], ids=["align-uniform", "with-contrastive"]
)
def test_gradients_of_two_processes_are_those_of_one(
    objective: Objective, rows: int, folder: Path, tiny: None, ranks: Callable
) -> None:
    pixels = data.load(folder).test.pixels
    alone = gradients(0, objective, rows, pixels, 1)
    for shared in ranks(2).run(gradients, objective, rows, pixels, 2):
        assert shared.keys() == alone.keys()
        for name, value in shared.items():
            torch.testing.assert_close(value, alone[name])


def trained(rank: int, pixels: data.Images, out: Path) -> tuple[dict[str, Tensor], bool]:
    for name, value in TINY.items():
        setattr(encoder, name, value)
    here = Session(CPU, rank, 2, hyperkern.Group())
    return train.train(training(epochs=2), pixels, out, 0, here).state_dict(), (out / "train.pt").exists()


def test_two_processes_stay_equal(folder: Path, tiny: None, tmp_path: Path, ranks: Callable) -> None:
    pixels = data.load(folder).test.pixels
    (first, saved), (second, seen) = ranks(2).run(trained, pixels, tmp_path)
    assert saved
    assert seen
    assert any("running_mean" in name for name in first)
    assert all(torch.equal(first[name], value) for name, value in second.items())
    start = dict(encoder.new_encoder(5, 0).named_parameters())
    assert not torch.equal(start["blocks.0.0.weight"], first["blocks.0.0.weight"])
    again = train.train(training(epochs=2), pixels, tmp_path, 0, ALONE)  # what two processes left, one goes on from
    assert torch.equal(dict(again.named_parameters())["blocks.0.0.weight"], first["blocks.0.0.weight"])


def test_a_process_needs_two_images(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="argument --batch: must be at least 10, two for each process, got '8'"):
        train.train(training(), data.load(folder).test.pixels, tmp_path, 0, ALONE._replace(ranks=5))


@pytest.mark.slow
def test_torchrun_with_the_whole_encoder(folder: Path, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--data", str(folder), "--out", str(tmp_path), "--steps", "1", "--batch", "8", "--workers", "1"]
    result = run([*torchrun, "-m", "examples.paper"], "stl10", *options, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 1/1: loss") == 1
    assert json.loads((tmp_path / "result.json").read_text())["options"]["ranks"] == 2


# The choice


def made_up(run_folder: Path, scale: float) -> None:
    """A finished run whose encoder's weights are scaled: by 0 all images have the same features."""
    one = encoder.new_encoder(5, 0)
    for weight in one.parameters():
        weight.data *= scale if weight.ndim > 1 else 1
    Checkpoint(run_folder / "train.pt", training(steps=None).recipe(), {"encoder": one}).save(1, ALONE)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["bad-first", "good-first"])
def test_the_better_run_is_chosen(
    order: tuple[int, int], stl10: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "RATE", 0.05)  # a step is an epoch
    runs = [tmp_path / "bad", tmp_path / "good"]
    for one, scale in zip(runs, (0, 8), strict=True):
        made_up(one, scale)
    assert stl10("--probe-epochs", "8", "--choose", *(str(runs[index]) for index in order)) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    about = found["options"]
    assert about["run"] == str(runs[1])
    assert about["align-weight"] == 1  # of the best run, not of this command
    for measure in evaluate.MEASURES:
        good, bad = (about["folds"][str(runs[index])][measure] for index in (1, 0))
        assert good > 80
        assert bad <= 60
        assert found["results"][measure]["here"] > 80
    assert (runs[1] / "linear.pt").exists()
    assert not (runs[0] / "linear.pt").exists()  # the test images have not been looked at


def test_the_linear_classifier_of_the_output_decides(
    folder: Path, tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for one in runs:
        made_up(one, 1)
    scores = [(60, 90, 90, 90), (70, 10, 10, 10), (70, 50, 50, 50)]  # as of Table 1; of equals the first
    folds = [dict(zip(evaluate.MEASURES, each, strict=True)) for each in scores]
    monkeypatch.setattr(choose, "accuracies_of_folds", lambda frozen, images, at, how: folds[runs.index(at)])
    monkeypatch.setattr(choose, "accuracies", lambda frozen, images, at, how: dict.fromkeys(evaluate.MEASURES, at.name))
    found = choose.choose(runs, data.load(folder), linear.Settings(1, 0, ALONE, {}))
    assert found.run == str(runs[1])
    assert set(found.test.values()) == {"b"}
    assert list(found.folds.values()) == folds


@pytest.mark.parametrize("state", ["missing", "unfinished", "trial", "foreign", "broken"])
def test_runs_to_choose_from_must_be_finished(
    state: str, stl10: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made_up(tmp_path / "good", 1)
    if state == "unfinished":
        one = encoder.new_encoder(5, 0)
        Checkpoint(tmp_path / "other/train.pt", training(epochs=3).recipe(), {"encoder": one}).save(2, ALONE)
    elif state == "trial":
        one = encoder.new_encoder(5, 0)
        Checkpoint(tmp_path / "other/train.pt", training(steps=2).recipe(), {"encoder": one}).save(1, ALONE)
    elif state == "foreign":
        Checkpoint(tmp_path / "other/train.pt", {"epochs": 1}, {}).save(1, ALONE)
    elif state == "broken":
        (tmp_path / "other").mkdir()
        (tmp_path / "other/train.pt").write_bytes(b"no checkpoint")
    with pytest.raises(SystemExit):
        stl10("--choose", str(tmp_path / "good"), str(tmp_path / "other"))
    said = capsys.readouterr().err
    assert "argument --choose: " in said
    assert str(tmp_path / "other") in said
    reasons = {"missing": "there is no train.pt", "unfinished": "2 of its 3 epochs", "trial": "--steps 2"}
    assert reasons.get(state, "no checkpoint of this recipe") in said
    assert not (tmp_path / "good/folds.pt").exists()


def test_classifiers_learn_on_their_part_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "RATE", 0.05)  # a step is an epoch
    images = data.load(folder).train
    part = np.flatnonzero(images.labels == 0)  # the other class is never seen
    known = torch.eye(10)[images.labels] * 10
    rows = iter([known] * 8)
    settings = linear.Settings(8, 0, ALONE, {})

    def encode(views: Tensor) -> dict[str, Tensor]:
        return {"layer": next(rows)}

    (found,) = linear.fit(encode, {"layer": 10}, images, [part], tmp_path / "linear.pt", settings)
    assert found["layer"].accuracy(known[part], images.labels[part]) == 100
    rest = np.flatnonzero(images.labels)
    assert found["layer"].accuracy(known[rest], images.labels[rest]) == 0


def test_frozen_features(folder: Path, tiny: None) -> None:
    one = encoder.new_encoder(5, 0).eval()
    pixels, settings = data.load(folder).test.pixels, linear.Settings(1, 0, ALONE, {})
    frozen = evaluate.Frozen(one)
    found = frozen.of(pixels, settings)
    views = torch.stack([data.Views(pixels, data.HELD_OUT, 0)[0, index][0] for index in range(len(pixels))])
    torch.testing.assert_close(found["output"], F.normalize(one(views).detach(), dim=1))
    torch.testing.assert_close(found["fc7"], one(views, layer=-2).detach())
    assert frozen.widths == {"output": 5, "fc7": 16}
    x, y = next(data.Views(pixels, data.PAIRS, linear.SEED, 2).batches(data.in_order(12, 12), 0, CPU))
    expected = Objective(1, 1)(one(x).detach(), one(y).detach(), None)
    metrics = frozen.metrics(pixels, settings)
    assert metrics["alignment"] == pytest.approx(expected.alignment.item(), rel=1e-4)
    assert metrics["uniformity"] == pytest.approx(expected.uniformity.item(), rel=1e-4)


# Options


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--align-weight", "-1", "at least 0"),
        ("--temperature", "0", "above 0"),
        ("--t", "nan", "above 0"),
        ("--batch", "38", "at most 37"),
        ("--batch", "1", "at least 2"),
        ("--epochs", "0", "at least 1"),
        ("--probe-epochs", "0", "at least 1"),
        ("--steps", "0", "at least 1"),
        ("--workers", "-1", "at least 0"),
        ("--device", "tpu", "must be cpu"),
        ("--data", "/nowhere", "no such folder"),
    ],
)
def test_wrong_options_are_named(
    option: str, value: str, said: str, stl10: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        stl10(option, value)
    assert ended.value.code == 2
    heard = capsys.readouterr().err
    assert f"argument {option}: " in heard
    assert said in heard
    assert repr(value) in heard or repr(str(float(value))) in heard
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(
    stl10: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(SystemExit):
        stl10()
    assert "argument --out: result.json is a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_all_images_or_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    images = data.load(folder)
    command.compare_counts(images, ALONE)
    assert "not all of STL-10's images: {'train': 20, 'test': 12, 'unlabeled': 17}" in capsys.readouterr().out
    monkeypatch.setattr(command, "COUNTS", IMAGES)
    command.compare_counts(images, ALONE)
    assert not capsys.readouterr().out


def test_something_must_be_minimised(stl10: Callable, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        stl10("--align-weight", "0", "--uniform-weight", "0")
    assert "one must be above 0" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--choose", "a"], ["--download"]], ids=["choose", "download"])
def test_what_one_process_does(
    words: list[str], stl10: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        stl10(*words)
    assert f"argument {words[0]}: is for one process" in capsys.readouterr().err


def test_nothing_is_downloaded_unasked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(STL10, "download", lambda self: asked.append(Path(self.root)))
    monkeypatch.setattr(STL10, "_STL10__loadfile", lambda self, *names: (np.zeros(1), np.zeros(1)))
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path)])
    assert not asked
    with pytest.raises(SystemExit):  # nothing came
        command.main(["--data", str(tmp_path), "--download"])
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path / "stl10_binary"), "--download"])
    assert asked == [tmp_path, tmp_path]


def test_no_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def refuse(self: STL10) -> None:
        raise OSError("no route")

    monkeypatch.setattr(STL10, "download", refuse)
    with pytest.raises(SystemExit):
        command.main(["--data", str(tmp_path), "--download"])
    assert "no route" in capsys.readouterr().err
