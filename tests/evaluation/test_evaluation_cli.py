"""`hyperkern eval` from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

import hyperkern as hk
import hyperkern.cli.eval
from hyperkern import terminal
from hyperkern.cli import main
from hyperkern.evaluation import evaluate as evaluate_module
from hyperkern.evaluation import plot
from hyperkern.evaluation.plot import uniform_density


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    x = torch.randn(400, 16)
    y = x + 0.3 * torch.randn(400, 16)
    np.save(tmp_path / "x.npy", x.numpy())
    torch.save({"y": y, "short": y[:10]}, tmp_path / "y.pt")
    return str(tmp_path / "x.npy"), str(tmp_path / "y.pt")


def test_prints_a_table_and_writes_all_figures(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.from_numpy(np.load(files[0])), torch.load(files[1])["y"]
    out = tmp_path / "out.json"
    options = ["--positives-key", "y", "--device", "cpu", "--block-rows", "64", "--t", "3", "--alpha", "1"]
    assert main(["eval", *files, *options, "--json", str(out)]) == 0
    expected = hk.align_uniform(x, y, t=3, alpha=1)
    found = json.loads(out.read_text())
    assert found["uniformity"] == pytest.approx(expected.uniformity.item(), rel=1e-6)
    assert found["alignment"] == pytest.approx(expected.alignment.item(), rel=1e-6)
    assert found["gap"] == pytest.approx(found["uniformity"] - hk.metrics.uniformity_limit(16, 3), rel=1e-12)
    assert [side["name"] for side in found["sides"]] == [files[0], f"{files[1]}[y]"]
    assert (found["rows"], found["dim"], found["dtype"]) == (400, 16, "float32")
    assert (found["method"], found["interval"], found["columns"]) == ("exact", None, None)
    assert found["versions"]["torch"] == torch.__version__
    captured = capsys.readouterr()
    values = dict(line.split("  ", 1) for line in captured.out.splitlines()[1:] if "  " in line.strip())
    assert values["uniformity"].strip() == f"{found['uniformity']:.6f}"
    assert values["alignment, alpha = 1"].strip() == f"{found['alignment']:.6f}"
    assert values["uniform distribution"].strip() == f"{found['floor']:.6f}"
    assert captured.out.startswith(f"{files[0]}: 400 × 16 float32, every pair, t = 3, on cpu")
    assert f"written: {out}" in captured.out
    assert "hyperkern eval: 100 %" in captured.err
    assert captured.err.count("warning: ") == 2
    assert "rows are not of unit length" in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_keys_of_both_files(files, capsys: pytest.CaptureFixture[str]) -> None:
    array, tensors = files
    for arguments in ([tensors, tensors, "--key", "y"], [tensors, array, "--key", "y"]):
        assert main(["eval", *arguments]) == 0
    assert main(["eval", tensors, tensors, "--key", "y", "--positives-key", "short"]) == 2
    assert "got (10, 16)" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "columns"), [(["--estimate", "100"], 100), (["--estimate"], None)])
def test_estimate(files, option, columns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["eval", files[0], *option, "--seed", "5", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["columns"] == columns  # as many as there are rows: exact
    text = capsys.readouterr().out
    if columns is not None:
        assert found["seed"] == 5
        assert found["interval"][0] < found["uniformity"] < found["interval"][1]
        assert " ± " in text
        assert "95 % interval" in text
        assert "100 columns drawn" in text


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("options", [[], ["--no-normalize"], ["--estimate", "50"]], ids=str)
def test_plot(files, kind: str, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / f"out.{kind}"
    assert main(["eval", *files, "--positives-key", "y", *options, "--plot", str(out)]) == 0
    content = out.read_bytes()
    assert content.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert len(content) > 10_000


@pytest.mark.filterwarnings("ignore:.*rows are not of unit length")
@pytest.mark.parametrize("columns", [16, 40])
@pytest.mark.parametrize(("confidence", "deviations"), [(0.95, 1.959964), (0.6827, 1.0), (0.99, 2.575829)])
def test_the_error_bar_is_the_interval_of_that_confidence(confidence: float, deviations: float, columns: int) -> None:
    x, y = torch.randn(2, 100, 8)
    found = hk.evaluate(x, y, method="estimate", columns=columns, confidence=confidence, device="cpu")
    axes = Figure().subplots()
    plot._draw_values(axes, found)
    bars = [artist for artist in axes.collections if isinstance(artist, LineCollection)]
    assert len(bars) == 2
    for bar, side in zip(bars, found.sides, strict=True):
        ((start, end),) = bar.get_segments()
        half = side.interval[1] - side.uniformity
        # Student's distribution is wider than the normal one, the less so the more columns.
        assert 1 < half / (deviations * side.standard_error) < 1 + 8 / columns
        assert start[0] == pytest.approx(side.uniformity - half, rel=1e-5)
        assert end[0] == pytest.approx(side.uniformity + half, rel=1e-5)
        assert half > 1e-3 * abs(side.uniformity)  # or ten times the bar would look the same


@pytest.mark.parametrize("features", [torch.randn(30, 1), torch.randn(30, 2), torch.ones(30, 3), torch.zeros(30, 3)])
def test_plot_of_unusual_features(features: torch.Tensor, tmp_path: Path) -> None:
    features[3, 0] = torch.nan
    torch.save(features, tmp_path / "x.pt")
    assert main(["eval", str(tmp_path / "x.pt"), "--plot", str(tmp_path / "out.png")]) == 0
    assert main(["eval", *[str(tmp_path / "x.pt")] * 2, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["uniformity"] is None
    assert found["alignment"] is None
    assert found["sides"][0]["bad_rows"] == 1


@pytest.mark.parametrize("dim", [2, 3, 4, 64, 768])
def test_density_of_the_uniform_distribution(dim: int) -> None:
    angle = (np.arange(200_000) + 0.5) / 200_000 * np.pi
    # In the angle there is no singularity: ds = sin(angle) d angle.
    density = uniform_density(np.cos(angle), dim) * np.sin(angle) * np.pi / 200_000
    assert density.sum() == pytest.approx(1, rel=1e-6)
    assert (density * np.cos(angle) ** 2).sum() == pytest.approx(1 / dim, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--t", "0"], "t must be a finite number > 0, got 0.0"),
        (["--alpha", "-1"], "alpha must be a finite number > 0, got -1.0"),
        (["--estimate", "3"], "columns must be at least 16, got 3"),
        (["--estimate", "--no-normalize", "--t", "1"], None),
        (["--estimate", "20", "--no-normalize"], "method='estimate' needs normalize=True"),
        (["--device", "abacus"], "device must be the name of a device such as cpu or cuda, got 'abacus'"),
        (["--device", "cuda:99"], "device cuda:99 is not here"),
        (["--device", "mps:7"], "device mps:7 is not here: "),
        (["--device", "xpu:99"], "device xpu:99 is not here: "),
        (["--device", "vulkan"], "device vulkan is not here: "),
        (["--device", "privateuseone"], "device privateuseone is not here: "),
        (["--estimate", "20", "--seed", str(2**64)], f"seed must be at most {2**64 - 1}, got {2**64}"),
        (["--seed", str(-(2**63) - 1)], f"seed must be at least {-(2**63)}, got {-(2**63) - 1}"),
        (["--backend", "abacus"], "backend='abacus' is unknown"),
        (["--block-rows", "0"], "block_rows must be at least 1, got 0"),
        (["--key", "a"], "x.npy holds one array without a name, got key 'a'"),
        (["--positives-key", "a"], "argument --positives-key: needs POSITIVES_FILE"),
        (["--plot", "out.gif"], "argument --plot: must end in .png or .svg, got 'out.gif'"),
        (["--plot", "absent/out.png"], "argument --plot: absent is no folder, got 'absent/out.png'"),
        (["--json", "absent/out.json"], "argument --json: absent is no folder, got 'absent/out.json'"),
        (["--json", "."], "argument --json: is a folder, got '.'"),
    ],
)
def test_bad_option_is_named(files, options, text, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["eval", files[0], *options])
    if text is None:  # a thousand columns of four hundred: every pair, which needs no normalisation
        assert status == 0
        return
    assert status == 2
    captured = capsys.readouterr()
    assert "hyperkern eval: error: " in captured.err
    assert text in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["absent.npy"], "absent.npy does not exist"),
        (["x.npy", "absent.npy"], "absent.npy does not exist"),
        (["x.csv"], "x.csv must end in .npy, .pt, .pth, .safetensors, got suffix '.csv'"),
        (["broken.npy"], "broken.npy cannot be read as a .npy file"),
        (["y.pt"], "y.pt holds 2 tensors, choose one by its key: y (400, 16), short (10, 16)"),
        (["y.pt", "--key", "z"], "y.pt holds no tensor of key 'z', it has y (400, 16), short (10, 16)"),
        (
            ["x.npy", "y.pt", "--positives-key", "short"],
            "positives y.pt[short] must have the shape of x.npy, (400, 16)",
        ),
        (["flat.npy"], "flat.npy must have shape (N, D), got (5,)"),
        (["integers.npy"], "integers.npy must be float64, float32, bfloat16 or float16 features, got int64"),
        (["one.npy"], "one.npy must have at least 2 rows to form a pair, got shape (1, ...)"),
        (
            ["x.npy", "double.npy"],
            "positives double.npy must have the dtype of x.npy, torch.float32, got torch.float64",
        ),
    ],
)
def test_bad_file_is_named(
    files, arguments, text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("1,2")
    Path("broken.npy").write_bytes(b"nothing of the kind")
    for name, array in {"flat": np.zeros(5), "integers": np.eye(5, dtype=np.int64), "one": np.ones((1, 3))}.items():
        np.save(f"{name}.npy", array)
    np.save("double.npy", np.ones((400, 16)))
    assert main(["eval", *arguments]) == 2
    assert f"hyperkern eval: error: {text}" in capsys.readouterr().err


def test_missing_packages_are_named(files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hyperkern.cli.eval, "find_spec", lambda name: None)
    assert main(["eval", files[0], "--plot", "out.png"]) == 1
    assert "--plot needs matplotlib; install with: pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (KeyboardInterrupt(), 130, "hyperkern eval: interrupted, nothing written"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "make it smaller with --block-rows"),
    ],
)
def test_files_survive_what_goes_wrong(
    error, status, text, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules[evaluate_module.__module__], "exact", fail)
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    out.write_text("old")
    assert main(["eval", files[0], "--json", str(out), "--plot", str(plot)]) == status
    assert out.read_text() == "old"
    assert not plot.exists()
    assert text in capsys.readouterr().err


def test_figures_that_cannot_be_drawn_leave_no_file(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> bytes:
        raise ValueError("cannot draw")

    monkeypatch.setattr("hyperkern.evaluation.plot.draw", fail)
    assert main(["eval", files[0], "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]) == 2
    assert not (tmp_path / "a.json").exists()


def test_on_a_terminal(files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["eval", *files, "--positives-key", "y"]) == 0
    captured = capsys.readouterr()
    assert "uniformity" in captured.out
    assert "y.pt[y]" in captured.out  # no markup
    assert "\x1b" in captured.err
    assert "100 %" not in captured.err


def test_without_rich_a_terminal_gets_plain_lines(
    files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "find_spec", lambda name: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["eval", files[0]]) == 0
    captured = capsys.readouterr()
    assert "hyperkern eval: 100 %" in captured.err
    assert "uniformity" in captured.out


def test_plain_progress_prints_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress_bar("command") as progress:
        for done in range(1, 1001):
            progress(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"command: {tenth}0 %" for tenth in range(1, 11)]


def test_command_line_does_not_import_what_it_may_not_need() -> None:
    code = (
        "import sys, hyperkern.cli.eval, hyperkern.evaluation; "
        "sys.exit(' '.join(m for m in ('safetensors', 'matplotlib', 'rich') if m in sys.modules) or None)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
