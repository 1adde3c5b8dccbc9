"""Which pairs a kernel visits, and where it reads and writes: every pair once, addresses beyond 2^31 included."""

from collections.abc import Iterator

import pytest
import torch
from conftest import DEVICE, needs_triton
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from hyperkern.backends import load
from hyperkern.backends.host import panels, partials
from hyperkern.backends.triton import config, normalize, primitives
from hyperkern.backends.triton.launch import Launch, launch
from hyperkern.backends.triton.operands import as_operands
from hyperkern.spec import PairSpec, PairTerms

pytestmark = [needs_triton, *([pytest.mark.gpu] if torch.cuda.is_available() else [])]
# A row that goes by panels.
LONG = 300 if torch.cuda.is_available() else 70

# With this scale every weight is exactly 1: sums are numbers of pairs.
ONE = 1e-30


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, bool]:
    sizes = st.sampled_from([1, 2, 15, 16, 17, 31, 33, 64, 70])
    return draw(sizes), draw(sizes), draw(st.sampled_from([3, LONG])), draw(st.booleans())


@pytest.mark.parametrize("exclude", ["none", "self"])
@given(shape=shapes())
def test_every_pair_counts_once(exclude: str, shape: tuple) -> None:
    m, n, dim, symmetric = shape
    n = m if symmetric else n
    x, y = torch.randn(2, m, dim, device=DEVICE), None if symmetric else torch.randn(2, n, dim, device=DEVICE)
    spec = PairSpec(ONE, True, exclude)
    pairs = torch.ones(m, n, device=DEVICE)
    if exclude == "self":
        pairs.fill_diagonal_(0)
    backend = load("triton")
    total, _, sum_x, _, sum_y = backend.energy(x, y, PairTerms(), spec, "exp", need_x=True, need_y=not symmetric)
    assert torch.equal(sum_x, pairs.sum(1).expand(2, -1))
    assert total.tolist() == [pairs.sum()] * 2
    if not symmetric:
        assert torch.equal(sum_y, pairs.sum(0).expand(2, -1))
    value, *_ = backend.energy(x, y, PairTerms(), spec, "exp", need_x=False, need_y=False)
    assert torch.equal(value, total)
    row, col = primitives.pair_sums(as_operands(x, y, PairTerms(), spec), "exp", need_cols=True, total=False)
    assert torch.equal(row.total, pairs.sum(1).expand(2, -1))
    if not symmetric:
        assert col is not None
        assert torch.equal(col.total, pairs.sum(0).expand(2, -1))


@pytest.mark.parametrize("stripes", [1, 2, 3])
def test_more_row_blocks_than_stripes(stripes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Programs then serve several blocks of rows and add to partial sums of columns that they wrote before.
    monkeypatch.setattr(primitives, "_STRIPES", stripes)
    for m, n in ((75, 20), (100, 100)):
        x = torch.nn.functional.normalize(torch.randn(2, m, 6, device=DEVICE), dim=-1)
        y = None if m == n else torch.nn.functional.normalize(torch.randn(2, n, 6, device=DEVICE), dim=-1)
        for bounded in (False, True):
            row, col, *_ = load("triton").row_lse(x, y, PairTerms(), PairSpec(5.0, bounded, "self"), need_cols=True)
            logits = 5 * x.double() @ (x if y is None else y).double().mT
            logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
            torch.testing.assert_close(row.double(), logits.logsumexp(2), rtol=1e-6, atol=1e-6)
            if y is not None:
                torch.testing.assert_close(col.double(), logits.logsumexp(1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bounded", [False, True])
def test_a_cut_triangle_has_partial_sums_for_each_of_its_ranges(bounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # From round to round the ranges of a triangle differ: two programs must never add to the same partial sum.
    seen: list[tuple[int, int, int]] = []

    def noted(planned: Launch, device: torch.device, *pointers: torch.Tensor | None) -> None:
        stripes, cuts = planned.numbers[3:5]
        col = pointers[9]
        assert planned.programs == 2 * stripes * cuts
        assert col is not None
        seen.append((stripes, cuts, col.shape[0]))
        launch(planned, device, *pointers)

    monkeypatch.setattr(primitives, "_STRIPES", 2)
    monkeypatch.setattr(primitives, "cut", lambda *args: 3)
    monkeypatch.setattr(primitives, "launch", noted)
    x = torch.nn.functional.normalize(torch.randn(2, 150, 6, device=DEVICE), dim=-1)
    row, *_ = load("triton").row_lse(x, None, PairTerms(), PairSpec(5.0, bounded, "self"), need_cols=False)
    logits = 5 * x.double() @ x.double().mT
    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    torch.testing.assert_close(row.double(), logits.logsumexp(2), rtol=1e-6, atol=1e-6)
    assert seen == [(2, 3, 6)]


def test_panels_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # A workspace that holds one panel of 20 x 24 pairs: ragged panels, the diagonal, the mirror images, the batch.
    monkeypatch.setattr(panels, "_PANEL_ROWS", 20)
    monkeypatch.setattr(panels, "_WORKSPACE", 4 * 20 * 24)
    for symmetric in (True, False):
        x = torch.nn.functional.normalize(torch.randn(3, 57, LONG, device=DEVICE), dim=-1)
        y = None if symmetric else torch.nn.functional.normalize(torch.randn(3, 41, LONG, device=DEVICE), dim=-1)
        spec = PairSpec(3.0, True, "self")
        for potential in ("exp", "softplus"):
            args = (PairTerms(), spec, potential)
            got = load("triton").energy(x, y, *args, need_x=True, need_y=not symmetric)
            expected = load("reference").energy(
                x.double(), None if y is None else y.double(), *args, need_x=True, need_y=not symmetric
            )
            for ours, truth in zip(got, expected, strict=True):
                assert ours.shape == truth.shape
                if truth.numel():
                    assert (ours.double() - truth).abs().max() <= 2e-6 * truth.abs().max()


def far_apart(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``(1, rows, D)`` whose last row lies beyond 2^31 elements; memory that nobody touches takes no space on a CPU."""
    count, dim = shape
    stride = (1 << 31) // (count - 1) + 64
    storage = torch.empty((count - 1) * stride + dim, dtype=dtype, device=DEVICE)
    return storage.as_strided((1, count, dim), (0, stride, 1))


@pytest.fixture
def given_back() -> Iterator[None]:
    """What PyTorch would keep of a GPU's memory, gigabytes here, is given back to other processes."""
    yield
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


@pytest.mark.usefixtures("given_back")
@pytest.mark.parametrize("dim", [8, LONG + 20], ids=["one-pass", "panels"])
def test_last_rows_beyond_two_to_the_31(dim: int) -> None:
    x, y = far_apart((3, dim)), far_apart((4, dim))
    for side in (x, y):
        side.copy_(torch.nn.functional.normalize(torch.randn(side.shape, device=DEVICE), dim=-1))
    assert x.stride(1) * 2 > 1 << 31
    spec = PairSpec(2.0, True)
    backend, dense = load("triton"), (x.contiguous(), y.contiguous())
    results = [backend.row_lse(*sides, PairTerms(), spec, need_cols=True) for sides in ((x, y), dense)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)
    results = [backend.energy(*sides, PairTerms(), spec, "exp", need_x=True, need_y=True) for sides in ((x, y), dense)]
    for got, expected in zip(*results, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.usefixtures("given_back")
def test_gradient_rows_beyond_two_to_the_31() -> None:
    # The rows of a block of rows are close together, as in every gradient; blocks are not.
    m = 2 * (16 if DEVICE == "cpu" else 128) + 3
    x = torch.nn.functional.normalize(torch.randn(1, m, 16, device=DEVICE), dim=-1)
    o = as_operands(x, None, PairTerms(), PairSpec(2.0, True, "self"))
    expected = primitives.contract(o, "exp", primitives.Factors(), need_x=True, need_y=False)[0]
    cuts = expected.grad.shape[0]
    stride = (1 << 31) // (cuts * m - 1) + 64
    storage = torch.empty((cuts * m - 1) * stride + 16, device=DEVICE)
    grad = storage.as_strided((cuts, 1, m, 16), (m * stride, 0, stride, 1))
    assert grad[-1, 0, -1].data_ptr() - grad.data_ptr() > 4 << 31
    out = partials.Side(grad, *(torch.empty(cuts, 1, m, device=DEVICE) for _ in range(2)))
    primitives.launch_contract(o, "exp", primitives.Factors(), out)
    assert torch.equal(grad, expected.grad)


@pytest.mark.usefixtures("given_back")
def test_normalisation_beyond_two_to_the_31() -> None:
    x = far_apart((3, 8), torch.float16)
    x.copy_(torch.randn(1, 3, 8, device=DEVICE))
    unit, rstd = normalize.prepare(x)
    for got, expected in zip((unit, rstd), normalize.prepare(x.contiguous()), strict=True):
        assert torch.equal(got, expected)
    grad = torch.randn(1, 3, 8, device=DEVICE)
    far_unit = far_apart((3, 8)).copy_(unit)
    far_dx = far_apart((3, 8))
    normalize.launch_normalize_backward(grad, far_unit, rstd, far_dx)
    assert torch.equal(far_dx, normalize.normalize_backward(grad, unit, rstd, torch.float32))


def test_cuts_fill_the_gpu_and_bound_the_memory() -> None:
    multiprocessors = config.of_name("sm_90").multiprocessors

    def cuts(programs: int, tiles: int, size: int = 0) -> int:
        return partials.cut(programs, tiles, size, multiprocessors)

    assert cuts(4, 64) == 16
    assert cuts(132, 64) == 1
    assert cuts(8192, 8192) == 1
    assert cuts(133, 64) > 1  # two waves, the second with one program
    assert cuts(4, 3) <= 3
    assert cuts(4, 64, 1 << 30) == 1
    for programs in range(1, 600, 7):
        chosen = cuts(programs, 64)
        waves = -(-programs * chosen // 132) / chosen
        assert waves <= -(-programs // 132)
