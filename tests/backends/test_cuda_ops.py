"""The compiled operators: what they refuse, schemas and fakes, and how the library is found."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEVICE, needs_cuda_kernels, on_device
from torch import Tensor

import hyperkern
from hyperkern import backends
from hyperkern.backends.cuda import library, operands

ROOT = Path(__file__).parents[2]
EXTENSION = library.objection("cuda")
needs_extension = pytest.mark.skipif(EXTENSION is not None, reason=f"the extension {EXTENSION}")


def placed(value: Tensor) -> Tensor:
    """On `DEVICE`, with its strides and its offset, which a copy would leave behind."""
    elements = value.untyped_storage().nbytes() // value.element_size()
    storage = torch.empty(elements, dtype=value.dtype, device=DEVICE)
    return storage.as_strided(value.shape, value.stride(), value.storage_offset()).copy_(value)


def operators() -> Any:
    return library.ops(torch.device(DEVICE))


def contract_arguments(m: int = 5, n: int = 7, dim: int = 16, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    x, y = (torch.randn(2, rows, dim, device=DEVICE).to(dtype) for rows in (m, n))
    return {
        **{"x": x, "y": y, "row_terms": None, "col_terms": None, "row_ids": None, "col_ids": None},
        **{
            "exclude": 1,
            "row_shift": 0,
            "views": 1,
            "sides": (0, 0, m, n, 1, 1),
            "scale": 4.0,
            "offset": 0.0,
            "rounded": False,
            "weight": 0,
            "split": False,
        },
        **{"out_scale": 1.0, "grad": torch.empty(2 * m, dim, device=DEVICE)},
        **{"sum": torch.empty(2 * m, device=DEVICE), "value": None},
    }


def sums_arguments(m: int = 5, n: int = 7, dim: int = 16, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    x, y = (torch.randn(2, rows, dim, device=DEVICE).to(dtype) for rows in (m, n))
    return {
        **{"x": x, "y": y, "row_terms": None, "col_terms": None, "row_ids": None, "col_ids": None},
        **{
            "exclude": 0,
            "row_shift": 0,
            "views": 1,
            "sides": (0, 0, m, n, 1, 1),
            "scale": 4.0,
            "offset": 0.0,
            "rounded": False,
            "task": 0,
            "split": False,
            "triangle": False,
        },
        **{"stripes": 1, "cuts": 1, "row": torch.empty(1, 2, m, device=DEVICE)},
        **{"row_second": None, "col": None, "weights": None},
    }


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


BAD_CONTRACT = [
    ({"x": torch.randn(5, 16).bfloat16()}, r"x must have shape \(batch, rows, D\), got \(5, 16\)"),
    ({"y": torch.randn(2, 7, 8)}, "y must be BFloat16, got Float"),
    ({"y": torch.randn(2, 7, 8).bfloat16()}, r"y must have shape \(2, N, 16\), got \(2, 7, 8\)"),
    (
        {"x": torch.randn(2, 5, 16).double(), "y": torch.randn(2, 7, 16).double()},
        "x must be bfloat16, float16 or float32",
    ),
    (
        {"x": torch.randn(2, 16, 5).bfloat16().mT},
        "x must have rows that are contiguous, not expanded, and start and end at multiples",
    ),
    (
        {"x": torch.randn(2, 5, 20).bfloat16()[..., 4:]},
        "x must have rows that are contiguous, not expanded, and start and end",
    ),
    ({"grad": torch.empty(10, 8)}, r"grad must have shape \(10, 16\), got \(10, 8\)"),
    ({"grad": torch.empty(16, 10).mT}, "grad must be contiguous"),
    ({"sum": torch.empty(10).double()}, "sum must be Float, got Double"),
    ({"sides": (0, 0, 5, 7, 1)}, "sides has six numbers for each of at most 3, got 5"),
    ({"sides": (0, 0, 5, 7, 1, 1, 1, 0, 5, 7, 1, 1)}, r"side 1 is not within the rows of x \(2, 5, 16\)"),
    ({"sides": (0, 0, 5, 7, 0, 1), "weight": 1, "col_terms": torch.zeros(2, 2, 200)}, "only exponentials have sides"),
    ({"views": 3}, "views must be 1, or 2 without a row_shift, got 3"),
    ({"weight": 5}, "weight must be between 0 and 4, got 5"),
    ({"weight": 1}, "weight 1 needs col_terms"),
    ({"weight": 4}, "row_ids is missing"),
    ({"weight": 4, "exclude": 2}, "classes take the place of other ids"),
    ({"weight": 4, "row_terms": torch.zeros(2, 5, 5)}, r"row_terms must have shape \(2, at least 6, at least 5\)"),
    ({"sides": (0, 0, 5, 7, 1, 0)}, "cuts must be at least 1, got 0"),
    (
        {"sides": (0, 0, 5, 7, 1, 2**31 - 1)},
        "there are too many blocks of threads: 2 problems times 1 times 2147483647 cuts",
    ),
    ({"exclude": 3}, r"exclude must be 0 \(none\), 1 \(self\) or 2 \(same id\), got 3"),
    ({"exclude": 2}, "row_ids is missing"),
    ({"exclude": 2, "row_ids": ids(2, 5), "col_ids": ids(2, 5)}, r"col_ids must have shape \(2, 7\), got \(2, 5\)"),
    ({"exclude": 2, "row_ids": ids(2, 5).int(), "col_ids": ids(2, 7)}, "row_ids must be Long, got Int"),
    ({"row_terms": torch.zeros(2, 1, 5)}, r"row_terms must have shape \(2, at least 2, at least 5\)"),
    ({"weight": 1, "col_terms": torch.zeros(2, 2, 8)}, r"col_terms must have shape \(2, at least 2, at least \d+\)"),
]


@needs_cuda_kernels
@on_device
@pytest.mark.parametrize(("change", "message"), BAD_CONTRACT, ids=lambda value: value if isinstance(value, str) else "")
def test_contract_refuses(change: dict[str, Any], message: str) -> None:
    moved = {name: placed(value) if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(RuntimeError, match=message):
        operators().contract(**(contract_arguments() | moved))


@needs_cuda_kernels
@on_device
def test_contract_refuses_long_rows() -> None:
    with pytest.raises(RuntimeError, match="D must be at most 256, got 264"):
        operators().contract(**contract_arguments(dim=264))


BAD_SUMS = [
    ({"task": 9}, "task must be between 0 and 8, got 9"),
    ({"task": 7}, "row_ids is missing"),
    (
        {"task": 7, "row_ids": ids(2, 5), "col_ids": ids(2, 7)},
        r"row must have shape \(1, 6, 5\), got \(1, 2, 5\)",
    ),
    (
        {"task": 8, "row_ids": ids(2, 5), "col_ids": ids(2, 7)},
        "task 8 needs col_terms",
    ),
    ({"task": 2}, "task 2 needs row_second"),
    (
        {"task": 2, "row_second": torch.empty(1, 2, 5), "col": torch.empty(2, 2, 7)},
        "running maximum has no column sums",
    ),
    ({"task": 3}, "weights are given to the tasks that store them"),
    ({"weights": torch.empty(2, 5, 7).bfloat16()}, "weights are given to the tasks that store them"),
    ({"task": 3, "weights": torch.empty(2, 5, 7).bfloat16()}, "weights must have rows that start at multiples of 16"),
    ({"triangle": True}, "a triangle has as many rows as columns"),
    ({"stripes": 2}, "stripes must be between 1 and the number of row blocks"),
    ({"cuts": -1}, "cuts must be between 0 and"),
    ({"cuts": 2**31 - 1}, "there are too many blocks of threads: 2 problems times 1 times 2147483647 cuts"),
    ({"col": torch.empty(9, 2, 7)}, r"col must have shape \(2, 2, 7\), got \(9, 2, 7\)"),
]


@needs_cuda_kernels
@on_device
@pytest.mark.parametrize(("change", "message"), BAD_SUMS, ids=lambda value: value if isinstance(value, str) else "")
def test_sums_refuses(change: dict[str, Any], message: str) -> None:
    moved = {name: placed(value) if isinstance(value, Tensor) else value for name, value in change.items()}
    with pytest.raises(RuntimeError, match=message):
        operators().sums(**(sums_arguments() | moved))


@needs_cuda_kernels
@on_device
def test_sums_refuses_half_a_cluster() -> None:
    arguments = sums_arguments(dim=272) | {"row": torch.empty(3, 2, 5, device=DEVICE), "cuts": 3}
    if operands.tile(arguments["x"], "sums", operands.Weight.EXP).cluster == 1:
        pytest.skip("there are no clusters before sm_90")
    with pytest.raises(RuntimeError, match="cuts must be a multiple of the 2 blocks of threads of a cluster, got 3"):
        operators().sums(**arguments)


@needs_cuda_kernels
@on_device
def test_schemas_and_fakes() -> None:
    """What an operator writes is what its schema says, and its fake agrees."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(operators().contract.default, (), contract_arguments(), test_utils=checks)
    torch.library.opcheck(operators().sums.default, (), sums_arguments(), test_utils=checks)
    x = torch.randn(2, 5, 16, device=DEVICE)
    unit, rstd = torch.empty_like(x), torch.empty(2, 5, device=DEVICE)
    torch.library.opcheck(operators().normalize_rows.default, (x, 1e-12, unit, rstd), test_utils=checks)
    torch.library.opcheck(
        operators().normalize_rows_backward.default, (x, x.clone(), rstd, 1e-12, unit), test_utils=checks
    )


@needs_extension
@pytest.mark.parametrize(
    "name",
    [
        *("contract", "sums", "tile", "normalize_rows", "normalize_rows_backward", "prepare_views", "combine"),
        *("prepare_loss", "head", "finish_loss"),
    ],
)
def test_the_extension_answers_cpu_tensors(name: str) -> None:
    """Built and loaded without a GPU; a CPU tensor gets a sentence, not the dispatcher's list of keys."""
    operator = getattr(library.ops(torch.device("cuda")), name)
    x = torch.randn(2, 5, 16)
    samples = {"Tensor": x, "int": 0, "float": 1.0, "bool": False, "List[int]": ()}
    arguments = [
        None if str(argument.type).startswith("Optional") else samples[str(argument.type)]
        for argument in operator.default._schema.arguments
    ]
    with pytest.raises(RuntimeError, match="must be on a CUDA device, but it is on the CPU"):
        operator(*arguments)


@needs_extension
@needs_cuda_kernels
def test_extension_and_emulator_have_the_same_operators() -> None:
    if DEVICE == "cuda":
        pytest.skip("there is no emulator beside a GPU")

    def schemas(namespace: str) -> set[str]:
        found = {s.name: str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{namespace}::")}
        return {text.removeprefix(namespace) for text in found.values()}

    emulated = schemas("hyperkern_cuda_emulated")
    assert len(emulated) >= 8
    of_emulator = "::emulate(int capability, bool products_first, bool launches) -> ()"
    assert emulated - schemas("hyperkern_cuda") == {of_emulator}
    assert schemas("hyperkern_cuda") <= emulated


def test_a_missing_library_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen_anew: None
) -> None:
    libraries = {kind: (tmp_path / path.name, *rest) for kind, (path, *rest) in library._LIBRARIES.items()}
    monkeypatch.setattr(library, "_LIBRARIES", libraries)
    library._loaded.cache_clear()
    try:
        assert "HYPERKERN_BUILD_CUDA=1 pip install" in str(library.objection("cuda"))
        assert "HYPERKERN_BUILD_EMULATOR=1 pip install" in str(library.objection("cpu"))
        on_cpu = backends.Problem("prepare", torch.device("cpu"), torch.float32, 8)
        assert "the extension is not built: in a checkout, with nvcc" in backends.load("cuda").unsupported(on_cpu)[1]
        assert (
            "needs a CUDA device, got mps"
            in backends.load("cuda").unsupported(on_cpu._replace(device=torch.device("mps")))[0]
        )
        assert "needs a CUDA device, got mps" in str(library.objection("mps"))
        with pytest.raises(ValueError, match=r"backend='cuda' cannot compute .*needs a GPU"):
            hyperkern.uniformity(torch.randn(4, 3), backend="cuda")
        (tmp_path / "kernels.so").write_text("not a library")
        library._loaded.cache_clear()
        assert "cannot be loaded by PyTorch" in str(library.objection("cuda"))
    finally:
        monkeypatch.undo()
        library._loaded.cache_clear()


@needs_cuda_kernels
@on_device
def test_expanded_rows_are_copied() -> None:
    x = torch.randn(1, 5, 16, device=DEVICE, dtype=torch.bfloat16).expand(3, 5, 16)
    assert min(operands.rows(x, torch.bfloat16).stride()) > 0
    with pytest.raises(RuntimeError, match="not expanded"):
        operators().sums(**(sums_arguments() | {"x": x[:2], "y": x[:2], "sides": (0, 0, 5, 5, 1, 1)}))


@pytest.mark.skipif(shutil.which("nvcc") is None or torch.version.cuda is None, reason="needs nvcc and PyTorch's CUDA")
def test_plain_hopper_is_built_with_its_features() -> None:
    """Many images preset TORCH_CUDA_ARCH_LIST without them, and would get kernels without wgmma."""
    built = {
        "9.0": "_902",
        "8.0;9.0+PTX": "_800_902_",
        "Hopper": "_902",
        "8.6 9.0a": "_860_902",
        "10.0": "_1000",
    }
    program = f"""
import os, runpy, setuptools
found = []
setuptools.setup = lambda **options: found.extend(options["ext_modules"])
for wanted in {list(built)!r}:
    os.environ["TORCH_CUDA_ARCH_LIST"] = wanted
    found.clear()
    runpy.run_path({str(ROOT / "setup.py")!r})
    print(next(flag for flag in found[0].extra_compile_args["nvcc"] if "ARCHITECTURES" in flag))
"""
    environment = os.environ | {"HYPERKERN_BUILD_CUDA": "1"}
    environment.pop("HYPERKERN_BUILD_EMULATOR", None)
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert len(lines) == len(built)
    for line, codes in zip(lines, built.values(), strict=True):
        assert codes in line + "_"


@needs_cuda_kernels
def test_the_emulator_is_never_chosen_by_itself() -> None:
    if DEVICE == "cuda":
        pytest.skip("there is no emulator beside a GPU")
    problem = backends.Problem("prepare", torch.device("cpu"), torch.float32, 8)
    assert backends.load("cuda").unsupported(problem) == []
    assert "the emulator is for tests" in backends.load("cuda").unverified(problem)[0]
    assert backends.select(None, problem) is not backends.load("cuda")
    assert math.isfinite(hyperkern.uniformity(torch.randn(9, 3), backend="cuda").item())


def test_a_committed_result_is_named_by_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = backends.load("cuda")
    problem = backends.Problem("prepare", torch.device("cuda", 0), torch.float32, 8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert all((ROOT / path).exists() for path in cuda.CHECKED.values())
    assert cuda.unverified(problem) == []
    monkeypatch.setattr(cuda, "CHECKED", {})
    assert cuda.evidence(problem.device) == ""
    monkeypatch.setattr(cuda, "CHECKED", {(9, 0): "benchmarks/results/some-gpu/commit-cuda.json"})
    assert cuda.evidence(problem.device) == "benchmarks/results/some-gpu/commit-cuda.json"
    if EXTENSION is None:
        assert cuda.unsupported(problem) == []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
        assert "needs compute capability 8.0 or more, cuda:0 has 7.5" in cuda.unsupported(problem)[0]
