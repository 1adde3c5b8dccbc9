"""The CUDA kernels tile by tile: in the emulator on both architectures and in both extremes of asynchronous timing.

The `backend` fixture runs all other tests on the emulated sm_90a, copies first. What differs between architectures and
timings is tested here.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from conftest import DEVICE, needs_cuda_kernels
from torch import Tensor

import hyperkern
from hyperkern import backends
from hyperkern.backends.cuda import library, operands, primitives, schedule
from hyperkern.backends.cuda import whole as whole_losses
from hyperkern.check.scope import DIMS
from hyperkern.spec import PairSpec, PairTerms
from tools.first_tile import SIZES

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
    if DEVICE == "cuda":
        if request.param != MACHINES[0]:
            pytest.skip("the GPU is what it is")
        yield request.param
        return
    operands.emulate(request.param.capability, products_first=request.param.products_first)
    yield request.param
    operands.emulate(90)


class Rings:
    """The operators, which note how often a block of threads fills the ring of each kernel that is launched.

    Attributes:
        launching: whether they are launched, and not only noted.
        laps: by name and code of its weight or task, for the launch where it is most.
    """

    def __init__(self, *, launching: bool = True) -> None:
        self.launching = launching
        self.operators = library.ops(torch.device(DEVICE))
        self.laps: dict[tuple[str, int], float] = {}

    def __getattr__(self, name: str) -> Any:
        operator = getattr(self.operators, name)
        if name not in ("contract", "sums"):
            return operator

        def launch(*arguments: Any) -> None:
            names = (argument.name for argument in operator.default._schema.arguments)
            self._note(name, dict(zip(names, arguments, strict=True)))
            if self.launching:
                operator(*arguments)

        return launch

    def _note(self, name: str, of: dict[str, Any]) -> None:
        (_, _, dim), n, bytes_ = of["x"].shape, of["y"].shape[1], of["x"].element_size()
        kernel, kind = ("sums", "contract").index(name), int(of["weight" if name == "contract" else "task"])
        at_hopper = (
            torch.cuda.get_device_capability()[0] == 9 if DEVICE == "cuda" else operands.emulated_capability() == 90
        )
        _, columns, *_ = self.operators.tile(of["x"], kernel, dim, kind if name == "contract" else 0)
        _, _, stages = self.operators.block(kernel, bytes_, dim, kind, at_hopper and bytes_ == 2)
        # A buffer holds a whole tile, or 128 bytes of its rows.
        buffers = 1 if name == "contract" else -(-dim * bytes_ // 128)
        cuts = of["cuts"] if name == "sums" else of["sides"][-1]
        laps = -(-n // columns) // cuts * buffers / stages
        self.laps[name, kind] = max(laps, self.laps.get((name, kind), 0))


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rings]:
    """Columns in one range, as for a GPU with one multiprocessor: cut, small problems never fill a ring."""
    found = Rings()
    for module in (primitives, schedule):
        monkeypatch.setattr(module, "multiprocessors", lambda device: 1)
    for user in (primitives, whole_losses):
        monkeypatch.setattr(user, "ops", lambda device: found)
    schedule._schedule.cache_clear()
    yield found
    schedule._schedule.cache_clear()


# Of masks and padding, which are the same in both timings: `test_masks_do_not_depend_on_timing`.
copies_first = pytest.mark.parametrize("machine", MACHINES[::2], ids=identify, indirect=True)


def skip_if_portable_again(dtype: torch.dtype, machine: Machine) -> None:
    """Kernels of float32 are the same on every architecture."""
    if DEVICE == "cpu" and dtype == torch.float32 and machine.capability == 90:
        pytest.skip("kernels of float32 are the portable ones")


def unit(batch: int, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Unit rows that a dtype holds exactly, in float32."""
    return torch.nn.functional.normalize(torch.randn(batch, rows, dim, device=DEVICE), dim=-1).to(dtype).float()


def problem(m: int, n: int, dim: int, dtype: torch.dtype, *, batch: int = 1, **spec: object) -> tuple:
    x, y = unit(batch, m, dim, dtype), unit(batch, n, dim, dtype)
    u, v = torch.randn(batch, m, device=DEVICE), torch.randn(batch, n, device=DEVICE)
    ids = (torch.randint(0, 9, (batch, count), device=DEVICE) for count in (m, n))
    name = str(dtype).removeprefix("torch.")
    return x, y, PairTerms(u, v, *ids), PairSpec(**({"scale": 5.0, "bounded": True, "precision": name} | spec))


def everything(
    module: backends.Backend, x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, need_y: bool = True
) -> dict[str, Tensor]:
    """Every primitive in every form, with results of the reference in between, so that errors do not add up."""
    exact = backends.load("reference")
    doubled = PairTerms(*(t if t is None or not t.is_floating_point() else t.double() for t in terms))
    row, col, *_ = (t.to(x.dtype) for t in exact.row_lse(x.double(), y.double(), doubled, spec, need_cols=True))
    a, b = (
        torch.linspace(-1, 2, t.shape[1], dtype=x.dtype).to(DEVICE).expand(t.shape).contiguous() for t in (row, col)
    )
    both = {"need_x": True, "need_y": need_y}
    found = {"lse": module.row_lse(x, y, terms, spec, need_cols=True)}
    found["two-sided"] = module.pair_grad(x, y, terms, spec, row, col, a, b, **both)
    found["one-sided"] = module.pair_grad(x, y, terms, spec, row, None, a, None, **both)
    potentials = ["exp", "softplus"] if spec.bounded else ["softplus"]
    for potential in potentials:
        found[potential] = module.energy(x, y, terms, spec, potential, **both)
        found[f"{potential} value"] = module.energy(x, y, terms, spec, potential, need_x=False, need_y=False)
    # The same rows on both sides: triangles, and one side that holds everything.
    own = PairTerms(terms.u, None, terms.row_ids, None)
    in_double = PairTerms(*(t if i else doubled.u for i, t in enumerate(own)))
    lse, *_ = exact.row_lse(x.double(), None, in_double, spec, need_cols=False)
    found["y = x"] = (
        *module.row_lse(x, None, own, spec, need_cols=False),
        *module.pair_grad(x, None, own, spec, lse.to(x.dtype), None, a, None, need_x=True, need_y=False),
        *module.energy(x, None, own, spec, potentials[0], need_x=True, need_y=False),
        *module.energy(x, None, own, spec, potentials[0], need_x=False, need_y=False),
    )
    return {f"{name} {i}": t for name, tensors in found.items() for i, t in enumerate(tensors) if t is not None}


def check(x: Tensor, y: Tensor, terms: PairTerms, spec: PairSpec, tolerance: float, *, need_y: bool = True) -> None:
    results = everything(backends.load("cuda"), x, y, terms, spec, need_y)
    doubled = PairTerms(*(t if t is None or not t.is_floating_point() else t.double() for t in terms))
    truths = everything(backends.load("reference"), x.double(), y.double(), doubled, spec, need_y)
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
    skip_if_portable_again(dtype, machine)
    if DEVICE == "cpu" and dtype == torch.float16 and exclude != "self":
        pytest.skip("masks are those of bfloat16")
    spec = {"bounded": bounded, "exclude": exclude}
    batch = 2 if exclude == "same_id" or DEVICE == "cuda" else 1
    check(*problem(150, 141, 40, dtype, batch=batch, **spec), TOLERANCE[dtype])


@copies_first
@pytest.mark.parametrize("dim", [1, 8, 63, 64, 65, 128, 136, 160, 192, 193, 255, 256, 257, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_dimension(dtype: torch.dtype, dim: int, machine: Machine) -> None:
    skip_if_portable_again(dtype, machine)
    if DEVICE == "cpu" and dtype == torch.float32 and dim in (8, 63, 128, 160, 192, 193):
        pytest.skip("edges in columns, not in bytes, are those of bfloat16")
    check(*problem(67, 130, dim, dtype, exclude="self"), TOLERANCE[dtype])


@pytest.mark.slow
@copies_first
@pytest.mark.parametrize("first", range(len(ROWS)), ids=lambda i: str(ROWS[i]))
def test_ragged_rows_and_columns(first: int, machine: Machine) -> None:
    """Sizes on both sides of every tile's edge.

    Where rows end and where columns do are two masks: each size meets two or three of the other side.
    """
    for step in (0, 3) if DEVICE == "cpu" else (0, 3, 7):
        m, n = ROWS[first], COLUMNS[(first + step) % len(COLUMNS)]
        check(*problem(m, n, 64, torch.bfloat16, exclude="self"), TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dim", [64, 128, 192, 256, 400])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_ring_that_wraps(dtype: torch.dtype, dim: int, machine: Machine, rings: Rings) -> None:
    """Every kernel, with more to fetch than its ring has buffers: what the memory checkers are shown."""
    skip_if_portable_again(dtype, machine)
    contracted_elsewhere = dim in (128, 192, 256) or (dim == 400 and machine.products_first)
    if DEVICE == "cpu" and dtype == torch.float32 and contracted_elsewhere:
        pytest.skip("what is contracted is like 64, what is not like 400, and the ring is that of bfloat16")
    wgmma = machine.capability == 90 and dtype == torch.bfloat16
    n = {64: 1100, 128: 650, 192: 530, 256: 420, 400: 300}[dim] if wgmma else {64: 260}.get(dim, 200)
    # Rows for every warpgroup: the last one to free a buffer is the one that finds it overwritten.
    m = 150 if wgmma else 70
    # Log-weights have kernels of their own, and so have logits without a bound.
    x, y, terms, spec = problem(m, n, dim, dtype, exclude="self")
    check(x, y, PairTerms(), spec, TOLERANCE[dtype], need_y=False)
    check(x, y, terms, spec._replace(bounded=False), TOLERANCE[dtype], need_y=False)
    contracted = dim <= operands.CONTRACT_DIM
    check_classes(m, n, dim, dtype)
    sums = operands.Task.SUM_EXP, operands.Task.SUM_SOFTPLUS, operands.Task.SUM_RUNNING, operands.Task.SUM_CLASSES
    launched = {("sums", int(task)) for task in sums}
    if contracted:
        launched |= {("contract", int(weight)) for weight in operands.Weight}
    else:
        launched |= {("sums", task) for task in range(len(operands.Weight) + len(sums))}
    assert rings.laps.keys() == launched
    assert {kernel for kernel, laps in rings.laps.items() if laps <= 1} == set()


def classes_of(m: int, n: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    """What `sup_con` takes: rows and their classes, other candidates and theirs."""
    rows = [unit(1, count, dim, dtype)[0].to(dtype) for count in (m, n)]
    labels = [torch.randint(0, 9, (count,), device=DEVICE) for count in (m, n)]
    return [rows[0], labels[0], rows[1], labels[1]]


def check_classes(m: int, n: int, dim: int, dtype: torch.dtype) -> None:
    x, labels, y, y_labels = classes_of(m, n, dim, dtype)
    found = []
    for of in (dtype, torch.float64):
        rows = x.to(of).requires_grad_()
        loss = hyperkern.sup_con(rows, labels, y.to(of), y_labels, backend="cuda" if of == dtype else "reference")
        found.append([loss, *torch.autograd.grad(loss, rows)])
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()


def test_the_gpu_check_fills_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many multiprocessors as an H200 has: what it repeats is more than a tile for each block of threads."""
    rings = Rings(launching=False)
    monkeypatch.setattr(primitives, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(primitives, "ops", lambda device: rings)
    spec = PairSpec(4.0, bounded=True, exclude="self", precision="bfloat16")
    sizes = SIZES["full"]
    for dim in sizes.dims:
        x = torch.zeros(1, sizes.many, dim, dtype=torch.bfloat16, device=DEVICE)
        for need_x in (True, False):
            primitives.pairwise.energy(x, None, PairTerms(), spec, "exp", need_x=need_x, need_y=False)
        assert rings.laps.keys() == {("contract", 0), ("sums", 0)}
        assert min(rings.laps.values()) > 1, rings.laps
        rings.laps.clear()


def test_every_size_of_tiles_is_checked() -> None:
    """Where D takes another kernel a class of the first-use check ends: one D says nothing of the kernel of another."""
    block, ends = library.ops(torch.device(DEVICE)).block, set()
    for (bytes_, wgmma), weight in itertools.product([(2, True), (2, False), (4, False)], operands.Weight):
        sizes = [block(1, bytes_, dim, weight, wgmma) for dim in range(1, operands.CONTRACT_DIM + 1)]
        ends |= {dim for dim, (here, next_) in enumerate(itertools.pairwise(sizes), 1) if here != next_}
    assert {*ends, operands.CONTRACT_DIM} == {*DIMS}


def test_results_do_not_depend_on_timing(rings: Rings) -> None:
    """Bit for bit: whatever the hardware does first, sums are added in one order."""
    if DEVICE == "cuda":
        pytest.skip("this is about the emulator")
    for capability in (80, 90):
        found = []
        for products_first in (False, True):
            torch.manual_seed(1)
            operands.emulate(capability, products_first=products_first)
            asked = problem(300, 530, 72, torch.bfloat16, exclude="self")
            found.append(everything(backends.load("cuda"), *asked, need_y=False))
            x, labels, *_ = classes_of(530, 1, 72, torch.bfloat16)
            loss = hyperkern.sup_con(x.requires_grad_(), labels, backend="cuda")
            found[-1] |= {"loss of classes": loss, "its gradient": torch.autograd.grad(loss, x)[0]}
        assert min(rings.laps.values()) > 1
        rings.laps.clear()
        operands.emulate(90)
        for name, first in found[0].items():
            assert torch.equal(first, found[1][name]), (capability, name)


@pytest.mark.parametrize(
    ("dtype", "dim", "bounded"),
    [(HALF[0], 72, True), (HALF[0], 72, False), (HALF[0], 300, True), (HALF[1], 72, True), (torch.float32, 72, False)],
    ids=str,
)
def test_masks_do_not_depend_on_timing(dtype: torch.dtype, dim: int, bounded: bool) -> None:
    if DEVICE == "cuda":
        pytest.skip("this is about the emulator")
    for capability in (80,) if dtype == torch.float32 else (80, 90):
        found = []
        for products_first in (False, True):
            torch.manual_seed(1)
            operands.emulate(capability, products_first=products_first)
            given = problem(70, 260, dim, dtype, exclude="self", bounded=bounded)
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


class SideOf(NamedTuple):
    """Some rows of an operand against others, see `Side` in ``csrc/pair_tile.cuh``."""

    row: int
    col: int
    rows: int
    cols: int
    excludes: bool = True

    def truth(self, unit: Tensor, weight: Callable[[Tensor, "SideOf"], Tensor], views: int) -> tuple[Tensor, Tensor]:
        """Weighted sums of the columns and of the weights, in float64."""
        x, y = unit[:, self.row :][:, : self.rows].double(), unit[:, self.col :][:, : self.cols].double()
        w = weight(5.0 * x @ y.mT, self)
        if self.excludes:
            group = torch.arange(max(self.rows, self.cols), device=unit.device) // views
            w = w.masked_fill(group[: self.rows, None] == group[None, : self.cols], 0)
        return w @ y, w.sum(-1)

    def alike(self, classes: Tensor) -> Tensor:
        """Whether rows and columns are of one class."""
        return classes[:, self.row :][:, : self.rows, None] == classes[:, self.col :][:, None, : self.cols]


def numbers(sides: list[SideOf], cuts: list[int]) -> list[int]:
    return [int(number) for side, count in zip(sides, cuts, strict=False) for number in (*side, count)]


def term_at(first: int) -> int:
    """Where the terms of a side start: at an even place."""
    return first + first % 2


@pytest.mark.parametrize(
    ("sides", "views"),
    [
        ([SideOf(0, 37, 37, 68), SideOf(37, 0, 68, 37)], 1),
        ([SideOf(37, 0, 37, 37)], 1),
        ([SideOf(0, 0, 37, 37), SideOf(0, 37, 37, 68, False), SideOf(37, 0, 68, 37, False)], 1),
        ([SideOf(0, 0, 104, 104)], 2),
        ([SideOf(0, 0, 105, 105)], 2),
    ],
    ids=["one-way", "others alone", "energy", "views", "odd views"],
)
@pytest.mark.parametrize("weight", ["exp", "factor", "two", "classes"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sides_of_one_operand(dtype: torch.dtype, weight: str, sides: list, views: int, machine: Machine) -> None:
    skip_if_portable_again(dtype, machine)
    if weight != "exp" and not all(side.excludes for side in sides):
        pytest.skip("other weights than exponentials always exclude")
    if weight == "classes" and views == 2:
        pytest.skip("views have no classes")
    operand = unit(2, 105, 24, dtype)
    log2 = 1.0 if dtype == torch.float32 else 1.4426950408889634
    p, a, share = torch.randn(3, 2, 240, device=DEVICE)
    nothing = torch.zeros_like(p)
    terms = torch.stack([p, a, nothing, a, p, share], 1)
    classes = torch.randint(0, 4, (2, 105), device=DEVICE) << 40 if weight == "classes" else None

    def weigh(logits: Tensor, side: SideOf) -> Tensor:
        if weight == "exp":
            return logits.exp()
        rows = (t[:, term_at(side.row) :][:, : side.rows, None].double() for t in (p, a, share))
        cols = (t[:, term_at(side.col) :][:, None, : side.cols].double() for t in (p, a, share))
        (p_row, a_row, share_row), (p_col, a_col, share_col) = rows, cols
        if weight == "factor":
            return (logits + (p_row + p_col) / log2).exp() * (a_row + a_col)
        two = a_row * (logits + p_row / log2).exp() + a_col * (logits + p_col / log2).exp()
        return two if classes is None else two - side.alike(classes) * (share_row + share_col)

    code = operands.Weight[weight.upper()]
    cuts = [3, 1, 2]
    sizes = [2 * count * side.rows for count, side in zip(cuts, sides, strict=False)]
    grad, sums = (
        torch.full((sum(sizes), 24), torch.nan, device=DEVICE),
        torch.full((sum(sizes),), torch.nan, device=DEVICE),
    )
    z = operand.to(dtype)
    of_rows, of_cols = {"exp": (None, None), "factor": (terms, terms)}.get(weight, (terms, terms[:, 2:]))
    library.ops(z.device).contract(
        *(z, z, of_rows, of_cols, classes, classes, 1, 0, views, numbers(sides, cuts)),
        *(5.0 * log2, 0.0, weight in ("two", "classes"), code, dtype == torch.float32, 1.0, grad, sums, None),
    )
    for i, side in enumerate(sides):
        for got, want in zip((grad, sums), side.truth(operand, weigh, views), strict=True):
            found = got.split(sizes)[i].view(cuts[i], 2, side.rows, *got.shape[1:]).sum(0)
            assert (found - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("task", ["exp", "running", "classes"])
@pytest.mark.parametrize(("dtype", "dim"), [(torch.bfloat16, 24), (torch.bfloat16, 264), (torch.float32, 24)], ids=str)
def test_sums_of_sides(dtype: torch.dtype, dim: int, task: str, views: int, machine: Machine) -> None:
    skip_if_portable_again(dtype, machine)
    if DEVICE == "cpu" and dim > 256 and machine.capability == 80:
        pytest.skip("only sm_90 has other kernels for long rows")
    operand, n, log2 = unit(2, 301, dim, dtype), 301 if views == 2 else 150, 1.0
    if dtype != torch.float32:
        log2 = 1.4426950408889634
    sides = [SideOf(0, 0, n, n)] if views == 2 else [SideOf(0, 151, n, n), SideOf(151, 0, n, n)]
    if task == "classes" and views == 2:
        pytest.skip("views have no classes")
    classes = torch.randint(0, 4, (2, 301), device=DEVICE) << 40 if task == "classes" else None
    results = 2 * len(sides) * (1 if classes is None else 3)
    z, size = operand.to(dtype), operands.tile(operand.to(dtype), "sums", operands.Weight.EXP)
    cuts = 3 * size.cluster
    row, top = torch.full((2, cuts, results, n), torch.nan, device=DEVICE)
    library.ops(z.device).sums(
        *(z, z, None, None, classes, classes, 1, 0, views, numbers(sides, [1, 1])),
        *(5.0 * log2, 0.0, False, primitives.SUM_TASKS[task], dtype == torch.float32, False, -(-n // size.rows), cuts),
        *(row, None if task == "exp" else top, None, None),
    )
    row, *positives = row.split(2 * len(sides), 1)
    if task != "exp":
        row = row * (top[:, : 2 * len(sides)].masked_fill(row == 0, 0) / log2).exp()

    def close(found: Tensor, want: Tensor, i: int) -> bool:
        return (found.sum(0)[2 * i : 2 * i + 2] - want).abs().max() <= TOLERANCE[dtype] * want.abs().max()

    for i, side in enumerate(sides):
        assert close(row, side.truth(operand, lambda logits, _: logits.exp(), views)[1], i)
        if classes is not None:
            logits, number = positives
            assert close(logits / log2, side.truth(operand, lambda logits, of: logits * of.alike(classes), 1)[1], i)
            _, want = side.truth(operand, lambda _, of: of.alike(classes).double(), 1)
            assert torch.equal(number.sum(0)[2 * i : 2 * i + 2].double(), want)
