"""The recipe of ImageNet-100: steps of it on small images, going on, several processes, what is refused."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import Ranks
from torch import Tensor, nn
from torchvision import models, transforms

import hyperkern
from examples.paper.__main__ import main
from examples.paper.recipes import imagenet100
from examples.paper.recipes.checkpoint import seeded
from examples.paper.recipes.imagenet100 import pretraining, recipes
from examples.paper.recipes.imagenet100.data import CLASSES, SomeClasses, classes_of, training_batches
from examples.paper.recipes.imagenet100.encoder import Encoder
from examples.paper.recipes.imagenet100.linear import accuracy, linear_evaluation
from examples.paper.recipes.imagenet100.pretraining import Training, loss_of, new_moco
from examples.paper.recipes.imagenet100.views import TwoViews, augmentation
from examples.paper.recipes.published import PUBLISHED
from examples.paper.recipes.session import Session

SMALL = ["--arch", "resnet18", "--crop", "32", "--batch", "8", "--norm-rows", "4", "--queue", "24", "--dim", "8"]
SMALL += ["--recipe", "plain", "--linear-batch", "6", "--linear-lr", "1", "--workers", "0", "--device", "cpu"]
ALONE = Session(torch.device("cpu"), 0, 1, None)


class Tiny(nn.Sequential):
    """A network with batch norms and a last layer of ResNet's name, made like one, that takes no time."""

    def __init__(self, architecture: str, num_classes: int) -> None:
        assert architecture == "resnet18"
        layers = [nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16)]
        super().__init__(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.add_module("fc", nn.Linear(16, num_classes))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "get_model", Tiny)


def make_images(data: Path, classes: list[str], count: int, size: int = 40) -> None:
    """A folder like ImageNet's: JPEG files of noise around a colour of each class."""
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 196, (len(classes), 3))
    for split in ("train", "val"):
        for name, colour in zip(classes, colours, strict=True):
            folder = data / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = colour + generator.integers(-60, 60, (size, size + 8, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}_{number}.JPEG")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of nine images, in training and in validation."""
    folder = tmp_path_factory.mktemp("imagenet")
    make_images(folder, CLASSES[:3], 9)
    return folder


def options(*words: str, data: Path = Path("nowhere")) -> argparse.Namespace:
    """Small options, those of the training step all set."""
    given = imagenet100.parser().parse_args(["--data", str(data), "--all-classes", *SMALL, *words])
    recipes.complete(given)
    return given


def command(data: Path, out: Path, *words: str) -> list[str]:
    return ["imagenet100", "--data", str(data), "--out", str(out), "--all-classes", *SMALL, *words]


def run(data: Path, out: Path, *words: str) -> dict[str, dict[str, float]]:
    """Run the command; its results."""
    assert main(command(data, out, *words)) == 0
    return json.loads((out / "result.json").read_text())


def assert_equal(found: object, expected: object, path: str = "") -> None:
    """The same, bit for bit."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name in expected:
            assert_equal(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}[{number}]")
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


@pytest.mark.parametrize(
    "more", [("--recipe", "strong"), ("--no-intra", "--contrastive-weight", "0.5")], ids=["strong", "mix"]
)
@pytest.mark.usefixtures("tiny")
def test_two_steps(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    run(data, tmp_path, "--steps", "2", *more)
    state = torch.load(tmp_path / "pretraining.pt", weights_only=True)
    assert state["epochs"] == 1
    # Two steps of 8 keys each came into the queue of 24, which was full: what is next is its row 16.
    assert state["parts"]["moco"]["queue._extra_state"].tolist() == [24, 8, 16, 24]
    assert ("head.2.weight" in str(state["parts"]["moco"].keys())) == ("strong" in more)


def test_two_steps_of_a_resnet(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = run(data, tmp_path, "--steps", "2")
    shown = capsys.readouterr().out
    assert result["tried"]
    assert result["results"].keys() == {"top-1 (%)", "top-5 (%)"}
    assert "a trial of a few steps" in shown
    assert result["published with"]["crop"] == 224
    assert "top-1 (%)" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["linear.pt", "pretraining.pt", "result.json"]


@pytest.mark.usefixtures("tiny")
def test_going_on_is_bit_equal(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is interrupted in the second epoch, of both trainings, ends as one that is not."""
    words = ["--epochs", "3", "--schedule", "2", "--linear-epochs", "3", "--linear-schedule", "1"]
    whole = run(data, tmp_path / "whole", *words)

    def interrupt(where: object, name: str, after: int) -> None:
        original, calls = getattr(where, name), iter(range(after))

        def until(*args: object, **given: object) -> object:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return original(*args, **given)

        with monkeypatch.context() as patched:
            patched.setattr(where, name, until)
            assert main(command(data, tmp_path / "parts", *words)) == 130

    interrupt(pretraining, "loss_of", after=4)  # of three steps an epoch
    torch.randn(3)  # the state of the global generator does not matter
    interrupt(nn.functional, "cross_entropy", after=6)  # of five
    torch.randn(5)
    assert run(data, tmp_path / "parts", *words)["results"] == whole["results"]
    for name in ("pretraining.pt", "linear.pt"):
        assert_equal(*(torch.load(tmp_path / out / name, weights_only=True) for out in ("parts", "whole")))
    rates = [
        torch.load(tmp_path / "whole" / name, weights_only=True)["parts"]["optimizer"]
        for name in ("pretraining.pt", "linear.pt")
    ]
    assert [state["param_groups"][0]["lr"] for state in rates] == pytest.approx([0.003, 0.1])


def steps_of(session: Session, images: Tensor, *words: str) -> dict[str, Tensor]:
    """Three steps with the images, ``(2, 8, 3, 32, 32)`` views; gradient, queue and losses."""
    given = options(*words)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "get_model", Tiny)
        moco = new_moco(given, session)
    optimizer = torch.optim.SGD(moco.encoder.parameters(), lr=0.03, momentum=0.9)
    training = Training(given, session, moco.train(), optimizer)
    own, shuffle = images.chunk(session.ranks, dim=1)[session.rank], torch.Generator().manual_seed(1)
    losses, gradients = [], []
    for _ in range(3):
        losses.append(training.advance(own[0], own[1], shuffle))
        gradients.append(torch.cat([one.grad.flatten() for one in moco.encoder.parameters()]))
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "queue": moco.queue.buffer}


def steps_of_rank(rank: int, ranks: int, images: Tensor, words: tuple[str, ...]) -> dict[str, Tensor]:
    return steps_of(Session(torch.device("cpu"), rank, ranks, hyperkern.Group()), images, *words)


@pytest.mark.parametrize("words", [(), ("--no-intra", "--contrastive-weight", "1")], ids=["eq18", "eq17+moco"])
def test_two_processes_are_one(ranks: Ranks, words: tuple[str, ...]) -> None:
    """The same losses, gradients and queue, since batch norm sees the same parts: those of a process are four rows."""
    images = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    alone = steps_of(ALONE, images, *words)
    first, second = ranks(2).run(steps_of_rank, 2, images, words)
    assert_equal(second, first)
    for name, expected in alone.items():
        torch.testing.assert_close(first[name], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def run_of_rank(rank: int, ranks: int, data: Path, out: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What the command does in a process; its encoder and its accuracy."""
    given = options("--out", str(out), "--epochs", "2", "--linear-epochs", "1", data=data)
    own, classes = Session(torch.device("cpu"), rank, ranks, hyperkern.Group()), classes_of(data, everything=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(models, "get_model", Tiny)
        encoder = pretraining.pretrain(given, own, classes, {"seed": 0})
        found = linear_evaluation(encoder, given, own, classes, {"seed": 0})
    return encoder.state_dict(), found


def test_processes_have_one_encoder_and_one_result(ranks: Ranks, data: Path, tmp_path: Path) -> None:
    first, second = ranks(2).run(run_of_rank, 2, data, tmp_path)
    assert_equal(second[0], first[0])
    assert first[1] == second[1]
    again, _ = ranks(2).run(run_of_rank, 2, data, tmp_path)  # from the checkpoints, nothing is left to do
    assert_equal(again[0], first[0])
    assert again[1] == first[1]


def test_the_loss_is_the_papers() -> None:
    """Against the formulas, in float64."""
    q, k, queue = (
        torch.randn(n, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (6, 6, 24)
    )
    k = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit = nn.functional.normalize
    x, y, z = unit(q), unit(k), unit(queue)
    align = (x - y).square().sum(1).mean()
    across, within = torch.cdist(x, z).square().flatten(), torch.pdist(x).square()
    eq17, eq18 = ((-3 * pairs).exp().mean().log() for pairs in (across, torch.cat([across, within])))
    logits = torch.cat([(x * y).sum(1, keepdim=True), x @ z.T], 1) / 0.07
    nce = nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    for words, expected in (
        ((), 3 * align + eq18),
        (("--no-intra",), 3 * align + eq17),
        (("--align-weight", "0", "--uniform-weight", "0", "--contrastive-weight", "1"), nce),
        (
            ("--align-weight", "2", "--contrastive-weight", "0.5", "--uniform-weight", "0.25"),
            2 * align + 0.25 * eq18 + 0.5 * nce,
        ),
    ):
        torch.testing.assert_close(loss_of(q, k, queue, options(*words), None), expected)


@pytest.mark.usefixtures("tiny")
def test_keys_are_encoded_in_shuffled_parts() -> None:
    """Each key is that of its view, from a part that is not the query's."""
    moco = new_moco(options(), ALONE).train()
    training = Training(options(), ALONE, moco, torch.optim.SGD(moco.encoder.parameters()))
    views = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    keys = training.keys(views, torch.Generator().manual_seed(1))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert order.tolist() != list(range(8))
    for part in order.split(4):
        expected = nn.functional.normalize(moco.momentum_encoder(views[part]))
        torch.testing.assert_close(keys[part], expected)
    moco.eval()  # without batch statistics the order does not matter
    expected = nn.functional.normalize(moco.momentum_encoder(views))
    torch.testing.assert_close(training.keys(views, torch.Generator().manual_seed(2)), expected)


def chosen(*words: str) -> argparse.Namespace:
    """The options of a run that is given nothing but these."""
    given = imagenet100.parser().parse_args(["--data", "nowhere", *words])
    recipes.complete(given)
    return given


PAPER = {"epochs": 240, "schedule": [120, 160, 200], "queue": 16384}
PAPER |= {"linear_epochs": 60, "linear_lr": 10, "linear_schedule": [30, 40, 50], "linear_decay": 0.2}
REPOSITORY = {"epochs": 200, "schedule": [120, 160], "queue": 65536}
REPOSITORY |= {"linear_epochs": 100, "linear_lr": 30, "linear_schedule": [60, 80], "linear_decay": 0.1}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"recipe": "paper", "batch": 128, **PAPER}),
        (("--recipe", "plain"), {"recipe": "plain", "batch": 128, **REPOSITORY}),
        (("--recipe", "strong"), {"recipe": "strong", "batch": 128, **REPOSITORY}),
        (("--all-classes",), {"recipe": "strong", "batch": 256, **REPOSITORY}),
        (("--epochs", "7", "--linear-schedule"), {**PAPER, "epochs": 7, "linear_schedule": []}),
    ],
    ids=["paper", "plain", "strong", "imagenet", "changed"],
)
def test_the_recipes_are_the_published_ones(words: tuple[str, ...], expected: dict[str, object]) -> None:
    given = chosen(*words)
    expected = expected | {"lr": 0.03, "momentum": 0.999, "dim": 128, "arch": "resnet50", "crop": 224, "norm_rows": 32}
    expected |= {"align_weight": 3, "alpha": 2, "uniform_weight": 1, "t": 3, "contrastive_weight": 0}
    expected |= {"temperature": 0.07, "no_intra": False, "linear_batch": 256}
    assert {name: getattr(given, name) for name in expected} == expected


def test_the_heads_and_the_parts() -> None:
    plain, strong = (Encoder("resnet50", 128, mlp=mlp, norm_rows=2, seed=0) for mlp in (False, True))
    assert repr(plain.head) == "Linear(in_features=2048, out_features=128, bias=True)"
    assert [type(layer).__name__ for layer in strong.head] == ["Linear", "ReLU", "Linear"]
    assert [tuple(weight.shape) for weight in strong.head.parameters()] == [(2048, 2048), (2048,), (128, 2048), (128,)]
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, parts = plain(images), torch.cat([plain(part) for part in images.split(2)])
    torch.testing.assert_close(whole, parts)


def test_the_views() -> None:
    def names(view: transforms.Compose) -> list[str]:
        return [type(one).__name__ for one in view.transforms]

    plain, strong = augmentation(32, strong=False), augmentation(32, strong=True)
    last = ["RandomHorizontalFlip", "ToTensor", "Normalize"]
    assert names(plain) == ["RandomResizedCrop", "RandomGrayscale", "ColorJitter", *last]
    assert names(strong) == ["RandomResizedCrop", "RandomApply", "RandomGrayscale", "RandomApply", *last]
    assert plain.transforms[0].scale == strong.transforms[0].scale == (0.2, 1.0)
    assert plain.transforms[2].hue == (-0.4, 0.4)
    jitter, blur = strong.transforms[1], strong.transforms[3]
    assert (jitter.p, jitter.transforms[0].hue, blur.p) == (0.8, (-0.1, 0.1), 0.5)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    roughness = np.abs(np.diff(np.asarray(image, dtype=float), axis=0)).mean()
    torch.manual_seed(0)
    blurred = [np.abs(np.diff(np.asarray(blur.transforms[0](image), dtype=float), axis=0)).mean() for _ in range(20)]
    assert max(blurred) <= roughness  # a narrow one does nothing
    assert min(blurred) < roughness / 5
    torch.manual_seed(0)
    once = strong(image)
    torch.manual_seed(0)
    assert torch.equal(once, strong(image))  # all of it draws from PyTorch's generator


def test_the_list_and_the_folders_of_its_classes(tmp_path: Path) -> None:
    assert len(set(CLASSES)) == 100
    assert all(name.startswith("n") and len(name) == 9 and name[1:].isdigit() for name in CLASSES)
    assert {"n02869837", "n01749939", "n13037406"} <= set(CLASSES)
    make_images(tmp_path, [*CLASSES, "n00000001"], 1, size=8)  # of which the last is none
    assert classes_of(tmp_path, everything=False) == CLASSES
    assert classes_of(tmp_path, everything=True) == sorted([*CLASSES, "n00000001"])
    images = SomeClasses(tmp_path, "train", CLASSES, lambda image: image)
    assert len(images) == 100
    assert [Path(path).parent.name for path, _ in images.samples] == CLASSES
    assert images.targets == list(range(100))


def test_batches_of_an_epoch() -> None:
    """Every image once, shared by the processes; another order in another epoch and with another seed."""

    def order(rank: int, epoch: int, seed: int, ranks: int = 2) -> list[list[int]]:
        given = options("--seed", str(seed))
        own = Session(torch.device("cpu"), rank, ranks, None)
        batches = training_batches(torch.arange(24), given, "batch", own, epoch, drop_last=True)
        return [batch.tolist() for batch in batches]

    first, second = order(0, 0, 0), order(1, 0, 0)
    assert [len(batch) for batch in first] == [4, 4, 4]
    assert sorted(torch.tensor(first + second).flatten().tolist()) == list(range(24))
    orders = {str(order(0, epoch, seed)) for epoch, seed in ((0, 0), (1, 0), (0, 1), (1, 1))}
    assert len(orders) == 4
    assert order(0, 0, 0) == first
    # Each process draws views of its own; what shuffles the keys is the same for all.
    assert len({seeded(0, 0, rank).initial_seed() for rank in range(3)}) == 3


@pytest.mark.usefixtures("tiny")
def test_every_epoch_has_other_views_and_shuffles(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, seen = options(data=data), []

    def advance(self: Training, first: Tensor, second: Tensor, shuffle: torch.Generator) -> Tensor:
        assert not torch.equal(first, second)
        seen.append((first.sum().item(), second.sum().item(), shuffle.initial_seed()))
        return torch.zeros(())

    monkeypatch.setattr(Training, "advance", advance)
    images = SomeClasses(data, "train", CLASSES[:3], TwoViews(augmentation(32, strong=False)))
    moco = new_moco(given, ALONE)
    training = Training(given, ALONE, moco, torch.optim.SGD(moco.encoder.parameters()))
    for epoch in (0, 1, 0):
        pretraining.an_epoch(training, images, epoch)
    first, other, again = seen[:3], seen[3:6], seen[6:]
    assert first == again
    assert all(not set(one) & set(two) for one, two in zip(first, other, strict=True))


class Votes(nn.Module):
    """Scores in which the class of an image is the second, its number being the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        scores = -torch.arange(7.0).expand(len(images), 7).clone()
        scores[torch.arange(len(images)), images[:, 0].long()] = -0.5
        return scores


def count(rank: int, ranks: int) -> dict[str, float]:
    classes = torch.arange(7).repeat(3)
    images = torch.utils.data.TensorDataset(classes.float()[:, None], classes)
    group = hyperkern.Group() if ranks > 1 else None
    return accuracy(Votes(), images, options(), Session(torch.device("cpu"), rank, ranks, group))


def test_accuracy(ranks: Ranks) -> None:
    """Of seven classes: 0 comes first, all others second; over two processes, which have 11 and 10 images."""
    alone = count(0, 1)
    assert alone == {"top-1 (%)": pytest.approx(100 / 7), "top-5 (%)": pytest.approx(100)}
    assert ranks(2).run(count, 2) == [alone, alone]


@pytest.mark.usefixtures("tiny")
def test_a_published_checkpoint_is_evaluated(data: Path, tmp_path: Path) -> None:
    encoder = Encoder("resnet18", 8, mlp=True, norm_rows=4, seed=5)
    state = {f"module.encoder_q.{name}": value for name, value in encoder.trunk.state_dict().items()}
    state |= {"module.encoder_q.fc.0.weight": torch.zeros(3, 3), "module.encoder_k.conv1.weight": torch.zeros(3)}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state}, tmp_path / "moco.pth.tar")
    words = ["--pretrained", str(tmp_path / "moco.pth.tar"), "--linear-epochs", "2"]
    result = run(data, tmp_path / "out", *words)
    assert not result["tried"]
    assert result["results"]["top-1 (%)"]["here"] > 50  # three classes, of a colour each
    assert not (tmp_path / "out" / "pretraining.pt").exists()
    given = options()
    loaded = imagenet100.new_encoder(given)
    imagenet100.load_published(tmp_path / "moco.pth.tar", loaded)
    assert_equal(loaded.trunk.state_dict(), encoder.trunk.state_dict())


@pytest.mark.parametrize(
    ("words", "name", "figures"),
    [
        ((), "imagenet100 --recipe paper", (72.80, 74.60)),
        (("--recipe", "plain"), "imagenet100 --recipe plain", (75.54, 75.62)),
        (("--recipe", "strong"), "imagenet100 --recipe strong", (77.54, 77.66)),
        (("--all-classes",), "imagenet", (67.5, 67.69)),
        (("--all-classes", "--pretrained", "file"), "imagenet", (67.5, 67.69)),
        (("--all-classes", "--recipe", "paper"), "imagenet100 --all-classes --recipe paper", None),
        (("--pretrained", "file"), "imagenet100 --pretrained", None),
        (("--arch", "resnet18"), "imagenet100 --arch resnet18", None),
    ],
    ids=["paper", "plain", "strong", "imagenet", "pretrained", "unpublished", "unknown", "arch"],
)
def test_the_published_figures(words: tuple[str, ...], name: str, figures: tuple[float, float] | None) -> None:
    given = chosen(*words)
    assert recipes.published_as(given) == name
    assert PUBLISHED.get(name, {}).get("top-1 (%)") == figures
    # What nobody changed is as published; of a checkpoint only what becomes of it here is compared.
    settings = recipes.published_with(given)
    assert {key: imagenet100.value_of(given, key) for key in settings if key != "arch"} == {
        key: value for key, value in settings.items() if key != "arch"
    }
    assert ("epochs" in settings) == ("--pretrained" not in words)


@pytest.fixture
def refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The message for words that cannot work."""

    def refused(*words: str, data: Path = data) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["imagenet100", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL, *words])
        assert ended.value.code == 2
        return capsys.readouterr().err

    return refused


def test_missing_classes_are_counted_and_named(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    said = refused()
    assert "argument --data: must be a folder of ImageNet (image-net.org)" in said
    assert f"train/ lacks 97 of 100 classes: {', '.join(CLASSES[3:8])}, …" in said
    assert str(data) in said
    assert "there is no train/" in refused(data=tmp_path / "nowhere")
    make_images(tmp_path / "one", CLASSES, 1, size=8)
    (tmp_path / "one" / "val" / CLASSES[7]).rename(tmp_path / "one" / "val" / "n0")
    assert f"val/ lacks 1 of 100 classes: {CLASSES[7]}, got" in refused(data=tmp_path / "one")
    assert "train/ lacks 1 of 101 classes: n0, got" in refused("--all-classes", data=tmp_path / "one")
    for split in ("train", "val"):
        (tmp_path / "empty" / split / "a").mkdir(parents=True)
    assert "it has 1 classes" in refused("--all-classes", data=tmp_path / "empty")
    for split in ("train", "val"):
        (tmp_path / "empty" / split / "b").mkdir(parents=True)
    assert "train/ has classes without images" in refused("--all-classes", data=tmp_path / "empty")


@pytest.mark.parametrize(
    "wrong",
    [
        ("--batch", "28"),
        ("--batch", "1"),
        ("--batch", "6"),
        ("--crop", "8"),
        ("--queue", "0"),
        ("--momentum", "1"),
        ("--t", "0"),
        ("--lr", "nan"),
        ("--align-weight", "-1"),
        ("--linear-epochs", "0"),
        ("--align-weight", "0", "--uniform-weight", "0"),
        ("--pretrained", "nowhere.pt"),
        ("--device", "tpu"),
        ("--steps", "0"),
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("tiny")
def test_wrong_options_are_named(refused: Callable[..., str], wrong: tuple[str, ...]) -> None:
    said = refused("--all-classes", *wrong)
    assert f"argument {wrong[0]}: " in said
    assert re.search(rf"got '{re.escape(wrong[1])}(\.0)?'", said)


@pytest.mark.parametrize(
    ("where", "name", "file"),
    [(pretraining, "loss_of", "pretraining.pt"), (nn.functional, "cross_entropy", "linear.pt")],
    ids=["pretraining", "linear"],
)
@pytest.mark.usefixtures("tiny")
def test_a_loss_that_is_no_number_ends_it(
    where: object, name: str, file: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    loss = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args: loss(*args) * torch.inf)
    assert main(command(data, tmp_path, "--steps", "2")) == 1
    assert "a lower" in capsys.readouterr().err
    assert not (tmp_path / file).exists()


@pytest.mark.usefixtures("tiny")
def test_what_is_no_checkpoint_of_moco_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file.pt"
    for content in ({"other": 1}, {"state_dict": {}}, [1]):
        torch.save(content, file)
        assert "must be a checkpoint of MoCo" in refused("--all-classes", "--pretrained", str(file))
    file.write_bytes(b"no checkpoint")
    assert "must be a checkpoint of MoCo" in refused("--all-classes", "--pretrained", str(file))


@pytest.mark.usefixtures("tiny")
def test_a_folder_of_other_options_is_refused(refused: Callable[..., str], data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "out", "--steps", "1")
    said = refused("--all-classes", "--steps", "1", "--no-intra")
    assert "argument --no-intra: " in said
    assert "was made with 'False', got 'True'" in said


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out" / "result.json").mkdir(parents=True)
    assert "argument --out: result.json is a folder" in refused("--all-classes")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.json"]
