"""The primitives of every backend, through the contract of `hyperkern.backends.Backend`, against dense float64."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Exact, interpreted
from oracle import assert_close
from torch import Tensor

from hyperkern import backends
from hyperkern.spec import PairSpec, PairTerms, accumulate_dtype, norm_eps

SCALE = 3.0


class Dense(NamedTuple):
    """A problem and its logits in float64, ``-inf`` where a pair is left out."""

    x: Tensor
    y: Tensor | None
    terms: PairTerms
    spec: PairSpec
    logits: Tensor

    @property
    def columns(self) -> Tensor:
        return self.x if self.y is None else self.y


def problem(
    *,
    m: int = 21,
    n: int = 13,
    d: int = 5,
    batch: int = 2,
    symmetric: bool = False,
    exclude: str = "none",
    bounded: bool = False,
    weights: str = "",
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Dense:
    draw = torch.Generator().manual_seed(m * n + d)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(randn(*shape), dim=-1).to(dtype)

    x = unit(batch, m, d)
    y = None if symmetric else unit(batch, n, d)
    n = m if symmetric else n
    u = randn(batch, m).to(dtype) if "u" in weights else None
    v = randn(batch, n).to(dtype) if "v" in weights and not symmetric else None
    row_ids = torch.arange(m).expand(batch, m) % 4 if exclude == "same_id" else None
    col_ids = torch.arange(n).expand(batch, n) % 3 if exclude == "same_id" and not symmetric else None

    logits = SCALE * x.double() @ (x if y is None else y).double().mT
    logits = logits + (0 if u is None else u.double()[:, :, None])
    right = u if symmetric else v
    logits = logits + (0 if right is None else right.double()[:, None, :])
    if exclude == "self":
        logits = logits.masked_fill(torch.arange(m)[:, None] == torch.arange(n), -math.inf)
    if exclude == "same_id":
        assert row_ids is not None
        right_ids = row_ids if col_ids is None else col_ids
        logits = logits.masked_fill(row_ids[:, :, None] == right_ids[:, None, :], -math.inf)
    spec = PairSpec(SCALE, bounded, exclude)
    terms = PairTerms(*(None if t is None else t.to(device) for t in (u, v, row_ids, col_ids)))
    return Dense(x.to(device), None if y is None else y.to(device), terms, spec, logits)


def problems() -> Iterator[Any]:
    """Every rule, side, regime and kind of log-weight together."""
    for symmetric in (False, True):
        for exclude in ("none", "self", "same_id"):
            for bounded in (False, True):
                for weights in ("", "u") if symmetric else ("", "u", "v", "uv"):
                    kind = f"{'symmetric' if symmetric else 'two-sided'}-{exclude}-{'bounded' * bounded}-{weights}"
                    yield pytest.param(
                        {"symmetric": symmetric, "exclude": exclude, "bounded": bounded, "weights": weights}, id=kind
                    )
    for m, n, d, batch in ((1, 1, 1, 1), (1, 17, 2, 1), (17, 1, 3, 3), (8, 16, 4, 1), (7, 9, 129, 1), (2, 3, 5, 70)):
        yield pytest.param({"m": m, "n": n, "d": d, "batch": batch}, id=f"shape-{batch}-{m}-{n}-{d}")
        yield pytest.param({"m": m, "d": d, "batch": batch, "symmetric": True}, id=f"shape-{batch}-{m}-{d}")


PROBLEMS = list(problems())
# `energy` is asked for bounded problems alone.
BOUNDED = [p for p in PROBLEMS if p.values[0].get("bounded", True)]


def with_sides(problems: list, *, value_alone: bool) -> list:
    """Each with every choice of sides that has something to compute: a symmetric problem has one side."""
    found = []
    for problem in problems:
        (options,) = problem.values
        for name, needs in {
            "both": (True, True),
            "x": (True, False),
            "y": (False, True),
            "none": (False, False),
        }.items():
            if (value_alone or any(needs)) and not (needs[1] and options.get("symmetric")):
                found.append(pytest.param(options, *needs, id=f"{problem.id}-{name}"))
    return found


def weighted(p: Dense, w: Tensor, symmetric_sides: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `pair_grad` and `energy` return, from all the weights."""
    return w @ p.columns.double().cpu(), w.sum(2), w.mT @ p.x.double().cpu(), w.sum(1)


def check_sides(results: tuple, expected: tuple, p: Dense, need_x: bool, need_y: bool, tolerance: float) -> None:
    for result, truth, needed in zip(results, expected, (need_x, need_x, need_y, need_y), strict=True):
        assert result.dtype == (torch.float64 if p.x.dtype == torch.float64 else torch.float32)
        truth = truth if needed else truth[:, :0]
        assert_close(result.double().cpu(), truth, tolerance)


def lse(logits: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(logits, dim)


def kernel(logits: Tensor, shift: Tensor) -> Tensor:
    return torch.where(logits == -math.inf, 0, torch.exp(logits - shift))


@pytest.mark.parametrize("options", PROBLEMS)
@pytest.mark.parametrize("need_cols", [False, True])
def test_row_lse(
    options: dict,
    need_cols: bool,
    backend: str,
    device: torch.device,
    exact: Exact,
    small_blocks: None,
    poisoned_allocations: None,
) -> None:
    p = problem(**options, dtype=exact.dtype, device=device)
    row, col, *_ = backends.load(backend).row_lse(p.x, p.y, p.terms, p.spec, need_cols=need_cols)
    check_lse(row.cpu(), lse(p.logits, 2), exact.tolerance(1e-12))
    expected = lse(p.logits, 1)
    check_lse(col.cpu(), expected if need_cols and p.y is not None else expected[:, :0], exact.tolerance(1e-12))


def check_lse(actual: Tensor, truth: Tensor, tolerance: float) -> None:
    nothing = truth == -math.inf
    assert torch.equal(actual == -math.inf, nothing)
    assert_close(actual.double().masked_fill(nothing, 0), truth.masked_fill(nothing, 0), tolerance)


def skip_one_side_again(options: dict, need_x: bool, need_y: bool, backend: str, device: torch.device) -> None:
    """Sides meet neither log-weights in a kernel nor batches, and an interpreter takes its time."""
    again = options.get("weights") or options.get("batch", 0) > 3
    if interpreted(backend, device) and again and not options.get("symmetric") and need_x != need_y:
        pytest.skip("one side alone: without log-weights")


@pytest.mark.parametrize(("options", "need_x", "need_y"), with_sides(PROBLEMS, value_alone=False))
def test_pair_grad(
    options: dict,
    need_x: bool,
    need_y: bool,
    backend: str,
    device: torch.device,
    exact: Exact,
    small_blocks: None,
    poisoned_allocations: None,
) -> None:
    skip_one_side_again(options, need_x, need_y, backend, device)
    p = problem(**options, dtype=exact.dtype, device=device)
    row, col = lse(p.logits, 2), lse(p.logits, 1)
    a, b = torch.randn(row.shape, dtype=torch.float64), torch.randn(col.shape, dtype=torch.float64)
    by_row, by_col = kernel(p.logits, row[:, :, None]), kernel(p.logits, col[:, None, :])
    module = backends.load(backend)
    for with_b in (False, True):
        if p.y is None:
            w, given = a[:, :, None] * by_row + a[:, None, :] * by_col, (row, None, a, None)
        elif with_b:
            w, given = a[:, :, None] * by_row + b[:, None, :] * by_col, (row, col, a, b)
        else:
            w, given = a[:, :, None] * by_row, (row, None, a, None)
        on_device = [None if t is None else t.to(device, exact.dtype) for t in given]
        results = module.pair_grad(p.x, p.y, p.terms, p.spec, *on_device, need_x=need_x, need_y=need_y)
        check_sides(results, weighted(p, w), p, need_x, need_y, exact.tolerance(1e-11))


@pytest.mark.parametrize(("options", "need_x", "need_y"), with_sides(BOUNDED, value_alone=True))
@pytest.mark.parametrize("potential", ["exp", "softplus"])
def test_energy(
    options: dict,
    potential: str,
    need_x: bool,
    need_y: bool,
    backend: str,
    device: torch.device,
    exact: Exact,
    small_blocks: None,
    poisoned_allocations: None,
) -> None:
    skip_one_side_again(options, need_x, need_y, backend, device)
    if interpreted(backend, device) and potential == "softplus" and need_x != need_y and not options.get("symmetric"):
        pytest.skip("one side alone: of the exponential")
    p = problem(**(options | {"bounded": True}), dtype=exact.dtype, device=device)
    if potential == "exp":
        value = w = p.logits.exp()
    else:
        value, w = torch.nn.functional.softplus(p.logits, threshold=50), p.logits.sigmoid()
    total, *sides = backends.load(backend).energy(p.x, p.y, p.terms, p.spec, potential, need_x=need_x, need_y=need_y)
    assert_close(total.double().cpu(), value.sum((1, 2)), exact.tolerance(1e-11))
    # Terms of up to a few hundred cancel in these sums.
    check_sides(tuple(sides), weighted(p, w), p, need_x, need_y, exact.tolerance(1e-11, 3e-5))


def test_softplus_to_the_last_digits(backend: str, device: torch.device, exact: Exact) -> None:
    # Each logit is a problem of its own, of one pair, so that no sum hides what is lost: the log-weight alone.
    u = torch.tensor([-80.0, -17, -5, -2, -1, -0.5, -0.1, -1e-3, 0, 1e-3, 0.1, 0.5, 1, 2, 5, 17, 80], dtype=exact.dtype)
    x, terms = torch.zeros(len(u), 1, 3, dtype=exact.dtype, device=device), PairTerms(u.view(-1, 1).to(device))
    value, _, slope, _, _ = backends.load(backend).energy(
        x, x.clone(), terms, PairSpec(SCALE), "softplus", need_x=True, need_y=False
    )
    logits = u.double()
    # An exponential has the relative error of its argument's rounding.
    allowed = torch.finfo(exact.dtype).eps * (3 + logits.abs())
    for found, truth in ((value, torch.nn.functional.softplus(logits, threshold=800)), (slope[:, 0], logits.sigmoid())):
        assert ((found.double().cpu() - truth).abs() <= allowed * truth).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_operands(
    dtype: torch.dtype, bounded: bool, symmetric: bool, backend: str, device: torch.device
) -> None:
    p = problem(m=70, n=45, d=40, symmetric=symmetric, bounded=bounded, exclude="self", dtype=dtype, device=device)
    module = backends.load(backend)
    row, col, *_ = module.row_lse(p.x, p.y, p.terms, p.spec, need_cols=True)
    assert row.dtype == col.dtype == torch.float32
    check_lse(row.cpu(), lse(p.logits, 2), 2e-6)
    a = torch.ones_like(row)
    w = kernel(p.logits, lse(p.logits, 2)[:, :, None])
    w = w + w.mT if symmetric else w
    results = module.pair_grad(p.x, p.y, p.terms, p.spec, row, None, a, None, need_x=True, need_y=not symmetric)
    check_sides(results, weighted(p, w), p, True, not symmetric, 4e-6)
    total, *sides = module.energy(
        p.x, p.y, p.terms, p.spec._replace(bounded=True), "exp", need_x=True, need_y=not symmetric
    )
    assert total.dtype == torch.float32
    assert_close(total.double().cpu(), p.logits.exp().sum((1, 2)), 2e-6)
    check_sides(tuple(sides), weighted(p, p.logits.exp()), p, True, not symmetric, 4e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_across_the_real_block_size(symmetric: bool, backend: str, device: torch.device, exact: Exact) -> None:
    # The reference's blocks have 1024 rows; of a kernel's tiles these are several either way.
    m, n = (265, 263) if interpreted(backend, device) else (1025, 1023)
    masks = {"symmetric": symmetric, "exclude": "self", "bounded": True}
    p = problem(m=m, n=n, d=3, batch=1, **masks, dtype=exact.dtype, device=device)
    module = backends.load(backend)
    row, col, *_ = module.row_lse(p.x, p.y, p.terms, p.spec, need_cols=True)
    check_lse(row.cpu(), lse(p.logits, 2), exact.tolerance(1e-12))
    check_lse(col.cpu(), lse(p.logits, 1)[:, : col.shape[1]], exact.tolerance(1e-12))
    total, *sides = module.energy(p.x, p.y, p.terms, p.spec, "exp", need_x=True, need_y=not symmetric)
    assert_close(total.double().cpu(), p.logits.exp().sum((1, 2)), exact.tolerance(1e-12))
    check_sides(tuple(sides), weighted(p, p.logits.exp()), p, True, not symmetric, exact.tolerance(1e-11, 1e-4))


@pytest.mark.parametrize(("bounded", "precision"), [(False, None), (True, None), (True, "bfloat16")])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rows_without_a_candidate(
    symmetric: bool, bounded: bool, precision: str | None, backend: str, device: torch.device, exact: Exact
) -> None:
    dtype = exact.dtype if precision is None else torch.float32
    p = problem(symmetric=symmetric, bounded=bounded, exclude="same_id", dtype=dtype, device=device)
    p = p._replace(spec=p.spec._replace(precision=precision or p.spec.precision))
    zeros = [None if t is None else torch.zeros_like(t) for t in p.terms]  # every pair has equal ids
    terms = PairTerms(*zeros)
    module = backends.load(backend)
    row, col, *_ = module.row_lse(p.x, p.y, terms, p.spec, need_cols=not symmetric)
    assert (row == -math.inf).all()
    assert (col == -math.inf).all()
    a, b = torch.ones_like(row), None if symmetric else torch.ones_like(col)
    results = module.pair_grad(
        p.x, p.y, terms, p.spec, row, None if symmetric else col, a, b, need_x=True, need_y=not symmetric
    )
    assert all((result == 0).all() for result in results)


@pytest.mark.parametrize("dim", [5, 300])
@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize(("batch", "m", "n"), [(2, 0, 5), (2, 5, 0), (2, 0, 0), (0, 5, 4)])
def test_nothing_on_a_side(
    batch: int, m: int, n: int, bounded: bool, dim: int, backend: str, device: torch.device
) -> None:
    # A rank may have no rows.
    x, y = (torch.zeros(batch, count, dim, dtype=torch.bfloat16, device=device) for count in (m, n))
    spec, module = PairSpec(SCALE, bounded, precision="bfloat16"), backends.load(backend)
    row, col, *_ = module.row_lse(x, y, PairTerms(), spec, need_cols=True)
    assert (row.shape, col.shape) == ((batch, m), (batch, n))
    assert (row == -math.inf).all()
    assert (col == -math.inf).all()
    results = module.pair_grad(x, y, PairTerms(), spec, row, col, row * 0, col * 0, need_x=True, need_y=True)
    if bounded:
        total, *sides = module.energy(x, y, PairTerms(), spec, "exp", need_x=True, need_y=True)
        assert (total == 0).all()
        results = (*results, *sides)
    for result in results:
        assert result.shape[0] == batch
        assert (result.nan_to_num() == 0).all()


def test_running_maximum_survives_any_logit(
    backend: str, device: torch.device, exact: Exact, small_blocks: None
) -> None:
    p = problem(dtype=exact.dtype, device=device)
    spec = p.spec._replace(scale=1e4, bounded=False)
    row, col, *_ = backends.load(backend).row_lse(p.x, p.y, p.terms, spec, need_cols=True)
    logits = p.logits * (1e4 / SCALE)
    check_lse(row.cpu(), lse(logits, 2), exact.tolerance(1e-12))
    check_lse(col.cpu(), lse(logits, 1), exact.tolerance(1e-12))


@pytest.mark.parametrize(("scale", "dim"), [(30.0, 40), (1e4, 40), (1e8, 40), (1e8, 300)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_of_a_row_sum_to_one(
    symmetric: bool, scale: float, dim: int, backend: str, device: torch.device, small_blocks: None
) -> None:
    # Of logits so large that a log-sum-exp has no digit left of its sum, and that one last bit is a factor.
    p = problem(m=70, n=45, d=dim, symmetric=symmetric, exclude="self", dtype=torch.float32, device=device)
    spec, nothing = p.spec._replace(scale=scale, bounded=False), PairTerms()
    module = backends.load(backend)
    lse = module.row_lse(p.x, p.y, nothing, spec, need_cols=not symmetric)
    both = {"need_x": True, "need_y": not symmetric}
    of_rows = lse.row, None, lse.row_rounding, None
    _, by_row, _, by_col = module.pair_grad(p.x, p.y, nothing, spec, *of_rows, **both)
    if symmetric:  # each pair is the row's and, for the other row, the column's
        torch.testing.assert_close(by_row.double().sum(1), by_row.new_full((2,), 140.0).double(), rtol=2e-6, atol=0)
        return
    torch.testing.assert_close(by_row, torch.ones_like(by_row), rtol=2e-6, atol=0)
    torch.testing.assert_close(by_col.sum(1), by_row.sum(1), rtol=2e-6, atol=0)
    of_cols = lse.row, lse.col, torch.zeros_like(lse.row), lse.col_rounding
    _, by_row, _, by_col = module.pair_grad(p.x, p.y, nothing, spec, *of_cols, **both)
    torch.testing.assert_close(by_col, torch.ones_like(by_col), rtol=2e-6, atol=0)
    torch.testing.assert_close(by_col.sum(1), by_row.sum(1), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_prepare_and_finish(dtype: torch.dtype, backend: str, device: torch.device, poisoned_allocations: None) -> None:
    module = backends.load(backend)
    if module.unsupported(backends.Problem("prepare", device, dtype, 7)):
        pytest.skip(f"{backend} does not serve {dtype}")
    x = torch.randn(3, 33, 7, dtype=torch.float64).to(dtype)
    x[1, 5] = 0
    unit, rstd = module.prepare(x.to(device))
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    assert unit.dtype == rstd.dtype == sums
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    norm = x.double().norm(dim=-1)
    eps = 2.0**-14 if dtype == torch.float16 else 1e-12
    zero = norm == 0
    assert_close(unit.double().cpu(), x.double() / norm.masked_fill(zero, 1)[..., None], tolerance)
    torch.testing.assert_close(rstd.double().cpu(), 1 / norm.clamp_min(eps), rtol=tolerance, atol=0)

    grad = torch.randn(3, 33, 7, dtype=sums)
    dx = module.normalize_backward(grad.to(device), unit, rstd, dtype)
    assert dx.dtype == dtype
    x64 = x.double().requires_grad_()
    (expected,) = torch.autograd.grad(torch.nn.functional.normalize(x64, dim=-1, eps=eps), x64, grad.double())
    rounding = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(dx.double().cpu(), expected, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dim", [7, 40, 1030])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_only_the_gradient_of_rows_no_longer_than_eps_saturates(
    dtype: torch.dtype, dim: int, backend: str, device: torch.device
) -> None:
    module = backends.load(backend)
    if module.unsupported(backends.Problem("prepare", device, dtype, dim)):
        pytest.skip(f"{backend} does not serve {dtype}")
    largest, eps, sums = torch.finfo(dtype).max, norm_eps(dtype), accumulate_dtype(dtype)
    x = torch.zeros(1, 9, dim, dtype=torch.float64)
    x[0, :, -1] = eps * torch.tensor([0, 0.5, 0.98, 1.02, 3, 1 / eps, 0, 0.5, 3])
    x = x.to(dtype)
    length, short = x[0, :, -1:].double(), torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 0]).bool()[:, None]
    # Elements that leave the range behind 1 / eps, and some that do not.
    grad = torch.randn(1, 9, dim, dtype=sums).sign() * (largest * eps * 8)
    grad[..., ::3] = torch.randn(grad[..., ::3].shape, dtype=sums) * (largest * eps / 64)
    grad[0, 6, 1] = torch.inf
    grad[0, 7, 2] = grad[0, 8, 3] = torch.nan
    unit, rstd = module.prepare(x.to(device))
    dx = module.normalize_backward(grad.to(device), unit, rstd, dtype)[0].cpu()
    g, u = grad[0].double(), unit[0].double().cpu()
    # In units of the largest number, beyond which there is no float64 either.
    expected = (g - (g * u).sum(-1, keepdim=True) * u) / length.clamp_min(eps) / largest
    expected = torch.where(short, expected.clamp(-1, 1), expected)
    expected = torch.where(expected.abs() > 1, torch.inf * expected, largest * expected)
    torch.testing.assert_close(dx.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
    assert (dx[:3].abs() == largest).any(1).all()
    assert dx[:3].isfinite().all()
    assert dx[3].isinf().any()
    assert dx[6:].isnan().all()


def test_a_symmetric_problem_has_no_column_side(
    backend: str, device: torch.device, exact: Exact, small_blocks: None
) -> None:
    # Asked for it nevertheless, a backend must not count the diagonal blocks twice.
    p = problem(symmetric=True, dtype=exact.dtype, device=device)
    module = backends.load(backend)
    row, col, *_ = module.row_lse(p.x, None, p.terms, p.spec, need_cols=True)
    check_lse(row.cpu(), lse(p.logits, 2), exact.tolerance(1e-12))
    assert col.shape == (2, 0)


@pytest.mark.parametrize("dim", [40, 70], ids=["one-pass", "panels"])
@pytest.mark.parametrize("scale", [3.0, 12.0])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_products_in_half_precision(
    precision: str, symmetric: bool, scale: float, dim: int, backend: str, device: torch.device
) -> None:
    # Rows that half precision holds exactly: what is lost is lost on the weights, and sums are float32.
    dtype = getattr(torch, precision)
    p = problem(m=61, n=45, d=dim, symmetric=symmetric, exclude="self", bounded=True, dtype=dtype, device=device)
    x, y = p.x.float(), None if p.y is None else p.y.float()
    logits, spec = p.logits * (scale / SCALE), p.spec._replace(scale=scale, precision=precision)
    module, both = backends.load(backend), {"need_x": True, "need_y": not symmetric}
    row, col, *_ = module.row_lse(x, y, p.terms, spec, need_cols=True)
    assert_close(row.double().cpu(), lse(logits, 2), 1e-5)

    # The factors may have any size: float16 must not see it.
    for size in (1e-6, 1.0, 1e6):
        a, b = size * torch.rand(row.shape).double(), size * torch.rand(lse(logits, 1).shape).double()
        w = a[:, :, None] * kernel(logits, lse(logits, 2)[:, :, None])
        w = w + (a if symmetric else b)[:, None, :] * kernel(logits, lse(logits, 1)[:, None, :])
        given = (row, None, a, None) if symmetric else (row, col, a, b)
        given = [None if t is None else t.to(device, torch.float32) for t in given]
        within_digits(module.pair_grad(x, y, p.terms, spec, *given, **both), weighted(p, w), both, dtype)
    for potential in ("exp", "softplus"):
        value = logits.exp() if potential == "exp" else torch.nn.functional.softplus(logits, threshold=50)
        total, *sides = module.energy(x, y, p.terms, spec, potential, **both)
        alone, *_ = module.energy(x, y, p.terms, spec, potential, need_x=False, need_y=False)
        for found in (total, alone):
            assert_close(found.double().cpu(), value.sum((1, 2)), 1e-5)
        w = logits.exp() if potential == "exp" else logits.sigmoid()
        within_digits(sides, weighted(p, w), both, dtype)


TILES = [
    pytest.param({"exclude": "self", "m": m, "n": n, "batch": 1}, id=f"several-tiles-{m}-{n}")
    for m, n in ((70, 90), (90, 70))
]


@pytest.mark.parametrize("options", [*BOUNDED, *TILES])
def test_bounded_problems_in_half_precision(
    options: dict, backend: str, device: torch.device, small_blocks: None, poisoned_allocations: None
) -> None:
    """Sums of both sides at once, and factors of either: exact rows, so that sums are as good as in float32."""
    p = problem(**{**options, "bounded": True}, dtype=torch.bfloat16, device=device)
    spec = p.spec._replace(precision="bfloat16")
    x, y = p.x.float(), None if p.y is None else p.y.float()
    terms = p.terms._replace(u=rounded(p.terms.u), v=rounded(p.terms.v))
    module, symmetric = backends.load(backend), y is None
    row, col, *_ = module.row_lse(x, y, terms, spec, need_cols=True)
    truth = lse(p.logits, 2), lse(p.logits, 1)
    check_lse(row.cpu(), truth[0], 2e-6)
    check_lse(col.cpu(), truth[1][:, : col.shape[1]], 2e-6)

    of_rows, of_cols = kernel(p.logits, truth[0][:, :, None]), kernel(p.logits, truth[1][:, None, :])
    a, b = (torch.linspace(-1, 2, t.numel(), dtype=torch.float32).view(t.shape) for t in truth)
    if symmetric:
        sides = [(row, None, a, None)]
        weights = [a[:, :, None] * of_rows + a[:, None, :] * of_cols]
    else:
        sides = [(row, col, a, b), (row, None, a, None)]
        weights = [a[:, :, None] * of_rows + b[:, None, :] * of_cols, a[:, :, None] * of_rows]
    needed = {"need_x": True, "need_y": not symmetric}
    for given, w in zip(sides, weights, strict=True):
        on_device = [None if t is None else t.to(device) for t in given]
        found = module.pair_grad(x, y, terms, spec, *on_device, **needed)
        within_digits(found, weighted(p, w), needed, torch.bfloat16)


def rounded(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def within_digits(results: Any, expected: tuple, needed: dict[str, bool], dtype: torch.dtype) -> None:
    sides = (needed["need_x"], needed["need_x"], needed["need_y"], needed["need_y"])
    for result, truth, need in zip(results, expected, sides, strict=True):
        if need:
            error = (result.double().cpu() - truth).abs().max() / truth.abs().max()
            assert error <= torch.finfo(dtype).eps
