"""The package as it is installed: a pure wheel, built without torch, typed, light to import."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build_wheel(tmp_path, *options, **environment):
    # From a copy, so that nothing left over from another build gets in, and isolated: the build environment has only
    # what pyproject.toml asks for.
    source = shutil.copytree(
        ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so")
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONWARNINGS": "default", **environment}  # those of pip are not ours
    return subprocess.run([*command, *options, str(source)], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_wheel_is_pure_and_complete(tmp_path):
    # Were torch needed to build, it would be missing from the isolated environment.
    assert "torch" not in (ROOT / "pyproject.toml").read_text().split("[project]")[0]
    result = build_wheel(tmp_path, HYPERKERN_BUILD_CUDA="")
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "hyperkern").rglob("*.py")}
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "hyperkern").rglob("*.json")}
    assert configs
    assert sources | configs | {"hyperkern/py.typed"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


@pytest.mark.parametrize(("value", "expected"), [("1", ["torch>=2.10", "ninja"]), ("0", []), (None, [])])
def test_compiling_asks_for_torch_and_nothing_else_does(value, expected):
    environment = {name: v for name, v in os.environ.items() if not name.startswith("HYPERKERN_BUILD")}
    if value is not None:
        environment["HYPERKERN_BUILD_CUDA"] = value
    program = (
        "import os, sys; sys.path.insert(0, 'csrc'); before = dict(os.environ); import build_backend;"
        "required = build_backend.get_requires_for_build_wheel();"
        "assert before.items() <= os.environ.items(); assert 'torch' not in sys.modules; print(required)"
    )
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    assert output.splitlines()[-1] == str(expected)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compiled_wheel_holds_its_library(tmp_path):
    # In place: what `make build` compiled is up to date.
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(tmp_path / "lib")]
    command += ["--build-temp", "build/emulator"]
    command += ["bdist_wheel", "--skip-build", "--bdist-dir", str(tmp_path / "bdist"), "--dist-dir", str(tmp_path)]
    environment = {**os.environ, "HYPERKERN_BUILD_CUDA": "", "HYPERKERN_BUILD_EMULATOR": "1", "PYTHONWARNINGS": ""}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "none-any" not in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if name.endswith(".so")] == ["hyperkern/backends/cuda/emulator.so"]
    assert "hyperkern/py.typed" in names


def test_setup_stays_small():
    assert len((ROOT / "setup.py").read_text().splitlines()) < 80


def test_import_pulls_in_only_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import hyperkern, hyperkern.integrations.align_uniform;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['hyperkern']"


def test_import_leaves_evaluation_until_it_is_asked_for():
    program = (
        "import sys, torch; before = set(sys.modules); import hyperkern; assert 'evaluate' in dir(hyperkern);"
        "new = set(sys.modules) - before;"
        "print([m for m in new if m.split('.')[0] in ('statistics', 'numpy', 'matplotlib', 'rich', 'safetensors')]);"
        "print([m for m in new if m.startswith(('hyperkern.evaluation', 'hyperkern.bench', 'hyperkern.correctness'))]);"
        "print(hyperkern.evaluation.open_features.__module__, hyperkern.evaluate.__module__);"
        "print(hyperkern.Evaluation is hyperkern.evaluation.Evaluation, not hasattr(hyperkern, 'nonsense'));"
        "from hyperkern import *; print(evaluate is hyperkern.evaluate)"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    modules = "hyperkern.evaluation.sources hyperkern.evaluation.evaluate"
    assert output.splitlines() == ["[]", "[]", modules, "True True", "True"]


def test_command_line_entry_point():
    # The command stands beside the interpreter of the environment that the package is installed in.
    command = Path(sys.executable).parent / "hyperkern"
    result = subprocess.run([command, "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "reference" in result.stdout
    assert subprocess.run([command], capture_output=True).returncode == 2
