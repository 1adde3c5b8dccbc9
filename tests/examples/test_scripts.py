"""The scripts for trainers: their marks, their data, and those that start several processes."""

import ast
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import scripts
import torch
from ranks import Ranks

WITH_PROCESSES = {"train_ddp": [2, 256, torch.device("cpu")], "train_fsdp2": [4, 256, 48]}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of all that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.asname or alias.name) for alias in node.names)


def names(tree: ast.AST) -> set[str]:
    """All names that are read."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_there_is_one_for_each_trainer() -> None:
    trainers = ("ddp", "fsdp2", "lightning", "open_clip", "sentence_transformers", "transformers")
    assert [path.stem for path in scripts.SCRIPTS] == ["finetune_minilm", *(f"train_{name}" for name in trainers)]


@pytest.mark.parametrize("path", scripts.SCRIPTS, ids=lambda path: path.stem)
class TestMarks:
    def test_every_line_of_hyperkern_is_marked(self, path: Path) -> None:
        source = path.read_text(encoding="utf-8")
        assert any(module.startswith("hyperkern") for module, _ in imported(ast.parse(source)))
        was = ast.parse(scripts.before(source))
        assert not any("hyperkern" in module for module, _ in imported(was))
        ours = {name for module, name in imported(ast.parse(source)) if module.startswith("hyperkern")}
        theirs = {name for _, name in imported(was)}
        assert names(was) & (ours - theirs) == set()
        assert ours <= names(ast.parse(source))
        assert all(name in names(was) for name in theirs & ours)

    def test_marks_have_one_form(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        marks = [line for line in lines if "hyperkern:" in line]
        assert marks
        assert [line for line in marks if not scripts.MARK.fullmatch(line)] == []

    def test_it_is_short(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 100


def test_a_statement_goes_as_a_whole() -> None:
    source = """
# hyperkern: new
import a

if b:
    # hyperkern: was x = 1
    # hyperkern: was y = 2
    x = f(
        3,
    )
    z = 4
"""
    assert scripts.before(source) == "\n\nif b:\n    x = 1\n    y = 2\n    z = 4\n"


class TestPairs:
    def test_they_are_the_same_every_time_and_of_other_modules(self) -> None:
        pairs = scripts.load("docstring_pairs")
        train, held_out = pairs.load(200)
        assert (len(train), len(held_out)) == (150, 50)
        assert (train, held_out) == pairs.load(200)
        modules = [{answer.split(".")[0].split("(")[0] for _, answer in part} for part in (train, held_out)]
        assert modules[0].isdisjoint(modules[1])
        texts = list(itertools.chain(*train, *held_out))
        assert len(set(texts)) == len(texts)

    def test_what_is_described(self) -> None:
        source = '''
class A:
    def f(self, x):
        """Do it to x. Not more."""
    def _g(self):
        """Do something else to it."""
def h():
    """Say so."""
'''
        found = scripts.load("docstring_pairs").described(ast.parse(source), "m")
        assert list(found) == [("Do it to x.", "m.A.f(x)")]


def test_numbers_are_written_as_they_are_read() -> None:
    pytest.importorskip("sklearn")
    module = scripts.load("written_numbers")
    train, held_out = module.Numbers(held_out=False), module.Numbers(held_out=True)
    assert set(train.values).isdisjoint(held_out.values)
    assert len({*train.values, *held_out.values}) == 10_000
    images, digits = held_out.draw(20)
    assert images.shape == (20, 3, 16, 16)
    parts = (images[:, 0, :8, :8], images[:, 0, :8, 8:], images[:, 0, 8:, :8], images[:, 0, 8:, 8:])
    for number, *quarters in zip(digits, *parts, strict=True):
        for digit, quarter in zip(number, quarters, strict=True):
            assert any(torch.equal(quarter, image) for image in held_out.images[held_out.rows[digit]])


def trained(rank: int, name: str, folder: str | None) -> list[float]:
    """The losses of a script on this process."""
    module, arguments = scripts.load(name, None if folder is None else Path(folder)), WITH_PROCESSES[name]
    if name == "train_fsdp2":
        arguments = [*arguments, torch.distributed.init_device_mesh("cpu", (torch.distributed.get_world_size(),))]
    return module.train(*arguments)


@pytest.mark.parametrize("name", WITH_PROCESSES)
def test_processes_have_the_losses_of_one(name: str, ranks: Ranks, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (alone,) = ranks(1).run(trained, name, None)
    assert alone[-1] < alone[0] - 0.05
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        folder.mkdir()
    for losses in ranks(2).run(trained, name, None):
        assert losses == pytest.approx(alone, rel=1e-3)
    for losses in ranks(2).run(trained, name, str(tmp_path)):
        assert losses == pytest.approx(alone, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [("train_ddp", ["--epochs", "5"], "% of the held-out images"), ("train_fsdp2", ["--steps", "5"], "of 256 pairs")],
)
def test_they_start(name: str, options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(scripts.EXAMPLES / f"{name}.py"), *options]
    told = os.environ | {"PYTHONPATH": os.pathsep.join([str(scripts.EXAMPLES.parent), *sys.path])}
    result = subprocess.run(command, env=told, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout.splitlines()[-1]
