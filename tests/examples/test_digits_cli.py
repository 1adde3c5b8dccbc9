import subprocess
import sys
from pathlib import Path

import pytest

import examples.digits.__main__
from examples.digits import huge_batch, pipeline
from examples.digits.__main__ import main


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(pipeline, "train_encoder", refuse)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--seeds", "0"),
        ("--epochs", "0"),
        ("--epochs", "-3"),
        ("--dim", "1"),
        ("--batch", "1"),
        ("--batch", "1798"),
        ("--device", "abacus"),
        ("--device", "meta"),
        ("--device", "cuda:99"),
        ("--device", "mps"),
        ("--device", ""),
        ("--backend", "abacus"),
    ],
)
def test_bad_value_is_named_and_nothing_is_written(
    option: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([option, value, "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"python -m examples.digits: error: argument {option}: ")
    assert f"got '{value}'" in message
    assert not out.exists()


@pytest.mark.usefixtures("no_training")
def test_folder_that_cannot_be_written_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for out in (file, file / "below"):
        assert main(["--out", str(out)]) == 2
        assert "argument --out: cannot be written to (" in (message := capsys.readouterr().err)
        assert f"got '{out}'" in message
    assert file.read_text() == "in the way"


def test_value_of_the_wrong_type(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(["--epochs", "many"])
    assert error.value.code == 2
    assert "argument --epochs: invalid int value: 'many'" in capsys.readouterr().err


def test_prints_progress_table_huge_batch_and_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huge_batch, "CPU_ROWS", 512)
    options = ["--seeds", "1", "--epochs", "1", "--dim", "4", "--device", "cpu", "--backend", "reference"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    text, progress = capsys.readouterr()
    assert "[8/8] alignment + uniformity, 2 dimensions, seed 0: " in progress
    header = next(line for line in text.splitlines() if line.startswith("objective"))
    row = next(line for line in text.splitlines() if line.startswith("untrained encoder"))
    assert len(header) == len(row)
    assert "one batch of 512 × 128 float32" in text
    assert "The paper's finding " in text
    assert "\x1b" not in text


def test_interrupted_run_leaves_old_files_and_no_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_encoder", interrupt)
    (tmp_path / "table.md").write_text("old")
    assert main(["--device", "cpu", "--out", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]
    assert (tmp_path / "table.md").read_text() == "old"
    assert "interrupted" in capsys.readouterr().err


def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(examples.digits.__main__, "find_spec", lambda name: None if name == "sklearn" else object())
    assert main([]) == 1
    message = capsys.readouterr().err
    assert "needs scikit-learn;" in message
    assert "pip install '.[demo]'" in message


def test_command_line_does_not_import_the_extras() -> None:
    code = (
        "import sys, examples.digits.__main__; "
        "sys.exit(' '.join(m for m in ('sklearn', 'matplotlib', 'rich') if m in sys.modules) or None)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
