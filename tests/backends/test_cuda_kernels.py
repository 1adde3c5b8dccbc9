"""The CUDA kernels tile by tile: in the emulator on both architectures and in both extremes of asynchronous timing.

The `backend` fixture runs all other tests on the emulated sm_90a, copies first. What differs between architectures and
timings is tested here.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from conftest import DEVICE, needs_cuda_kernels
from torch import Tensor

from hyperkern import backends
from hyperkern.spec import PairSpec, PairTerms

pytestmark = [needs_cuda_kernels, *([pytest.mark.gpu] if DEVICE == "cuda" else [])]

HALF = [torch.bfloat16, torch.float16]
ROWS = [1, 63, 65, 127, 129, 191, 193, 255, 257, 400]
COLUMNS = [1, 79, 81, 96, 127, 128, 129, 255, 257, 700]


class Machine(NamedTuple):
    capability: int
    products_first: bool


MACHINES = [Machine(90, False), Machine(90, True), Machine(80, False), Machine(80, True)]


def identify(machine: Machine) -> str:
    return f"sm_{machine.capability}-{('copies', 'products')[machine.products_first]}-first"


@pytest.fixture(params=MACHINES, ids=identify)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    from hyperkern.backends.cuda import operands

    if DEVICE == "cuda":
        if request.param != MACHINES[0]:
            pytest.skip("the GPU is what it is")
        yield request.param
        return
    operands.emulate(request.param.capability, products_first=request.param.products_first)
    yield request.param
    operands.emulate(90)


# Of masks and padding, which are the same in both timings: `test_results_do_not_depend_on_timing`.
copies_first = pytest.mark.parametrize("machine", MACHINES[::2], ids=identify, indirect=True)


def unit(batch: int, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Unit rows that a dtype holds exactly, in float32."""
    return torch.nn.functional.normalize(torch.randn(batch, rows, dim, device=DEVICE), dim=-1).to(dtype).float()


def problem(m: int, n: int, dim: int, dtype: torch.dtype, *, batch: int = 1, **spec: object) -> tuple:
    x, y = unit(batch, m, dim, dtype), unit(batch, n, dim, dtype)
    u, v = torch.randn(batch, m, device=DEVICE), torch.randn(batch, n, device=DEVICE)
    ids = (torch.randint(0, 9, (batch, count), device=DEVICE) for count in (m, n))
    name = str(dtype).removeprefix("torch.")
    return x, y, PairTerms(u, v, *ids), PairSpec(**({"scale": 5.0, "bounded": True, "precision": name} | spec))


def everything(module: backends.Backend, x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec) -> dict[str, Tensor]:
    """Every primitive in every form, with results of the reference in between, so that errors do not add up."""
    exact = backends.load("reference")
    doubled = PairTerms(*(t if t is None or not t.is_floating_point() else t.double() for t in terms))
    row, col = (t.to(x.dtype) for t in exact.row_lse(x.double(), y.double(), doubled, spec, need_cols=True))
    a, b = (
        torch.linspace(-1, 2, t.shape[1], dtype=x.dtype).to(DEVICE).expand(t.shape).contiguous() for t in (row, col)
    )
    both = {"need_x": True, "need_y": True}
    found = {"lse": module.row_lse(x, y, terms, spec, need_cols=True)}
    found["two-sided"] = module.pair_grad(x, y, terms, spec, row, col, a, b, **both)
    found["one-sided"] = module.pair_grad(x, y, terms, spec, row, None, a, None, **both)
    potentials = ["exp", "softplus"] if spec.bounded else ["softplus"]
    for potential in potentials:
        found[potential] = module.energy(x, y, terms, spec, potential, **both)
        found[f"{potential} value"] = module.energy(x, y, terms, spec, potential, need_x=False, need_y=False)
    # The same rows on both sides: triangles, and one side that holds everything.
    own = PairTerms(terms.u, None, terms.row_ids, None)
    symmetric = spec._replace(row_offset=spec.col_offset)
    lse, _ = exact.row_lse(x.double(), None, PairTerms(*(t if i else doubled.u for i, t in enumerate(own))), symmetric,
                           need_cols=False)  # fmt: skip
    found["y = x"] = (
        *module.row_lse(x, None, own, symmetric, need_cols=False),
        *module.pair_grad(x, None, own, symmetric, lse.to(x.dtype), None, a, None, need_x=True, need_y=False),
        *module.energy(x, None, own, symmetric, potentials[0], need_x=True, need_y=False),
        *module.energy(x, None, own, symmetric, potentials[0], need_x=False, need_y=False),
    )
    return {f"{name} {i}": t for name, tensors in found.items() for i, t in enumerate(tensors)}


def check(x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, tolerance: float) -> None:
    results = everything(backends.load("cuda"), x, y, terms, spec)
    doubled = PairTerms(*(t if t is None or not t.is_floating_point() else t.double() for t in terms))
    truths = everything(backends.load("reference"), x.double(), y.double(), doubled, spec)
    for name, truth in truths.items():
        result = results[name].double()
        assert result.shape == truth.shape, name
        assert torch.equal(result.isinf(), truth.isinf()), name
        size = truth[truth.isfinite()].abs().max() if truth.isfinite().any() else 1.0
        error = (result - truth).masked_fill(truth.isinf(), 0).abs().max() if truth.numel() else 0.0
        assert error <= tolerance * max(size, 1e-3), f"{name}: {error / size:.3g}"


TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 8e-4, torch.float32: 5e-6}


@copies_first
@pytest.mark.parametrize("exclude", ["none", "self", "same_id"])
@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_every_primitive(dtype: torch.dtype, bounded: bool, exclude: str, machine: Machine) -> None:
    spec = {"bounded": bounded, "exclude": exclude, "row_offset": 37, "col_offset": 11}
    check(*problem(150, 141, 40, dtype, batch=2, **spec), TOLERANCE[dtype])


@copies_first
@pytest.mark.parametrize("dim", [1, 8, 63, 64, 65, 128, 136, 255, 256, 257, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_dimension(dtype: torch.dtype, dim: int, machine: Machine) -> None:
    check(*problem(67, 130, dim, dtype, exclude="self"), TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("first", range(len(ROWS)), ids=lambda i: str(ROWS[i]))
def test_ragged_rows_and_columns(first: int, machine: Machine) -> None:
    """Sizes on both sides of every tile's edge; more column tiles than a ring has buffers.

    Where rows end and where columns do are two masks: each size meets three of the other side.
    """
    for step in (0, 3, 7):
        m, n = ROWS[first], COLUMNS[(first + step) % len(COLUMNS)]
        check(*problem(m, n, 64, torch.bfloat16, exclude="self"), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dim", [64, 128, 256, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_ring_that_wraps(dtype: torch.dtype, dim: int, machine: Machine) -> None:
    """Every kernel, over more column tiles than its ring has buffers: what the memory checkers are shown."""
    check(*problem(70, 900, dim, dtype, exclude="self"), TOLERANCE[dtype])


@pytest.mark.parametrize(("dim", "bounded"), [(72, True), (72, False), (300, True)])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_results_do_not_depend_on_timing(dtype: torch.dtype, dim: int, bounded: bool) -> None:
    """Bit for bit: whatever the hardware does first, sums are added in one order."""
    from hyperkern.backends.cuda import operands

    if DEVICE == "cuda":
        pytest.skip("this is about the emulator")
    for capability in (80, 90):
        found = []
        for products_first in (False, True):
            torch.manual_seed(1)
            operands.emulate(capability, products_first=products_first)
            given = problem(70, 420, dim, dtype, exclude="self", bounded=bounded)
            found.append(everything(backends.load("cuda"), *given))
        operands.emulate(90)
        for name, first in found[0].items():
            assert torch.equal(first, found[1][name]), (capability, name)


@pytest.mark.parametrize("which", ["rows", "columns", "batch"])
def test_addresses_beyond_2_31(which: str, machine: Machine) -> None:
    """The last row lies beyond 2^31 bytes: memory that nobody touches in between."""
    dim, stride = 64, (1 << 31) + 64
    far = torch.empty(stride + 4 * dim, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 2, dim), (1, 1, 1))
    if which == "batch":
        far = far.as_strided((2, 2, dim), (stride, dim, 1))
    else:
        far = far.as_strided((1, 2, dim), (2 * stride, stride, 1))
    near = unit(*far.shape, torch.bfloat16).to(torch.bfloat16)
    far.copy_(near)
    other = unit(far.shape[0], 5, dim, torch.bfloat16).to(torch.bfloat16)
    spec = PairSpec(4.0, bounded=True, precision="bfloat16")
    energy, both = backends.load("cuda").energy, {"need_x": True, "need_y": True}
    found, expected = (
        energy(*((other, t) if which == "columns" else (t, other)), PairTerms(), spec, "exp", **both)
        for t in (far, near)
    )
    for result, truth in zip(found, expected, strict=True):
        assert torch.equal(result, truth)
