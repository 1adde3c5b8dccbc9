"""The data files of the Triton backend: complete, readable, and what is found in them."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from hyperkern.backends.triton import config
from hyperkern.backends.triton.config import Architecture, Config, Entry

ROOT = Path(__file__).parent.parent.parent
SHIPPED = config.shipped()
each_file = pytest.mark.parametrize("architecture", SHIPPED, ids=lambda architecture: architecture.name)


def test_shipped_architectures() -> None:
    assert [architecture.name for architecture in SHIPPED] == ["sm_80", "sm_86", "sm_90", "sm_100"]


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 9), "sm_86"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((12, 0), "sm_86"),
    ],
)
def test_every_gpu_has_a_file(capability: tuple[int, int], name: str) -> None:
    assert config.of_capability(capability).name == name


@each_file
@pytest.mark.parametrize("operand", ["bfloat16", "float16", "tf32", "float32"])
@pytest.mark.parametrize("mode", ["exp", "bounded", "running", "softplus"])
@pytest.mark.parametrize("dim", [1, 16, 64, 65, 128, 200, 256, 384, 768, 1024, 4096, 16384])
def test_every_problem_finds_its_kernels(architecture: Architecture, operand: str, mode: str, dim: int) -> None:
    one_pass = config.find(architecture, "contract", operand, dim, mode)
    # float32 takes twice the registers and shared memory, so that panels begin at a shorter row.
    assert (one_pass is not None) == (dim <= {"float32": 64, "tf32": 128}.get(operand, 256))
    for kernel in ("sums", "panel", *(("two_way",) if mode == "exp" and operand != "float32" else ())):
        assert config.find(architecture, kernel, operand, dim, mode) is not None


@each_file
@pytest.mark.parametrize("dim", [16, 64, 65, 256, 1024])
def test_sums_and_weights_of_float32_add_up_in_the_same_steps(architecture: Architecture, dim: int) -> None:
    """Of three products each step's sum is rounded on its own: a logit has the same last bit in both kernels."""
    sums = config.find(architecture, "sums", "float32", dim, "running")
    one_pass = config.find(architecture, "contract", "float32", dim, "running")
    weights = one_pass or config.find(architecture, "panel", "float32", dim, "running")
    assert sums is not None
    assert weights is not None
    assert sums.block_d == weights.block_d


@each_file
def test_entries_keep_what_the_kernels_rely_on(architecture: Architecture) -> None:
    for entry in architecture.entries:
        choice = entry.config
        for size in (choice.block_m, choice.block_n, choice.num_warps, choice.block_d or 16):
            assert size & (size - 1) == 0
        assert min(choice.block_m, choice.block_n, choice.block_d or 16) >= 16
        if entry.kernel == "contract":
            assert choice.block_d is None
        if entry.kernel == "sums":  # a triangle of tiles needs squares on its diagonal
            assert choice.block_m % choice.block_n == 0
        if entry.kernel == "two_way":
            assert choice.block_n % choice.block_m == 0


@each_file
def test_a_checked_file_names_its_committed_result(architecture: Architecture) -> None:
    if architecture.checked:
        assert (ROOT / architecture.checked).is_file()


def test_the_nearest_entry_serves() -> None:
    small, large, own = Config(64, 64, None, 4, 2), Config(128, 64, None, 8, 2), Config(128, 128, None, 8, 3)
    entries = (
        Entry("contract", "bfloat16", 256, None, large),
        Entry("contract", "bfloat16", 64, None, small),
        Entry("contract", "bfloat16", 64, "exp", own),
    )
    architecture = Architecture("sm_90", 1, 1, "", entries)
    found = [config.find(architecture, "contract", "bfloat16", dim, "running") for dim in (3, 64, 65, 256, 257)]
    assert found == [small, small, large, large, None]
    assert config.find(architecture, "contract", "float16", 3, "exp") == own
    assert config.find(architecture, "contract", "bfloat16", 65, "exp") == large
    assert config.find(architecture, "contract", "tf32", 3, "exp") is None


@each_file
def test_files_are_written_as_they_are_read(architecture: Architecture, tmp_path: Path) -> None:
    path = tmp_path / f"{architecture.name}.json"
    config.write(architecture, path)
    assert config.read(path) == architecture
    assert path.read_text() == (config.FOLDER / path.name).read_text()


@pytest.mark.parametrize(
    "text", ["", "{}", '{"entries": [5]}', '{"entries": [{"kernel": "sums"}]}', '{"entries": [], "unknown": 1}']
)
def test_a_broken_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "sm_90.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"sm_90.json is no configuration file"):
        config.read(path)
