"""What a command prints to: a pipe whose end is gone, an encoding without the signs, no stream, a terminal; Ctrl-C."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import hyperkern
from hyperkern import interrupt, terminal
from hyperkern.bench.load import load_all
from hyperkern.cli import main

pytestmark = [
    pytest.mark.usefixtures("registry_as_it_was"),
    pytest.mark.skipif(sys.platform == "win32", reason="pipes and terminals of POSIX"),
]
load_all()

ROOT = Path(hyperkern.__file__).parents[1]
TINY = ["--device", "cpu", "--sizes", "40", "--dims", "8", "--rounds", "2", "--seconds", "0.1", "--no-memory"]
BENCH = ["bench", *TINY, "--cases", "uniformity", "--implementations", "dense"]


@pytest.fixture
def features(tmp_path: Path) -> str:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((40, 5), dtype=np.float32))
    return str(tmp_path / "x.npy")


def into_a_broken_pipe(command: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """What a command returns whose output goes to a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        try:
            return main(command)
        except SystemExit as end:
            return int(end.code or 0)


@pytest.mark.parametrize("command", [["info"], ["bench", *TINY, "--plan"], ["--help"]], ids=["info", "plan", "help"])
def test_a_pipe_whose_end_is_gone_ends_the_command(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert into_a_broken_pipe(command, monkeypatch) == 141
    assert capsys.readouterr().err == ""


def test_figures_are_on_disk_before_they_are_printed(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, command in enumerate((["eval", features, "--device", "cpu"], BENCH)):
        out = tmp_path / f"{i}.json"
        assert into_a_broken_pipe([*command, "--json", str(out)], monkeypatch) == 141
        assert out.read_text(encoding="utf-8").endswith("}\n")


def test_python_m_hyperkern_is_the_command() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hyperkern", "info"]
    found = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")  # that of `hyperkern info | true`


def test_an_encoding_that_lacks_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    assert main(["bench", *TINY, "--plan"]) == 0
    assert b"N?D" in printed.getvalue()


def test_closed_streams_are_no_error(features: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["eval", features, "--device", "cpu"]) == 0
    for stream in (sys.stdout, sys.stderr):  # what it has opened in their place
        assert stream is not None
        stream.close()


def on_a_terminal(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a function shows there."""
    outer, inner = os.openpty()
    shown: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(outer, 1000):
                shown.append(piece)
        except OSError:  # how the other end says that it is closed
            return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with open(inner, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        run()
    reader.join(60)
    os.close(outer)
    return b"".join(shown).decode()


@pytest.mark.parametrize("columns", ["0", "30", "200"])
def test_a_terminal_of_any_width_shows_every_figure(
    columns: str, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "0")
    found: list[int] = []
    text = on_a_terminal(lambda: found.append(main(["eval", features, "--device", "cpu"])), monkeypatch)
    assert found == [0]
    assert "uniform distribution" in text
    assert re.search(r"gap to it +\+\d\.\d{6}\s", text)
    assert "…" not in text


@pytest.mark.parametrize("columns", [30, 200])
def test_the_table_of_the_demo_shows_every_figure(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    report = pytest.importorskip("examples.digits.report")
    rows = [["alignment only", *["12.345 ± 0.678"] * (len(report.HEADER) - 1)]]
    console = pytest.importorskip("rich.console").Console
    text = on_a_terminal(lambda: report.print_table(console(width=columns), "title", rows), monkeypatch)
    assert text.count("12.345 ± 0.678") == len(report.HEADER) - 1
    assert "…" not in text


@pytest.mark.parametrize("command", ["info", "bench", "tune"])
def test_ctrl_c_anywhere_is_no_traceback(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(getattr(hyperkern.cli, command), "run", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr().err == "hyperkern: interrupted\n"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (ImportError("--plot needs matplotlib"), 1, "hyperkern info: --plot needs matplotlib\n"),
        (ValueError("t must be > 0"), 2, "hyperkern info: error: t must be > 0\n"),
        (OSError(2, "No such file"), 2, "hyperkern info: error: [Errno 2] No such file\n"),
    ],
)
def test_what_cannot_work_is_said_by_the_command(
    error: Exception, status: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr(hyperkern.cli.info, "run", fail)
    assert main(["info"]) == status
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize("way", ["hyperkern", "-m", "a program"])
def test_ctrl_c_while_torch_is_imported(way: str, tmp_path: Path) -> None:
    # In place of the real one, which takes its time: one that says when it is being imported, and waits.
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(600)")
    script = tmp_path / way
    script.write_text("from hyperkern.cli import main; main()")
    command = ["-m", "hyperkern"] if way == "-m" else [str(script)]
    process = subprocess.Popen(
        [sys.executable, *command, "info"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    # A program that only imports the package keeps its tracebacks.
    assert ("Traceback" in errors) == (way == "a program")
    assert errors == "" or way == "a program"


def test_ctrl_c_raises_again_once_the_command_has_begun(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert main(["info"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupt.raise_again()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as it is behind nohup
    finally:
        signal.signal(signal.SIGINT, before)


def test_progress_goes_to_the_standard_error_output(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar("command") as progress:
        progress(1, 1)
    assert capsys.readouterr().out == ""
