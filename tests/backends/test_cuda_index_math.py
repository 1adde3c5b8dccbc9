"""The C++ tests of csrc/: index math, weights, descriptors as Triton's, the emulator, clusters, failed launches."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, NVCC = shutil.which("c++"), shutil.which("nvcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


HOST = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]


def run(tmp_path: Path, source: str, *arguments: str, compiler: list = HOST) -> str:
    program = tmp_path / "test"
    subprocess.run([*compiler, *arguments, ROOT / "tests/csrc" / source, "-o", program], check=True)
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


EMULATED = ["-DHYPERKERN_EMULATED"] + [
    str(path) for path in sorted(ROOT.glob("csrc/emulator/*.cpp")) if path.name != "kernels.cpp"
]


@pytest.mark.parametrize("source", ["emulator_test.cpp", "clusters_test.cpp"])
def test_in_the_emulator(tmp_path: Path, source: str) -> None:
    """Missing synchronisation is found; rows that stream through clusters are added right, however ragged."""
    assert run(tmp_path, source, *EMULATED) == "ok\n"


def test_weights(tmp_path: Path) -> None:
    """Each number that a weight is made of, over the whole range of logits."""
    assert run(tmp_path, "weights_test.cpp", *EMULATED) == "ok\n"


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
def test_a_failed_launch_leaves_no_error(tmp_path: Path) -> None:
    assert run(tmp_path, "launch_test.cu", compiler=[NVCC, "-std=c++17", "-arch=sm_80"]) == "ok\n"


# Matrix descriptors: where a tile starts and what is next to what, in pieces of 16 bytes.
START = (1 << 14) - 1
LEADING = START << 16


def descriptors(ptx: str) -> Iterator[tuple[int, int]]:
    """The constant part of what each ``wgmma`` of a PTX text is told about its operands, 0 for one in registers."""
    constants: dict[str, int] = {}  # of what a register holds, beside addresses that only the run shows
    for line in ptx.splitlines():
        if match := re.match(r"\s*(?:add|or|mov)\.[bsu]64\s+(%\w+), ([^;]+);", line):
            register, values = match[1], match[2].split(", ")
            constants[register] = sum(constants.get(v, 0) if v.startswith("%") else int(v, 0) for v in values)
        elif match := re.match(r"\s*\S+\.[bsu]64\s+(%\w+),", line):
            constants.pop(match[1], None)
        elif match := re.match(r"\s*wgmma\.mma_async\S*\s+\{.*?\}, (\{.*?\}|%\w+), (%\w+),", line):
            yield constants.get(match[1], 0), constants[match[2]]


@pytest.fixture(scope="module")
def own_descriptors(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[tuple[int, int]]]:
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for line in run(tmp_path_factory.mktemp("csrc"), "descriptors.cpp", "-DHYPERKERN_EMULATED").splitlines():
        dim, columns, a, b = map(int, line.split())
        found.setdefault((dim, columns), []).append((a, b))
    return found


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is missing")
@pytest.mark.parametrize(("dim", "columns"), [(128, 64), (128, 128), (256, 64)])
def test_matrix_descriptors_are_those_of_triton(own_descriptors: dict, dim: int, columns: int) -> None:
    """The emulator reads a descriptor as `matrix_descriptor` writes it, right or wrong: here is another author."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, ROOT / "tests/backends/attention_ptx.py", str(dim), str(columns)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    theirs, own = list(descriptors(result.stdout)), own_descriptors[dim, columns]
    first, second = dim // 16, columns // 16  # instructions of a product
    assert len(theirs) == len(own) == first + second
    # Where the contracted index runs along rows, nobody reads the leading offset.
    assert [(a & ~LEADING, b & ~LEADING) for a, b in own[:first]] == theirs[:first]
    assert own[first:] == theirs[first:]
    # Not nothing: rows of 128 bytes with their swizzle, eight of them 1024 bytes behind the eight before.
    assert all(b >> 62 == 1 and b >> 32 & START == 64 for _, b in theirs)
