"""The kernels in the built extension: on the tensor cores, without spills, within every limit, on the stable ABI."""

import shutil
import subprocess

import pytest

from tools.kernels.cuda import LIBRARY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY.exists(), reason="the CUDA extension is not built"),
]
PORTABLE_SHARED, SM90_SHARED = 99 << 10, 227 << 10
REGISTERS = 64 << 10  # of a multiprocessor


def named(rows: list[dict], *endings: str) -> list[dict]:
    return [row for row in rows if row["kernel"].endswith(endings)]


def test_every_launched_kernel_is_there(cuda_report: list[dict]) -> None:
    # Three dimensions, with wgmma four, and five weights of contract, nine tasks of sums.
    of_architecture = {row["architecture"] for row in cuda_report}
    assert of_architecture <= {"sm_80", "sm_90"}
    for architecture in of_architecture:
        here = [row for row in cuda_report if row["architecture"] == architecture]
        wgmma = architecture == "sm_90"
        # With wgmma: two operands; four tasks have rows that are resident, of three dimensions, or streamed.
        assert len(named(here, "_wgmma")) == (2 * (4 * 5 + 9 + 4 * 3) if wgmma else 0)
        assert len(named(here, "_mma")) == (2 if wgmma else 4) * (3 * 5 + 9)
        row_wise = {"prepare", "normalize_backward", "prepare_views", "combine", "finish_views"}
        assert row_wise | {"prepare_loss", "head", "class_head", "finish_loss"} <= {row["kernel"] for row in here}


def test_products_are_on_the_tensor_cores(cuda_report: list[dict]) -> None:
    for ending in ("_wgmma", "_mma"):
        assert {row["instruction"] for row in named(cuda_report, ending)} <= {ending[1:]}
    assert [row for row in named(cuda_report, "_wgmma", "_mma") if row["matrix"] == 0 or row["per_pair"] <= 1] == []


def test_no_loop_of_products_spills(cuda_report: list[dict]) -> None:
    # Of float32 in three products, whose sums leave the tensor cores: two loads among thousands of instructions.
    split = [row for row in cuda_report if row["operand"] == "float32"]
    assert [row for row in split if row["loop_spills"] > 2 or row["spill_bytes"] > 16] == []
    # Of stored weights of classes: six registers among 3,700 instructions, of a kernel that no other loss has.
    classes = [row for row in cuda_report if row["operand"] != "float32" and row["problem"] == "store classes"]
    assert [row for row in classes if row["loop_spills"] > 18 or row["spill_bytes"] > 24] == []
    others = [row for row in cuda_report if row["operand"] != "float32" and row not in classes]
    assert [row for row in others if row["loop_spills"] > 0] == []
    # The loss of the main job has none anywhere.
    assert [row for row in others if row["problem"] in ("exp", "sum exp") and row["spill_bytes"] > 0] == []


def test_no_loop_of_products_waits_for_memory(cuda_report: list[dict]) -> None:
    # An arrival at another block's barrier that hands over what was written waits for every access of the thread.
    assert [row for row in named(cuda_report, "_wgmma") if row["loop_fences"]] == []


def test_blocks_fit(cuda_report: list[dict]) -> None:
    of_block = [(row["registers"], row["registers"] * row["warps"] * 32) for row in cuda_report]
    assert [each for each in of_block if each[0] > 255 or each[1] > REGISTERS] == []
    products = named(cuda_report, "_mma", "_wgmma")
    assert [row for row in products if row["warps"] == 0 or row["shared_bytes"] == 0] == []
    assert [row for row in named(cuda_report, "_mma") if row["shared_bytes"] > PORTABLE_SHARED] == []
    assert [row for row in named(cuda_report, "_wgmma") if row["shared_bytes"] > SM90_SHARED] == []


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
