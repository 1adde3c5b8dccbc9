"""The C++ tests of csrc/: index math against brute force, and the emulator against kernels with a fault."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def run(tmp_path: Path, source: str, *arguments: str) -> str:
    program = tmp_path / "test"
    command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    subprocess.run([*command, *arguments, ROOT / "tests/csrc" / source, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_index_math(tmp_path: Path) -> None:
    """Fragments, swizzle, schedules: each pair exactly once, for every N in a wide range, without an overflow."""
    sanitizer = ["-fsanitize=undefined", "-fno-sanitize-recover"]
    probe = subprocess.run(
        [COMPILER, *sanitizer, "-x", "c++", "-", "-o", tmp_path / "probe"], input="int main(){}", text=True
    )
    assert run(tmp_path, "layout_test.cpp", *(sanitizer if probe.returncode == 0 else [])) == "ok\n"


def test_the_emulator_finds_missing_synchronisation(tmp_path: Path) -> None:
    machine = [str(path) for path in sorted(ROOT.glob("csrc/emulator/*.cpp")) if path.name != "kernels.cpp"]
    assert run(tmp_path, "emulator_test.cpp", "-DHYPERKERN_EMULATED", *machine) == "ok\n"
