"""The streamed values are those of the losses."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hyperkern as hk
from hyperkern.evaluation import Source
from hyperkern.evaluation.blocks import default_block_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are not of unit length", "ignore:.*rows are zero")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}


def views(n: int, d: int, dtype: torch.dtype = torch.float64, zeros: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, d, dtype=torch.float64)
    y = x + 0.4 * torch.randn(n, d, dtype=torch.float64)
    x[:zeros] = 0
    return x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("t", [2.0, 60.0, 1e3])
def test_equals_the_losses(dtype: torch.dtype, normalize: bool, weighted: bool, t: float) -> None:
    x, y = views(203, 17, dtype, zeros=3)
    weights = torch.rand(203, dtype=torch.float64) if weighted else None
    options = {"t": t, "alpha": 1.5, "normalize": normalize, "weights": weights}
    result = hk.evaluate(x, y, block_rows=37, device="cpu", **options)
    of_loss = None if weights is None else weights.to(torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = TOLERANCE[dtype]
    for side, rows in zip(result.sides, (x, y), strict=True):
        expected = hk.uniformity(rows, t=t, normalize=normalize, x_weights=of_loss).item()
        assert side.uniformity == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert result.uniformity == pytest.approx(sum(side.uniformity for side in result.sides) / 2, rel=1e-15)
    each = hk.alignment(x, y, alpha=1.5, normalize=normalize, reduction="none").double()
    expected = each.mean() if weights is None else (each * weights).sum() / weights.sum()
    assert result.alignment == pytest.approx(expected.item(), rel=tolerance)
    assert (result.method, result.standard_error, result.interval, result.columns) == ("exact", None, None, None)


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 41))
def test_blocks_of_any_size(n: int, d: int, block_rows: int) -> None:
    x, y = views(n, d)
    result = hk.evaluate(x, y, block_rows=block_rows)
    expected = hk.align_uniform(x, y)
    assert result.uniformity == pytest.approx(expected.uniformity.item(), rel=1e-12, abs=1e-12)
    assert result.alignment == pytest.approx(expected.alignment.item(), rel=1e-12)


def test_on_every_backend(backend: str, device: torch.device) -> None:
    x, y = (view.to(device) for view in views(70, 16, torch.float32, zeros=2))
    expected = hk.align_uniform(x.cpu(), y.cpu(), backend="reference")
    exact = hk.evaluate(x, y, block_rows=32, backend=backend)
    assert exact.device == str(x.device)
    assert exact.uniformity == pytest.approx(expected.uniformity.item(), rel=1e-5)
    assert exact.alignment == pytest.approx(expected.alignment.item(), rel=1e-5)
    estimate = hk.evaluate(x, y, block_rows=32, backend=backend, method="estimate", columns=60)
    reference = hk.evaluate(x.cpu(), y.cpu(), block_rows=32, backend="reference", method="estimate", columns=60)
    assert estimate.uniformity == pytest.approx(reference.uniformity, rel=1e-5)
    assert estimate.standard_error == pytest.approx(reference.standard_error, rel=1e-2)


def test_features_and_floor() -> None:
    x = torch.nn.functional.normalize(torch.randn(300, 24))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = hk.evaluate(x)
        as_they_are = hk.evaluate(x, normalize=False)
    assert result.floor == hk.metrics.uniformity_limit(24, 2.0)
    assert result.gap == result.uniformity - result.floor
    assert result.alignment is None
    assert len(result.sides) == 1
    assert result.sides[0].norms == pytest.approx((1, 1, 1), rel=1e-6)
    assert as_they_are.floor == result.floor
    assert as_they_are.uniformity == pytest.approx(result.uniformity, rel=1e-5)
    assert hk.evaluate(3 * x, normalize=False).floor is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_normalised_in_any_precision_are_of_unit_length(dtype: torch.dtype) -> None:
    x = torch.nn.functional.normalize(torch.randn(500, 64)).to(dtype)
    assert hk.evaluate(x).warnings == ()


def test_norms_of_rows_that_overflow_when_squared() -> None:
    x = torch.tensor([[1e200], [3e200], [1e-200], [2.0]], dtype=torch.float64).repeat(1, 3)
    x[0, 1] = -1e200
    result = hk.evaluate(x)
    assert result.sides[0].norms[0] == pytest.approx(3**0.5 * 1e-200, rel=1e-12)
    assert result.sides[0].norms[2] == pytest.approx(3**0.5 * 3e200, rel=1e-12)
    assert result.uniformity == pytest.approx(hk.uniformity(x).item(), rel=1e-12)


@pytest.mark.parametrize("method", ["exact", "estimate"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_counted_and_never_dropped(method: str, value: float) -> None:
    x, y = views(100, 8, torch.float32)
    x[17, 3] = x[90, 0] = value
    seen = []
    with pytest.warns(UserWarning, match="features: 2 of 100 rows hold nan or inf, so the result is nan"):
        result = hk.evaluate(x, y, method=method, columns=32, block_rows=30, progress=lambda *p: seen.append(p))
    assert math.isnan(result.uniformity)
    assert math.isnan(result.sides[0].uniformity)
    assert not math.isnan(result.sides[1].uniformity)
    assert math.isnan(result.alignment)
    assert [side.bad_rows for side in result.sides] == [2, 0]
    assert all(map(math.isfinite, result.sides[0].norms))
    assert seen[-1][0] == seen[-1][1]
    content = result.to_dict()
    assert content["uniformity"] is None
    assert content["sides"][0]["bad_rows"] == 2


def test_all_rows_bad() -> None:
    with pytest.warns(UserWarning, match="100 of 100 rows"):
        result = hk.evaluate(torch.full((100, 3), math.nan))
    assert math.isnan(result.uniformity)
    assert result.to_dict()["sides"][0]["norms"] == [None] * 3


def test_warnings_name_norms_and_zero_rows() -> None:
    x = 2 * torch.nn.functional.normalize(torch.randn(50, 6))
    x[7] = 0
    with pytest.warns(UserWarning, match="features: ") as caught:
        result = hk.evaluate(x)
    texts = [str(w.message) for w in caught]
    assert tuple(texts) == result.warnings
    assert texts[0] == "features: 1 of 50 rows are zero and stay at the origin"
    assert texts[1] == "features: rows are not of unit length (norms 0 to 2, mean 1.96): they were normalised"
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="distances are Euclidean, and the floor does not apply"):
        hk.evaluate(x, normalize=False)


@pytest.mark.parametrize("method", ["exact", "estimate"])
@pytest.mark.parametrize("sides", [1, 2])
def test_progress_counts_to_the_end(method: str, sides: int) -> None:
    x = torch.randn(100, 4)
    seen: list[tuple[int, int]] = []
    hk.evaluate(*[x] * sides, method=method, columns=16, block_rows=30, progress=lambda *p: seen.append(p))
    total = sides * (4 + (10 if method == "exact" else 8))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_each_block_is_read_no_more_often_than_needed() -> None:
    class Counting(Source):
        def __init__(self) -> None:
            super().__init__("counting", (40, 3), torch.float32)
            self.reads: list[tuple[int, int]] = []
            self.data = torch.randn(40, 3)

        def read(self, start: int, stop: int) -> torch.Tensor:
            self.reads.append((start, stop))
            return self.data[start:stop]

    source = Counting()
    result = hk.evaluate(source, block_rows=10)
    assert result.uniformity == pytest.approx(hk.uniformity(source.data).item(), rel=1e-6)
    # Once in the scan, then with every block before it and for itself.
    assert [source.reads.count((start, start + 10)) for start in range(0, 40, 10)] == [2, 3, 4, 5]


def test_inputs_are_left_as_they_are_and_need_no_grad() -> None:
    x = torch.randn(50, 5, requires_grad=True)
    before = x.detach().clone()
    result = hk.evaluate(x)
    assert isinstance(result.uniformity, float)
    assert torch.equal(x, before)
    assert x.grad is None


def test_blocks_fit_wide_features() -> None:
    assert default_block_rows(torch.device("cpu"), 128) == 8192
    assert default_block_rows(torch.device("cpu"), 2**30) == 1
    assert default_block_rows(torch.device("cuda"), 4096) * 4096 <= 2**24


X = torch.randn(20, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ([[1.0, 2.0]], {}, TypeError, "features must be a tensor, a NumPy array or .*, got list"),
        ([X[0]], {}, ValueError, r"features must have shape \(N, D\), got \(4,\)"),
        ([X[None]], {}, ValueError, r"features must have shape \(N, D\), got \(1, 20, 4\)"),
        ([X.long()], {}, TypeError, "features must be float64, .*, got torch.int64"),
        ([np.ones((3, 2), np.int32)], {}, TypeError, "features must be float64, .*, got int32"),
        ([np.ones((3, 2), np.complex64)], {}, TypeError, "features must be float64, .*, got complex64"),
        ([X[:0]], {}, ValueError, r"features must not be empty, got shape \(0, 4\)"),
        ([X[:1]], {}, ValueError, "features must have at least 2 rows"),
        ([X.to_sparse()], {}, ValueError, "features must be a dense tensor"),
        ([X, X[:19]], {}, ValueError, r"positives .* shape of features, \(20, 4\), got \(19, 4\)"),
        ([X, X[:, :3]], {}, ValueError, r"positives .* shape of features, \(20, 4\), got \(20, 3\)"),
        ([X, X.double()], {}, TypeError, "positives .* dtype of features, torch.float32, got torch.float64"),
        ([X], {"t": 0}, ValueError, "t must be a finite number > 0, got 0"),
        ([X], {"alpha": -1}, ValueError, "alpha must be a finite number > 0, got -1"),
        ([X], {"method": "guess"}, ValueError, "method must be one of 'exact', 'estimate', got 'guess'"),
        ([X], {"columns": 15}, ValueError, "columns must be at least 16, got 15"),
        ([X], {"columns": 16.0}, TypeError, "columns must be an integer, got float"),
        ([X], {"block_rows": 0}, ValueError, "block_rows must be at least 1, got 0"),
        ([X], {"confidence": 1.0}, ValueError, "confidence must lie between 0.5 and 1, got 1.0"),
        ([X], {"device": "abacus"}, ValueError, "device .* got 'abacus'"),
        ([X], {"device": "meta"}, ValueError, "device must hold values, got meta"),
        ([X], {"device": "cuda:99"}, ValueError, "device cuda:99 is not here"),
        ([X], {"backend": "abacus"}, ValueError, "backend='abacus' is unknown"),
        ([X], {"weights": torch.ones(19)}, ValueError, r"weights must have shape \(20,\).*got \(19,\)"),
        ([X], {"weights": torch.ones(20).long()}, TypeError, "weights must have a floating dtype"),
        ([X], {"weights": torch.arange(20.0) - 2}, ValueError, "weights must be finite and >= 0, 2 of 20 are not"),
        ([X], {"weights": torch.eye(20)[0]}, ValueError, "weights must be > 0 for at least 2 rows"),
        ([X], {"method": "estimate", "columns": 16, "normalize": False}, ValueError, "needs normalize=True"),
        ([X], {"method": "estimate", "columns": 16, "t": 101}, ValueError, "t must be at most 100 with method="),
    ],
)
def test_errors_name_the_argument_and_its_value(arguments, options, error, text) -> None:
    with pytest.raises(error, match=text):
        hk.evaluate(*arguments, **options)
