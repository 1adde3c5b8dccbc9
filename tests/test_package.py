"""The package as it is installed: a pure wheel, built without torch, typed, light to import."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build_wheel(tmp_path, **environment):
    # From a copy, so that nothing left over from another build gets in, and isolated: the build environment has only
    # what pyproject.toml asks for.
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(source)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


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


@pytest.mark.slow
def test_the_cuda_switch_is_refused_while_there_is_no_extension(tmp_path):
    result = build_wheel(tmp_path, HYPERKERN_BUILD_CUDA="1")
    assert result.returncode != 0
    assert "HYPERKERN_BUILD_CUDA is reserved" in result.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_import_pulls_in_only_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import hyperkern, hyperkern.integrations.align_uniform;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "['hyperkern']"


def test_command_line_entry_point():
    # The command stands beside the interpreter of the environment that the package is installed in.
    command = Path(sys.executable).parent / "hyperkern"
    result = subprocess.run([command, "info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "reference" in result.stdout
    assert subprocess.run([command], capture_output=True).returncode == 2
