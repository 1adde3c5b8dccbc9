"""Every file that a command writes: refused before the work, or written through what is there."""

import json
import os
import stat
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from examples.digits import pipeline
from examples.digits.__main__ import main as demo
from hyperkern import evaluation
from hyperkern.bench import page
from hyperkern.bench import run as runs
from hyperkern.bench.load import load_all
from hyperkern.cli import main

pytestmark = [
    pytest.mark.usefixtures("registry_as_it_was"),
    pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs, and links for some"),
]
load_all()

TINY = ["--device", "cpu", "--sizes", "40", "--dims", "8", "--rounds", "2", "--seconds", "0.1", "--no-memory"]
BENCH = ["bench", *TINY, "--cases", "uniformity", "--implementations", "dense"]
EVAL = ["eval", "x.npy", "--device", "cpu"]
OPTIONS = [(EVAL, "json"), (EVAL, "plot"), (BENCH, "json"), (BENCH, "csv"), (BENCH, "html")]
ids = [f"{command[0]} --{option}" for command, option in OPTIONS]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).standard_normal((40, 5), dtype=np.float32))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(runs, "run", refuse)
    monkeypatch.setattr(evaluation, "evaluate", refuse)
    monkeypatch.setattr(pipeline, "train_encoder", refuse)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=ids)
def test_what_cannot_be_written_is_refused_before_the_work(
    command: list[str], option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.svg").write_text("old")
    Path("a.svg").chmod(0o444)
    cases = {"a.svg": "is read-only", "absent/a.svg": "absent is no folder"}
    if sys.platform == "linux":
        cases["/proc/self/task/a.svg"] = "cannot be written to ("
    for file, reason in cases.items():
        assert main([*command, f"--{option}", file]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"hyperkern {command[0]}: error: argument --{option}: {reason}")
        assert f", got '{file}'" in printed.err
        assert printed.out == ""
    assert Path("a.svg").read_text() == "old"


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([*EVAL, "--json", "x.npy"], "argument --json: is read too, got 'x.npy'"),
        (["eval", "x.npy", "y.npy", "--json", "y.npy"], "argument --json: is read too, got 'y.npy'"),
        ([*EVAL, "--json", "a.svg", "--plot", "a.svg"], "argument --plot: another result goes there too, got 'a.svg'"),
        ([*BENCH, "--baseline", "y.npy", "--json", "y.npy"], "argument --json: is read too, got 'y.npy'"),
        ([*BENCH, "--load", "own.py", "--csv", "./own.py"], "argument --csv: is read too, got 'own.py'"),
        ([*BENCH, "--html", "a.html", "--csv", "a.html"], "argument --html: another result goes there too"),
    ],
    ids=" ".join,
)
def test_a_file_is_not_read_and_written(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("y.npy").symlink_to("x.npy")
    Path("own.py").write_text("")
    before = Path("x.npy").read_bytes()
    assert main(arguments) == 2
    assert text in capsys.readouterr().err
    assert Path("x.npy").read_bytes() == before
    assert Path("own.py").read_text() == ""


@pytest.mark.parametrize("command", [EVAL, BENCH], ids=lambda command: command[0])
def test_links_and_fifos_stay_what_they_are(command: list[str]) -> None:
    options = [option for of, option in OPTIONS if of is command]
    os.mkfifo("fifo")
    Path("first.svg").symlink_to("fifo")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(Path("fifo").read_bytes()), daemon=True)
    reader.start()
    outputs = [f"--{options[0]}", "first.svg"]
    for option in options[1:]:
        Path(f"{option}.target").write_text("old")
        Path(f"{option}.svg").symlink_to(f"{option}.target")
        outputs += [f"--{option}", f"{option}.svg"]
    assert main([*command, *outputs]) == 0
    reader.join(60)
    assert json.loads(found[0])
    assert stat.S_ISFIFO(Path("fifo").stat().st_mode)
    for option in options[1:]:
        assert Path(f"{option}.svg").is_symlink()
        assert len(Path(f"{option}.target").read_bytes()) > 100


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("name", ["table.md", "results.json", "picture.png", "picture.svg"])
def test_the_demo_looks_at_each_of_its_files_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    Path("out", name).write_text("old")
    Path("out", name).chmod(0o444)
    assert demo(["--device", "cpu", "--out", "out"]) == 2
    assert (
        f"python -m examples.digits: error: argument --out: {name} is read-only, got 'out'" in capsys.readouterr().err
    )
    assert Path("out", name).read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="root may write to every folder")
@pytest.mark.usefixtures("no_work")
def test_the_demo_refuses_a_folder_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(["--device", "cpu", "--out", "/proc/self/task"]) == 2
    assert "argument --out: table.md cannot be written to (" in capsys.readouterr().err


def test_tuning_looks_at_its_file_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.json").write_text("old")
    Path("a.json").chmod(0o444)
    for file, reason in (("a.json", "is read-only"), ("absent/a.json", "absent is no folder")):
        assert main(["tune", "--out", file]) == 2
        assert f"hyperkern tune: error: argument --out: {reason}, got '{file}'" in capsys.readouterr().err


def test_the_page_of_a_result_is_no_other_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("result.json").write_text("{}")
    Path("page.html").write_text("old")
    Path("page.html").chmod(0o444)
    for file, reason in (("result.json", "is read too"), ("page.html", "is read-only")):
        with pytest.raises(SystemExit):
            page.main(["result.json", "--out", file])
        assert f"argument --out: {reason}, got '{file}'" in capsys.readouterr().err
    assert (Path("result.json").read_text(), Path("page.html").read_text()) == ("{}", "old")


@pytest.mark.parametrize("command", [EVAL, BENCH], ids=lambda command: command[0])
def test_a_disk_that_fills_up_is_an_error_that_names_the_file(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main([*command, "--json", "a.json"]) == 2
    assert f"{command[0]}: error: a.json cannot be written (No space left on device)" in capsys.readouterr().err
    assert not Path("a.json").exists()


def test_a_file_name_that_is_no_text(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"$odd$ \xff.npy")
    Path("x.npy").rename(name)
    assert main(["eval", name, "--device", "cpu", "--json", "a.json", "--plot", "a.png"]) == 0
    assert json.loads(Path("a.json").read_text(encoding="utf-8"))["sides"][0]["name"] == name
    assert "uniformity" in capsys.readouterr().out
