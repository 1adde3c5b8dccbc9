"""What the recipes on the paper's data sets share: processes, checkpoints, options, the published figures."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hyperkern
from examples.digits.config import OptionError
from examples.paper import __main__ as paper
from examples.paper.objective import Objective
from examples.paper.recipes import checkpoint, options, published, session
from examples.paper.recipes.checkpoint import Checkpoint
from examples.paper.recipes.session import Session
from hyperkern.files import OutputError

ALONE = Session(torch.device("cpu"), 0, 1, None)

# Processes


def test_one_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with session.session("cpu") as here:
        assert here == ALONE
        assert here.is_first
        layer = nn.Linear(2, 2)
        assert here.parallel(layer) is session.unwrapped(layer) is layer
        assert here.share("batch", 7) == 7
        assert here.mean(0.25) == 0.25
        here.wait()
        here.say("said")
    assert not dist.is_initialized()
    assert capsys.readouterr().out == "said\n"


def test_process_of_torchrun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    start = dist.init_process_group
    monkeypatch.setattr(
        dist, "init_process_group", lambda: start("gloo", init_method=f"file://{tmp_path}/met", rank=0, world_size=1)
    )
    with session.session("cpu") as here:
        assert (here.rank, here.ranks) == (0, 1)
        assert isinstance(here.group, hyperkern.Group)
        assert dist.is_initialized()
    assert not dist.is_initialized()
    with pytest.raises(OptionError, match="batch"), session.session("cpu"):
        raise OptionError("batch", 1, "is wrong")
    assert not dist.is_initialized()


@pytest.mark.parametrize("rank", [None, "0"])
def test_no_such_device(rank: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(OptionError, match=r"argument --device: .*cuda:99"), session.session("cuda:99"):
        pass
    assert not dist.is_initialized()


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)

    def join() -> None:
        raise ConnectionError

    monkeypatch.setattr(dist, "init_process_group", join)
    for name in (None, "cuda"):
        with pytest.raises(ConnectionError), session.session(name):
            pass
    assert taken == [torch.device("cuda:1")] * 2
    with pytest.raises(OptionError, match="must not name one GPU"), session.session("cuda:0"):
        pass


def in_two(rank: int) -> list[object]:
    here = Session(torch.device("cpu"), rank, 2, hyperkern.Group())
    torch.manual_seed(rank)
    layer = nn.Linear(3, 1, bias=False)
    model = here.parallel(layer)
    with pytest.raises(OptionError, match=r"argument --batch: must be a multiple of 2, .*'7'"):
        here.share("batch", 7)
    x = torch.eye(3)[rank : rank + 1]
    model(x).sum().backward()
    left = here.alone()
    left.wait()
    wrapped = isinstance(model, DistributedDataParallel) and session.unwrapped(model) is layer
    return [
        here.is_first,
        wrapped,
        layer.weight.tolist(),
        layer.weight.grad.tolist(),
        here.mean(float(rank)),
        here.share("batch", 6),
        left == ALONE and left.mean(float(rank)) == rank,
    ]


def test_two_processes(ranks: Callable) -> None:
    (first, *ours), (second, *theirs) = ranks(2).run(in_two)
    assert (first, second) == (True, False)
    assert ours == theirs  # weights are the first one's, gradients the mean
    wrapped, _, gradient, mean, share, left = ours
    assert wrapped
    assert left
    assert (gradient, mean, share) == ([[0.5, 0.5, 0.0]], 0.5, 3)


def settled_in_two(rank: int) -> list[torch.Tensor]:
    here = Session(torch.device("cpu"), rank, 2, hyperkern.Group())
    model = here.parallel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    model(torch.arange(12.0).view(4, 3) * (rank + 1))
    own = session.unwrapped(model)[1].running_mean.clone()
    inner = session.settled(model)
    assert not inner.training
    return [own, *inner.state_dict().values()]


def test_batch_statistics_of_the_first_process_stay(ranks: Callable) -> None:
    (first, *ours), (second, *theirs) = ranks(2).run(settled_in_two)
    assert not torch.equal(first, second)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert any(torch.equal(first, one) for one in ours)
    alone = nn.BatchNorm1d(2)
    assert session.settled(ALONE.parallel(alone)) is alone
    assert not alone.training


# Checkpoints


def parts() -> dict[str, object]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    return {
        "layer": layer,
        "optimizer": optimizer,
        "schedule": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2], gamma=0.1),
    }


def step(of: dict) -> None:
    of["layer"](torch.ones(1, 3)).square().sum().backward()
    of["optimizer"].step()
    of["schedule"].step()


def test_state_comes_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "new" / "run.pt"
    before, after = parts(), parts()
    assert Checkpoint(path, {"lr": 0.1}, before).load(ALONE) == 0
    step(before)
    Checkpoint(path, {"lr": 0.1}, before).save(1, ALONE)
    assert capsys.readouterr().out == ""
    assert Checkpoint(path, {"lr": 0.1}, after).load(ALONE) == 1
    assert capsys.readouterr().out == f"goes on from {path}\n"
    for one in (before, after):
        one["optimizer"].zero_grad()
        step(one)
    assert torch.equal(before["layer"].weight, after["layer"].weight)
    assert before["schedule"].get_last_lr() == after["schedule"].get_last_lr() == [pytest.approx(0.001)]
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]


def test_other_options_are_named(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "run.pt", {"lr": 0.1, "batch": 8}, {}).save(3, ALONE)
    with pytest.raises(OptionError, match=r"argument --batch: .*run.pt was made with '8', got '16'"):
        Checkpoint(tmp_path / "run.pt", {"lr": 0.1, "batch": 16}, {}).load(ALONE)


def test_a_trial_is_not_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Checkpoint(path, {"epochs": 1, "steps": 2}, {}).save(1, ALONE)
    assert Checkpoint(path, {"epochs": 1, "steps": 2}, {}).load(ALONE) == 1
    assert Checkpoint(path, {"epochs": 200, "steps": None}, {}).load(ALONE) == 0
    Checkpoint(path, {"epochs": 200, "steps": None}, {}).save(7, ALONE)
    with pytest.raises(OptionError, match=r"argument --(epochs|steps): "):  # nor does a trial replace a run
        Checkpoint(path, {"epochs": 1, "steps": 2}, {}).load(ALONE)


@pytest.mark.parametrize("other", ["text", "parts", "shape", "optimizer"])
def test_a_file_of_something_else(other: str, tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    if other == "text":
        path.write_text("no checkpoint")
    else:
        layer = nn.Linear(2, 2, bias=other != "optimizer")
        part = torch.optim.SGD(layer.parameters(), 1) if other == "optimizer" else layer
        Checkpoint(path, {}, {"head" if other == "parts" else "part": part}).save(1, ALONE)
    wanted: object = nn.Linear(3, 2)
    if other == "optimizer":
        wanted = torch.optim.SGD(wanted.parameters(), 1)
    with pytest.raises(OptionError, match=r"argument --out: run.pt there is no checkpoint of this run, got "):
        Checkpoint(path, {}, {"part": wanted}).load(ALONE)


class Broken:
    def state_dict(self) -> dict:
        return {"cannot": self}

    def __reduce__(self) -> object:
        raise OSError("No space left on device")


def test_what_was_there_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    Checkpoint(path, {}, {}).save(4, ALONE)
    with pytest.raises(OutputError, match=r"run.pt cannot be written .*No space left"):
        Checkpoint(path, {}, {"part": Broken()}).save(5, ALONE)
    assert Checkpoint(path, {}, {}).load(ALONE) == 4
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("where", ["file/run.pt", "folder/run.pt"])
def test_a_folder_that_cannot_be_written_to(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder" / "run.pt").mkdir(parents=True)
    with pytest.raises(OptionError, match="argument --out: "):
        Checkpoint(tmp_path / where, {}, {})


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(dist, "barrier", lambda: waited.append(1))
    Checkpoint(tmp_path / "run.pt", {}, {}).save(1, ALONE._replace(rank=1, ranks=2))
    assert waited
    assert not list(tmp_path.iterdir())


def test_seeds_differ() -> None:
    drawn = {}
    for key in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1)):
        own = torch.rand((), generator=checkpoint.seeded(*key)).item()
        drawn[key] = own, torch.rand(()).item()
        checkpoint.seeded(*key)
        assert torch.rand(()).item() == drawn[key][1]
    assert len({value for pair in drawn.values() for value in pair}) == 8


# The loss


def test_the_objective_is_the_weighted_sum() -> None:
    x, y = F.normalize(torch.randn(2, 9, 5, dtype=torch.float64), dim=-1)
    alignment = (x - y).norm(dim=1).mean()
    uniformity = sum(torch.pdist(side).square().mul(-3).exp().mean().log() for side in (x, y)) / 2
    logits = x @ y.T / 0.2
    contrastive = (F.cross_entropy(logits, torch.arange(9)) + F.cross_entropy(logits.T, torch.arange(9))) / 2
    for weights in ((0.5, 0.75, 0.25), (0, 0.75, 0), (0, 0, 0.25)):
        found = Objective(*weights, alpha=1, t=3, temperature=0.2)(3 * x, y / 2, None)
        terms = (alignment, uniformity, contrastive)
        torch.testing.assert_close(found.loss, sum(weight * one for weight, one in zip(weights, terms, strict=True)))
        torch.testing.assert_close(found.alignment, alignment)
        torch.testing.assert_close(found.uniformity, uniformity)
    formula = "0.5 alignment(α=1) + 0.25 contrastive(τ=0.2)"
    assert str(Objective(0.5, 0, 0.25, alpha=1, temperature=0.2)) == formula


def gradients(rank: int, ranks: int, x: torch.Tensor, y: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Of a linear encoder, as DistributedDataParallel averages them."""
    encoder = torch.nn.Linear(6, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        encoder.weight.copy_(torch.arange(24).view(4, 6).sin())
    group = hyperkern.Group() if ranks > 1 else None
    model = torch.nn.parallel.DistributedDataParallel(encoder) if ranks > 1 else encoder
    first, second = model(torch.cat([x.chunk(ranks)[rank], y.chunk(ranks)[rank]])).chunk(2)
    objective(first, second, group).loss.backward()
    return encoder.weight.grad


@pytest.mark.parametrize(
    "objective",
    [Objective(align_weight=0.75, uniform_weight=0.5), Objective(contrastive_weight=0.5), Objective(1, 1, 1)],
    ids=["align-uniform", "contrastive", "all"],
)
def test_two_processes_have_the_gradients_of_one(objective: Objective, ranks: Callable) -> None:
    x, y = torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (alone,) = [gradients(0, 1, x, y, objective)]
    for found in ranks(2).run(gradients, 2, x, y, objective):
        torch.testing.assert_close(found, alone)


def objective(*words: str) -> Objective:
    command = argparse.ArgumentParser()
    options.add_loss(command, Objective(0.75, 0.5))
    return options.objective_of(command.parse_args(words))


def test_the_objective_of_the_command_line() -> None:
    assert objective() == Objective(0.75, 0.5)
    assert objective("--align-weight", "0", "--t", "3", "--alpha", "1") == Objective(0, 0.5, alpha=1, t=3)
    for words in (
        ["--align-weight", "-1"],
        ["--contrastive-weight", "nan"],
        ["--temperature", "0"],
        ["--t", "inf"],
        ["--align-weight", "0", "--uniform-weight", "0"],
    ):
        with pytest.raises(OptionError, match=f"argument {words[0]}: .*'{float(words[1])}'"):
            objective(*words)


# Options


def call(words: list[str], work: Callable[[argparse.Namespace], None]) -> int:
    command = options.command_line("name", "What it does.", out="name-out")
    return options.guarded(command, work, ["--data", "somewhere", *words])


def test_options_arrive() -> None:
    seen = []
    assert call(["--seed", "3", "--workers", "0", "--steps", "2"], seen.append) == 0
    (given,) = seen
    assert (given.data, given.out) == (Path("somewhere"), Path("name-out"))
    assert (given.seed, given.workers, given.device, given.steps) == (3, 0, None, 2)


@pytest.mark.parametrize(("processes", "workers"), [(None, 12), ("4", 3), ("24", 1)])
def test_loaders_share_the_cores(processes: str | None, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    seen = []
    call([], seen.append)
    assert seen[0].workers == workers


@pytest.mark.parametrize("words", [["--seed", "-1"], ["--workers", "-2"], ["--steps", "0"]], ids=lambda words: words[0])
def test_numbers_out_of_range(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        call(words, lambda given: pytest.fail("it went on"))
    assert ended.value.code == 2
    assert f"error: argument {words[0]}: must be at least" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(FloatingPointError("the loss is nan"), 1), (KeyboardInterrupt(), 130)],
    ids=["no-number", "interrupted"],
)
def test_what_ends_a_run_is_said(error: BaseException, code: int, capsys: pytest.CaptureFixture) -> None:
    def work(given: argparse.Namespace) -> None:
        raise error

    assert call([], work) == code
    said = capsys.readouterr().err
    assert "python -m examples.paper name: " in said
    assert (str(error) or "the same command goes on") in said


def test_folder_for_results(tmp_path: Path) -> None:
    assert options.folder_for_results(argparse.Namespace(out=tmp_path / "new" / "folder")).is_dir()
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "result.json").mkdir(parents=True)
    for name, said in (("file", "cannot be written to"), ("taken", "result.json is a folder")):
        with pytest.raises(OptionError, match=f"argument --out: {said}"):
            options.folder_for_results(argparse.Namespace(out=tmp_path / name))


# The published figures


@pytest.mark.parametrize("tried", [False, True])
def test_result_stands_beside_the_published(tried: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = {"fc7, linear (%)": 83.19, "alignment": 0.5}
    recipe = {"data": Path("somewhere"), "lr": 0.36, "epochs": 10}
    usual = {"lr": 0.36, "epochs": 200}
    published.show("stl10", found, tmp_path, recipe, tried=tried, published_with=usual)
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "fc7, linear" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "fc7, linear (%)",
        "83.19",
        "83.89",
        "84.43",
        "84.14",
    ]
    assert ("mean nothing" in said) is tried
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["results"] == {
        "fc7, linear (%)": {"here": 83.19, "published": [83.89, 84.43, 84.14]},
        "alignment": {"here": 0.5, "published": None},
    }
    assert written["tried"] is tried
    assert written["options"] == {"data": "somewhere", "lr": 0.36, "epochs": 10}
    assert written["published"][0] == "paper, contrastive(τ=0.19)"
    assert "The published figures are of epochs 200 (here 10)." in said
    assert "τ=0.19" in said


def test_every_recipe_has_published_figures() -> None:
    assert paper.RECIPES.keys() == {name.split()[0] for name in published.PUBLISHED} - {"imagenet"}
    for name, measures in published.PUBLISHED.items():
        assert {len(figures) for figures in measures.values()} == {len(published.OF.get(name, published.USUAL))}


def test_recipes_are_found(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        paper.main(["stl10", "--help"])
    assert ended.value.code == 0
    assert "--data DIR" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        paper.main(["--help"])
    assert "python -m examples.paper stl10 --help" in capsys.readouterr().out
