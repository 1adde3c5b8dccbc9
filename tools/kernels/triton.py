"""Compiles every shipped configuration, with or without a GPU, and reports what the compiler made of it.

``python -m tools.kernels.triton [--arch sm_90] [--kernel contract] [--quick] [--json]``;
`make kernels-report`.
"""

import argparse
import hashlib
import inspect
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hyperkern.backends.triton import config
from hyperkern.backends.triton.align_uniform import combine_kernel, finish_views_kernel, prepare_views_kernel
from hyperkern.backends.triton.classes import classes_head_kernel
from hyperkern.backends.triton.config import Architecture, Entry, padded
from hyperkern.backends.triton.contract import contract_kernel, contract_sides_kernel
from hyperkern.backends.triton.heads import energy_head_kernel, sigmoid_head_kernel, softmax_head_kernel
from hyperkern.backends.triton.launch import fusion
from hyperkern.backends.triton.normalize import COMBINED, normalize_backward_kernel, prepare_kernel, row_block
from hyperkern.backends.triton.operands import width
from hyperkern.backends.triton.panel import panel_kernel
from hyperkern.backends.triton.specialised import (
    contract_sides_specialised_kernel,
    contract_specialised_kernel,
    rest_of,
    sums_specialised_kernel,
)
from hyperkern.backends.triton.sums import sums_kernel
from hyperkern.backends.triton.two_way import two_way_sums_kernel
from hyperkern.backends.triton.whole_grads import finish_rows_kernel
from hyperkern.backends.triton.whole_rows import prepare_rows_kernel

from .cubin import Instruction, disassembled, usage
from .rows import Row, of_code, print_rows
from .sass import WARP, Shape

KERNELS = {
    "contract": contract_kernel,
    "sums": sums_kernel,
    "two_way": two_way_sums_kernel,
    "panel": panel_kernel,
    "contract_specialised": contract_specialised_kernel,
    "contract_sides_specialised": contract_sides_specialised_kernel,
    "sums_specialised": sums_specialised_kernel,
    "prepare": prepare_kernel,
    "normalize_backward": normalize_backward_kernel,
    "prepare_views": prepare_views_kernel,
    "combine": combine_kernel,
    "finish_views": finish_views_kernel,
    "contract_sides": contract_sides_kernel,
    "prepare_rows": prepare_rows_kernel,
    "softmax_head": softmax_head_kernel,
    "classes_head": classes_head_kernel,
    "sigmoid_head": sigmoid_head_kernel,
    "energy_head": energy_head_kernel,
    "finish_rows": finish_rows_kernel,
}

# What the pairwise kernels are compiled for: the losses of this package, and the most general problem.
_PROBLEMS: dict[str, dict[str, dict[str, Any]]] = {
    "contract": {
        "uniformity": {"EXCLUDE": "self", "MODE": "exp"},
        "contrastive": {"EXCLUDE": "self", "MODE": "bounded", "present": ("a", "b")},
        "row_factor": {"EXCLUDE": "self", "MODE": "bounded", "present": ("a",)},
        "labelled": {"EXCLUDE": "same_id", "MODE": "bounded", "present": ("u", "v", "ids", "a", "b")},
        "general": {"EXCLUDE": "same_id", "MODE": "running", "present": ("u", "v", "ids", "a", "b", "lse")},
        "softplus": {"EXCLUDE": "none", "MODE": "softplus"},
    },
    "contract_sides": {
        "uniformity": {"EXCLUDE": "self", "MODE": "exp"},
        "contrastive": {"EXCLUDE": "self", "MODE": "bounded", "present": ("factor",)},
        "one_way": {"EXCLUDE": "self", "MODE": "single", "present": ("factor", "lse")},
        "views": {"EXCLUDE": "views", "MODE": "running", "present": ("factor", "lse")},
        "classes": {"EXCLUDE": "self", "MODE": "running", "present": ("factor", "lse", "classes")},
        "softplus": {"EXCLUDE": "self", "MODE": "softplus", "present": ("u",)},
    },
    "sums": {
        "uniformity": {"EXCLUDE": "self", "MODE": "exp", "COLS": False, "TRIANGLE": True},
        "views": {
            "EXCLUDE": "views",
            "MODE": "running",
            "COLS": True,
            "TRIANGLE": True,
            "present": ("cols", "tops"),
        },
        "classes": {
            "EXCLUDE": "self",
            "MODE": "running",
            "COLS": False,
            "TRIANGLE": False,
            "present": ("tops", "classes"),
        },
        "general": {
            "EXCLUDE": "same_id",
            "MODE": "running",
            "COLS": True,
            "TRIANGLE": False,
            "present": ("u", "v", "ids", "cols", "tops"),
        },
    },
    "two_way": {
        "contrastive": {"EXCLUDE": "self", "MODE": "exp", "TRIANGLE": False, "present": ("cols",)},
        "views": {"EXCLUDE": "views", "MODE": "exp", "TRIANGLE": True, "present": ("cols",)},
        "general": {"EXCLUDE": "same_id", "MODE": "exp", "TRIANGLE": False, "present": ("u", "v", "ids", "cols")},
    },
    "panel": {
        "uniformity": {"EXCLUDE": "self", "MODE": "exp"},
        "contrastive": {"EXCLUDE": "self", "MODE": "bounded", "present": ("a", "b")},
        "one_way": {"EXCLUDE": "self", "MODE": "single", "present": ("a", "b", "lse")},
        "views": {"EXCLUDE": "views", "MODE": "running", "present": ("a", "b", "lse")},
        "classes": {"EXCLUDE": "self", "MODE": "running", "present": ("a", "b", "lse", "ids", "classes")},
        "softplus": {"EXCLUDE": "self", "MODE": "softplus", "present": ("u",)},
        "general": {"EXCLUDE": "same_id", "MODE": "running", "present": ("u", "v", "ids", "a", "b", "lse")},
    },
}
_OPTIONAL = {
    "p_u": "u",
    "p_v": "v",
    "p_row_ids": "ids",
    "p_col_ids": "ids",
    "p_row_lse": "lse",
    "p_a": "a",
    "p_col_lse": "lse",
    "p_b": "b",
    "p_row_top": "tops",
    "p_col_top": "tops",
    "p_col": "cols",
    "p_factor": "factor",
    "p_lse": "lse",
    "p_classes": "classes",
    "p_share": "classes",
    "p_row_share": "classes",
    "p_col_share": "classes",
    "p_positives": "classes",
    "p_labels": "classes",
    "p_queue_labels": "classes",
    "p_anchors": "classes",
}
# Kernels that are configured as one.
_CONFIGURED = {
    "contract": ("contract", "contract_sides"),
    "sums": ("sums",),
    "two_way": ("two_way",),
    "panel": ("panel",),
}
# What may take their place, chosen by an entry or not: the kernel, and how it is compiled.
_SPECIALISED: dict[str, tuple[str, dict[str, Any]]] = {
    "contract_specialised": ("contract", _PROBLEMS["contract"]["uniformity"]),
    "contract_sides_specialised": ("contract", _PROBLEMS["contract_sides"]["uniformity"]),
    "sums_specialised": ("sums", _PROBLEMS["sums"]["uniformity"]),
}
_ROWS: tuple[dict[str, Any], ...] = (
    {"VIEWS": 1, "SYMMETRIC": False, "TEMPERATURE": False},
    {"VIEWS": 2, "SYMMETRIC": True, "TEMPERATURE": True},
)
# What the row-wise kernels are compiled for; the heads have no D.
_ROW_WISE: dict[str, tuple[dict[str, Any], ...]] = {
    "prepare": ({},),
    "normalize_backward": ({},),
    "prepare_views": ({"SQUARE": True},),
    "combine": ({"BLOCK": COMBINED},),
    "finish_views": ({"SQUARE": True},),
    "prepare_rows": _ROWS,
    "softmax_head": (
        {"HEAD": "softmax", "VIEWS": 1, "TWO_WAY": True, "TEMPERATURE": False, "BLOCK": 128},
        {"HEAD": "weighted", "VIEWS": 2, "TWO_WAY": False, "TEMPERATURE": True, "BLOCK": 128},
    ),
    "classes_head": ({"MEAN": True, "BLOCK": 128},),
    "sigmoid_head": ({"BLOCK": 128},),
    "energy_head": ({"BLOCK": COMBINED},),
    "finish_rows": _ROWS,
}
_ALONG_D = ("stride_d", "stride_xd", "stride_yd", "stride_qd")
# Quick or not, this architecture is compiled whole: that of the GPUs which this package is made for first.
_WHOLE = "sm_90"
# How many cases are disassembled at once: starting the disassembler takes the time of ten of them.
_TOGETHER = 8
# A chunked kernel serves any D; it is compiled for this one.
_LONG_DIM = 768
# Rows that do not fill their tile, of any length and of a multiple of 16.
_OTHER_DIMS = (100, 112)


class Case(NamedTuple):
    """One kernel with one configuration for one use."""

    architecture: str
    kernel: str
    operand: str
    dim: int
    problem: str
    signature: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, int]


def cases(architecture: Architecture) -> Iterator[Case]:
    """Every shipped entry for every use it has, what may take its place, and the row-wise kernels."""
    for entry in architecture.entries:
        for kernel in _CONFIGURED[entry.kernel]:
            for problem, options in _PROBLEMS[kernel].items():
                dim = entry.dim or _LONG_DIM
                labels = problem == "classes" or (kernel == "two_way" and options["EXCLUDE"] == "same_id")
                mode = "classes" if labels else options["MODE"]
                if config.find(architecture, entry.kernel, entry.operand, dim, mode) == entry.config:
                    yield _pairwise(architecture, entry, kernel, problem, **options)
    if architecture.name == _WHOLE:
        yield from _of_other_dims(architecture)
    yield from specialised_cases(architecture)
    for kernel, uses in _ROW_WISE.items():
        for use in uses:
            for dtype in ("bf16", "fp32"):
                for dim in (128, 4096):
                    yield _row_wise(architecture, kernel, dtype, dim, use)


def _of_other_dims(architecture: Architecture) -> Iterator[Case]:
    for kernel in ("contract", "sums"):
        for dim in _OTHER_DIMS:
            problem, options = next(iter(_PROBLEMS[kernel].items()))
            choice = config.find(architecture, kernel, "bfloat16", dim, options["MODE"])
            if choice is not None:
                entry = Entry(kernel, "bfloat16", dim, None, choice)
                yield _pairwise(architecture, entry, kernel, problem, **options)


def specialised_cases(architecture: Architecture) -> Iterator[Case]:
    """The kernels with specialised warps in every configuration that a file may choose, and what is launched behind."""
    for kernel, (ordinary, options) in _SPECIALISED.items():
        for dim in (64, 128):
            choices = config.specialised(architecture.name, ordinary, "bfloat16", dim, "exp")
            for choice in dict.fromkeys((*choices, *map(rest_of, choices))):
                problem = "uniformity" if choice.specialised else "rest"
                entry = Entry(ordinary, "bfloat16", dim, "exp", choice)
                yield _pairwise(architecture, entry, kernel, problem, **options, REST=problem == "rest")


def heaviest(architecture: Architecture) -> list[Case]:
    """The pairwise problem with most arguments of every configuration, which needs most registers and memory."""
    found: dict[tuple, Case] = {}
    for case in cases(architecture):
        key = case.kernel, case.operand, case.dim, *case.options.values(), *_blocks(case)
        pairwise = case.kernel in _PROBLEMS or case.kernel in _SPECIALISED
        if pairwise and (key not in found or _arguments(case) > _arguments(found[key])):
            found[key] = case
    return list(found.values())


def _arguments(case: Case) -> int:
    return sum(kind != "constexpr" for kind in case.signature.values())


def _blocks(case: Case) -> list[int]:
    return [case.constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_D") if name in case.constants]


def _pairwise(
    architecture: Architecture,
    entry: Entry,
    kernel: str,
    problem: str,
    present: tuple[str, ...] = (),
    **constants: Any,
) -> Case:
    choice, dim = entry.config, entry.dim or _LONG_DIM
    operand = "*bf16" if entry.operand == "bfloat16" else "*fp32"
    constants |= {
        "DIM": width(dim),
        "BLOCK_M": choice.block_m,
        "BLOCK_N": choice.block_n,
        "BLOCK_D": choice.block_d or padded(dim),
        "LOG2": constants["MODE"] in ("exp", "bounded", "softplus") and entry.operand != "float32",
        "PRECISION": "tf32x3" if entry.operand == "float32" else "tf32",
    }
    if kernel == "panel":
        constants["GROUP"] = 8
    types = dict.fromkeys(("p_x", "p_y", "p_rows", "p_weights"), operand)
    types |= dict.fromkeys(("p_row_ids", "p_col_ids", "p_classes"), "*i64")
    signature = _signature(KERNELS[kernel], types, constants, present)
    options = {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
    return Case(architecture.name, kernel, entry.operand, dim, problem, signature, constants, options)


def _row_wise(architecture: Architecture, kernel: str, dtype: str, dim: int, use: dict[str, Any]) -> Case:
    block_rows, block_d = row_block(dim)
    names = KERNELS[kernel].arg_names
    constants = {"DIM": dim, "WIDTH": dim, "BLOCK_ROWS": block_rows, "BLOCK_D": block_d, **use}
    constants = {name: value for name, value in constants.items() if name in names}
    features = ("p_x", "p_y", "p_queue", "p_dx", "p_dy", "p_dqueue", "p_operand", "p_rows")
    types = dict.fromkeys(features, "*" + dtype) if "DIM" in names else {}
    types |= dict.fromkeys(("p_labels", "p_queue_labels", "p_classes"), "*i64") | {"p_count": "*i32"}
    signature = _signature(KERNELS[kernel], types, constants, tuple(_OPTIONAL.values()))
    problem = " ".join(str(value) for name, value in use.items() if name in ("HEAD", "VIEWS"))
    return Case(architecture.name, kernel, dtype, dim, problem, signature, constants, {})


def _signature(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], present: tuple[str, ...]
) -> dict[str, str]:
    """The types of the arguments as a real call has them; what is absent is a compile-time None."""
    floats = {"scale", "shift", "eps", "alpha", "t", "align_weight", "uniform_weight", "pairs"}
    floats |= {"bias", "sigma", "share", "count", "range_of_weights", "inverse_range", "unit"}
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name in _OPTIONAL and _OPTIONAL[name] not in present:
            constants[name] = None
            signature[name] = "constexpr"
        elif name.startswith("p_"):
            signature[name] = types.get(name, "*fp32")
        else:
            signature[name] = "fp32" if name in floats else "i32"
    return signature


def compiled(case: Case) -> Any:
    """What Triton makes of a case for its architecture."""
    kernel = KERNELS[case.kernel]
    # As in a call: pointers and strides are multiples of 16, but those along D; sizes and what is not specialised are
    # anything.
    anything = {*case.constants, *_ALONG_D, *kernel.do_not_specialize, *kernel.do_not_specialize_on_alignment}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.startswith(("p_", "stride")) and name not in anything
    }
    source = ASTSource(kernel, case.signature, constexprs=case.constants, attrs=aligned)
    target = GPUTarget("cuda", int(case.architecture.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options={**fusion(case.constants), **case.options})


def compile_cases(cases: Sequence[Case]) -> list[Row]:
    """Compiles some cases, and looks at what came out."""
    results = [compiled(case) for case in cases]
    code = dict[int, list[Instruction]]()
    for architecture in {case.architecture for case in cases}:
        places = [i for i, case in enumerate(cases) if case.architecture == architecture]
        found = disassembled([results[i].asm["cubin"] for i in places], architecture)
        code |= zip(places, found, strict=True)
    return [_row(case, result, code[i]) for i, (case, result) in enumerate(zip(cases, results, strict=True))]


def _row(case: Case, result: Any, code: Sequence[Instruction]) -> Row:
    warps = result.metadata.num_warps
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        of_thread = next(iter(usage(file.name).values()))
    return Row(
        architecture=case.architecture,
        backend="triton",
        kernel=case.kernel,
        operand=case.operand,
        dim=case.dim,
        problem=case.problem,
        tile="x".join(map(str, _blocks(case))),
        warps=warps,
        stages=result.metadata.num_stages,
        registers=of_thread.registers,
        spill_bytes=of_thread.stack_bytes,
        shared_bytes=result.metadata.shared,
        **of_code(code, _shape(case, warps) if "BLOCK_N" in case.constants else None),
    )


def _shape(case: Case, warps: int) -> Shape:
    chunk = case.constants["BLOCK_D"]
    rounds = -(-case.dim // chunk)
    products = 2 if case.kernel.startswith("contract") else 1
    times = 3 if case.constants["PRECISION"] == "tf32x3" else 1
    pairs = case.constants["BLOCK_M"] * case.constants["BLOCK_N"] / (WARP * case.options["num_warps"])
    if case.architecture == "sm_90" and warps != case.options["num_warps"]:
        pairs = 0  # warps have roles, and the products tell how many of them weigh
    return Shape(products * times * rounds * chunk, pairs, rounds)


def chosen(architectures: Sequence[str] = (), quick: bool = False) -> list[Case]:
    """The cases of some architectures, or of all; quick, of most of them only the heaviest."""
    of = [config.of_name(name) for name in architectures] or config.shipped()
    return [case for one in of for case in (heaviest if quick and one.name != _WHOLE else cases)(one)]


def report(
    architectures: Sequence[str] = (),
    quick: bool = False,
    jobs: int = 2,
    only: Callable[[Case], bool] = lambda case: True,
) -> list[Row]:
    """The rows of some architectures, or of all."""
    todo = [case for case in chosen(architectures, quick) if only(case)]
    some = [todo[i : i + _TOGETHER] for i in range(0, len(todo), _TOGETHER)]
    with ProcessPoolExecutor(jobs) as pool:
        return [row for rows in pool.map(compile_cases, some) for row in rows]


def source_digests() -> dict[str, str]:
    """A digest of the source of each kernel, the same whether it is compiled or interpreted."""
    return {name: hashlib.sha256(inspect.getsource(kernel.fn).encode()).hexdigest() for name, kernel in KERNELS.items()}


def inputs() -> str:
    """A digest of what the rows are made of besides Triton: kernels, configurations, what reads machine code."""
    here = Path(__file__).parent
    files = [*config.FOLDER.parent.glob("*.py"), *config.FOLDER.glob("*.json")]
    files += [here / f"{name}.py" for name in ("cubin", "hazards", "rows", "sass", "triton")]
    digests = {f"{file.parent.name}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def main() -> None:
    """Prints the table, or JSON with the digests."""
    parser = argparse.ArgumentParser(description="Registers and shared memory of every shipped configuration.")
    names = [architecture.name for architecture in config.shipped()]
    parser.add_argument("--arch", action="append", choices=names, help="only this architecture (repeatable)")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="only this kernel (repeatable)")
    parser.add_argument("--problem", action="append", help="only what is compiled for this problem (repeatable)")
    parser.add_argument("--operand", action="append", help="only of this type (repeatable)")
    parser.add_argument("--dim", action="append", type=int, help="only for this D (repeatable)")
    parser.add_argument("--quick", action="store_true", help=f"all of {_WHOLE}, of others one a configuration")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    args = parser.parse_args()
    filters = {name: getattr(args, name) for name in ("kernel", "problem", "operand", "dim")}
    rows = report(
        args.arch or (),
        args.quick,
        args.jobs,
        lambda case: all(wanted is None or getattr(case, name) in wanted for name, wanted in filters.items()),
    )
    if args.json:
        print(json.dumps({"rows": [row._asdict() for row in rows], "digests": source_digests()}))
        return
    print_rows(rows)


if __name__ == "__main__":
    main()
