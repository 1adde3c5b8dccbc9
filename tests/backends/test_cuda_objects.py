"""The kernels in the built extension: on the tensor cores, without spills, within every limit, on the stable ABI."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from hyperkern.backends.common.report import cuobjdump, in_loops_with, instructions
from hyperkern.backends.cuda.report import LIBRARY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA extension is not built"),
]
PORTABLE_SHARED, SM90_SHARED = 99 << 10, 227 << 10
REGISTERS = 64 << 10  # of a multiprocessor


@pytest.fixture(scope="module")
def rows(once: Callable[[str, Callable[[], str]], str]) -> list[dict]:
    """The report of a process of its own, which loads the library."""
    if cuobjdump() is None:
        pytest.skip("cuobjdump is missing: it comes with Triton and with the CUDA toolkit")

    def report_of_all() -> str:
        command = [sys.executable, "-m", "hyperkern.backends.cuda.report", "--json"]
        result = subprocess.run(command, capture_output=True, text=True)
        if "OSError" in result.stderr:
            pytest.skip(f"this PyTorch cannot load the extension: {result.stderr.splitlines()[-1]}")
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    found = json.loads(once("cuda_report", report_of_all))
    assert found
    return found


def named(rows: list[dict], *endings: str) -> list[dict]:
    return [row for row in rows if row["kernel"].endswith(endings)]


def test_every_launched_kernel_is_there(rows: list[dict]) -> None:
    # Three dimensions and five weights of contract, eight tasks of sums.
    of_architecture = {row["architecture"] for row in rows}
    assert of_architecture <= {"sm_80", "sm_90a"}
    for architecture in of_architecture:
        here = [row for row in rows if row["architecture"] == architecture]
        wgmma = architecture == "sm_90a"
        # With wgmma: two operands; four tasks have rows that are resident or streamed.
        assert len(named(here, "_wgmma")) == (2 * (3 * 5 + 9 + 4) if wgmma else 0)
        assert len(named(here, "_mma")) == (2 if wgmma else 4) * (3 * 5 + 9)
        row_wise = {"prepare", "finish", "prepare_views", "combine", "finish_views"}
        assert row_wise | {"prepare_loss", "head", "class_head", "finish_loss"} <= {row["kernel"] for row in here}


def test_products_are_on_the_tensor_cores(rows: list[dict]) -> None:
    assert [row for row in named(rows, "_wgmma") if row["hgmma"] == 0 or row["hmma"] > 0] == []
    assert [row for row in named(rows, "_mma") if row["hmma"] == 0 or row["hgmma"] > 0] == []
    assert [row for row in named(rows, "_wgmma", "_mma") if row["loop"] == 0] == []


def test_no_loop_of_products_spills(rows: list[dict]) -> None:
    # Of float32 in three products, whose sums leave the tensor cores: two loads among thousands of instructions.
    split = [row for row in rows if row["operand"] == "float32"]
    assert [row for row in split if row["loop_local"] > 2 or row["stack_bytes"] > 16] == []
    # Of stored weights of classes: six registers among 3,700 instructions, of a kernel that no other loss has.
    classes = [row for row in rows if row["operand"] != "float32" and row["problem"] == "store classes"]
    assert [row for row in classes if row["loop_local"] > 18 or row["stack_bytes"] > 24] == []
    others = [row for row in rows if row["operand"] != "float32" and row not in classes]
    assert [row for row in others if row["loop_local"] > 0] == []
    # The loss of the main job has none anywhere.
    assert [row for row in others if row["problem"] in ("exp", "sum exp") and row["stack_bytes"] > 0] == []


def test_no_loop_of_products_waits_for_memory() -> None:
    """An arrival at another block's barrier that hands over what was written waits for every access of the thread."""
    if cuobjdump() is None:
        pytest.skip("cuobjdump is missing: it comes with Triton and with the CUDA toolkit")
    waits = {
        name: [code[i].opcode for i in in_loops_with(code, ("HGMMA",)) if code[i].opcode.startswith("MEMBAR")]
        for (_, name), code in instructions(LIBRARY)
        if "_wgmma_kernel" in name
    }
    assert {name: found for name, found in waits.items() if found} == {}


def test_exponentials_run_beside_the_second_product(rows: list[dict]) -> None:
    contract = [row for row in rows if row["kernel"] == "contract_wgmma"]
    assert [row for row in contract if row["late"] > 0] == []


def test_blocks_fit(rows: list[dict]) -> None:
    assert [row for row in rows if row["registers"] > 255 or row["registers"] * row["threads"] > REGISTERS] == []
    products = named(rows, "_mma", "_wgmma")
    assert [row for row in products if row["threads"] == 0 or row["shared_bytes"] == 0] == []
    assert [row for row in named(rows, "_mma") if row["shared_bytes"] > PORTABLE_SHARED] == []
    assert [row for row in named(rows, "_wgmma") if row["shared_bytes"] > SM90_SHARED] == []


def test_the_library_is_small() -> None:
    assert LIBRARY.stat().st_size < 30 << 20


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is missing")
def test_the_library_needs_the_stable_abi_only() -> None:
    command = ["nm", "-D", "--undefined-only", str(LIBRARY)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    needed = [line.split()[-1] for line in lines if " U " in line]
    # Symbols without a version are PyTorch's; the others come with the C and C++ libraries.
    of_torch = [name for name in needed if "@" not in name]
    assert any(name.startswith("aoti_torch_") for name in of_torch)
    assert [name for name in of_torch if not name.startswith(("aoti_", "torch_"))] == []
    versions = {name.split("@")[-1].split("_")[0] for name in needed if "@" in name}
    assert versions <= {"GLIBC", "GCC", "GLIBCXX", "CXXABI"}
