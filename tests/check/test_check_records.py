"""Where it is kept what a check has found: whose records count, and homes that cannot be written to."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from check_calls import CPU, SCOPE, forget, x

import hyperkern
from hyperkern import backends
from hyperkern.check import records
from hyperkern.check.scope import Scope
from hyperkern.cli import main

pytest_plugins = ["check_fixtures"]


@pytest.mark.parametrize("field", ["device", "capability", "driver", "torch", "triton", "digest"])
def test_a_record_of_something_else_does_not_count(
    field: str, fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("right")
    hyperkern.uniformity(x())
    forget()
    backends.chosen.cache_clear()
    other = records.machine("fake", CPU)._replace(**{field: "another"})
    monkeypatch.setattr(records, "machine", functools.lru_cache(lambda backend, device: other))
    hyperkern.uniformity(x())
    assert len(checked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"status": "passed"', '"status": "splendid"'),
        lambda text: text.replace('"date": "2', '"date": "x'),
        lambda text: text.replace("bfloat16-64", "bfloat16"),
        lambda text: text.replace('"cases": 1', '"cases": 1, "more": 1'),
        lambda text: text.replace('"device": "cpu"', '"device": "gpu"'),
        lambda text: "\0\xff",
    ],
)
def test_a_damaged_record_does_not_count(damage: Callable, fake: Callable, checked: list) -> None:
    fake("right")
    hyperkern.uniformity(x())
    path = records.path_of(records.machine("fake", CPU))
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    forget()
    backends.chosen.cache_clear()
    hyperkern.uniformity(x())
    assert len(checked) == 2
    assert json.loads(path.read_text())["scopes"].keys() == {SCOPE.key}


@pytest.mark.parametrize("file", ["backends/triton/tile.py", "backends/host/panels.py", "correctness/cases.py"])
def test_kernels_of_another_source_are_others(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    copy = shutil.copytree(Path(hyperkern.__file__).parent, tmp_path / "hyperkern", ignore=ignored)
    monkeypatch.setattr(records, "_PACKAGE", copy)
    before = records.digest.__wrapped__("triton")
    (copy / file).write_text((copy / file).read_text() + "\n")
    assert records.digest.__wrapped__("triton") != before


def test_a_compiled_extension_beside_the_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_PACKAGE", tmp_path)  # as in a build for the kernels hub
    before = records.digest.__wrapped__("cuda")
    (tmp_path / "_hyperkern_cuda_a1b2c3d.abi3.so").write_bytes(b"machine code")
    assert records.digest.__wrapped__("cuda") != before


def test_no_memory_counts_for_an_hour(fake: Callable, checked: list) -> None:
    fake("right")
    machine = records.machine("fake", CPU)
    record = records.Record("no memory", "none left", "2020-01-01T00:00:00+00:00", 1.0, 0, 0.0)
    records.write(machine, {SCOPE: record})
    assert records.read(machine) == {}
    records.write(machine, {SCOPE: record._replace(date=records.now())})
    assert records.read(machine)[SCOPE.key].status == "no memory"
    # Nor does it if not even the compilers came to an end; a kernel that hangs hangs again.
    records.write(machine, {SCOPE: record._replace(status="timed out")})
    assert records.read(machine) == {}
    records.write(machine, {SCOPE: record._replace(status="timed out", cases=1)})
    assert records.read(machine)[SCOPE.key].status == "timed out"
    records.write(machine, {SCOPE: record._replace(status="failed")})
    assert records.read(machine)[SCOPE.key].age.endswith("days ago")


def test_a_home_that_cannot_be_written_to(
    fake: Callable, checked: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("right")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # not even root makes a folder in it
    for _ in range(2):
        hyperkern.uniformity(x())
    hyperkern.alignment(x(), x())
    backends.chosen.cache_clear()
    hyperkern.uniformity(x())
    assert len(checked) == 1
    assert module.calls.count("loss") == 3


def test_nobody_has_a_home(fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("right")
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    hyperkern.uniformity(x())
    assert len(checked) == 1


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert records.folder() == Path.home() / ".cache" / "hyperkern" / "checks"


def test_info_shows_what_is_known_and_how_old_it_is(
    fake: Callable, checked: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake("right")
    machine = records.Machine("fake", "NVIDIA H200", "9.0", "580.1", "2.14", "3.8", "0")
    monkeypatch.setattr(records, "machine", lambda backend, device: machine)
    for name, value in (("device_count", 1), ("get_device_name", "NVIDIA H200"), ("get_device_capability", (9, 0))):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert main(["info"]) == 0
    assert "NVIDIA H200: not checked yet, which the first call does, or `hyperkern check`" in capsys.readouterr().out
    record = records.Record("passed", "", records.now(), 1.0, 46, 0.68)
    old = record._replace(status="failed", reason="clip (127 × 300): wrong", date="2020-01-01T00:00:00+00:00")
    records.write(machine, {SCOPE: record, Scope("tf32", 0): old})
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for said in (
        r"fake +cuda +usable where it has been found right",
        r"H200: bfloat16 products with D up to 64: passed 46 cases, 68 % of the allowed error at most \(just now\)",
        r"H200: tf32 products with D above 256: failed: clip \(127 × 300\): wrong \(\d+ days ago\)",
    ):
        assert re.search(said, printed), printed
    assert checked == []  # asking for information checks nothing
