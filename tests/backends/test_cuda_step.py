"""The row-wise kernels of whole losses in CUDA C++, one by one: long sums, memory around them, bad arguments."""

import pytest
import torch
from conftest import DEVICE
from torch import Tensor

from hyperkern.backends.cuda import align_uniform, library
from hyperkern.spec import LossSpec

pytestmark = [
    pytest.mark.skipif(library.objection(DEVICE) is not None, reason=str(library.objection(DEVICE))),
    *([pytest.mark.gpu] if torch.cuda.is_available() else []),
]


def test_the_sums_of_many_rows() -> None:
    batch, m, blocks, cuts, t = 3, 5003, 626, 3, 1.5
    align, sums = torch.rand(batch, blocks, device=DEVICE), torch.rand(cuts, 2 * batch, m, device=DEVICE)
    zeros = torch.zeros(2, batch, blocks, device=DEVICE)
    zeros[1, 2, :600] = 2
    total = torch.empty(2 * batch, device=DEVICE)
    loss, alignment, uniformity = (torch.empty(batch, device=DEVICE) for _ in range(3))
    library.ops(align.device).combine(align, zeros, sums, t, 0.5, -3.0, total, loss, alignment, uniformity)
    count = zeros.double().sum(2).flatten()
    true_total = sums.double().sum((0, 2))
    true_total += 2 * count * (m - count) * torch.tensor(t).double().expm1()
    true_total += count * (count - 1) * torch.tensor(2 * t).double().expm1()
    true_align = align.double().sum(1) / m
    true_uniform = ((true_total / (m * (m - 1))).log() - 2 * t).view(2, batch).mean(0)
    pairs = (
        (total, true_total),
        (alignment, true_align),
        (uniformity, true_uniform),
        (loss, 0.5 * true_align - 3 * true_uniform),
    )
    for got, want in pairs:
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [3, 8, 130, 1027])
def test_nothing_outside_is_read_or_written(dim: int, dtype: torch.dtype) -> None:
    def inside(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor amid nan."""
        around = torch.full((1024 + torch.Size(shape).numel(),), torch.nan, dtype=dtype, device=DEVICE)
        everything.append(around)
        tensor = around[512:-512].view(shape)
        return tensor.copy_(torch.randn(shape))

    everything: list[Tensor] = []
    m, padded = 11, -(-dim // (16 // dtype.itemsize)) * (16 // dtype.itemsize)
    ops = library.ops(torch.device(DEVICE))
    x, y, dx, dy = (inside(2, m, dim, dtype=dtype) for _ in range(4))
    unit, of_unit = inside(2, m, dim), inside(2, m, dim)
    rstd, align, zeros = inside(2, m), inside(2, 2), inside(2, 2, 2)
    operand = inside(2, 2, m, padded, dtype=dtype)
    grad, total, of_loss = inside(2, 4, m, padded), inside(4), inside(2)
    ops.normalize_rows(x, 1e-12, unit, rstd)
    ops.normalize_rows_backward(of_unit, unit, rstd, 1e-12, dx)
    ops.prepare_views(x, y, 1e-12, 0.5, operand, align, zeros)
    assert (operand[..., dim:] == 0).all()
    ops.finish_views(x, y, grad, total, of_loss, None, of_loss, 1e-12, 0.5, 2.0, 1.0, 1.0, dx, dy)
    for around in everything:
        assert around[:512].isnan().all()
        assert around[-512:].isnan().all()
        assert around[512:-512].isfinite().all()


def test_bad_arguments_are_named() -> None:
    x, y = torch.randn(2, 2, 12, 6, device=DEVICE)
    spec = LossSpec("align_uniform", 4.0)
    (loss, _, _), (grad, total) = align_uniform.align_uniform(x, y, spec, need_grad=True)
    ops = library.ops(x.device)
    numbers = (1e-12, 2.0, 2.0, 1.0, 1.0)
    parts = x.new_empty(3, 2, 2)
    cases = [
        (
            lambda: ops.prepare_views(x, y, 1e-12, 2.0, x.new_empty(2, 2, 12, 6), parts[0], parts[1:]),
            r"operand must have shape \(2, 2, 12, 8\), got \(2, 2, 12, 6\)",
        ),
        (
            lambda: ops.prepare_views(x, y[:, :5], 1e-12, 2.0, x.new_empty(2, 2, 12, 8), parts[0], parts[1:]),
            r"y must have shape \(2, 12, 6\), got \(2, 5, 6\)",
        ),
        (
            lambda: ops.prepare_views(x, y.half(), 1e-12, 2.0, x.new_empty(2, 2, 12, 8), parts[0], parts[1:]),
            "y must be Float, got Half",
        ),
        (
            lambda: ops.combine(parts[0], parts[1:], grad[..., 0, 0], 2.0, 1.0, 1.0, total, loss, loss, loss),
            r"sums must have shape \(cuts, 4, rows\)",
        ),
        (
            lambda: ops.finish_views(x, y, grad[..., :5], total, loss, None, None, *numbers, x.clone(), y.clone()),
            r"grad must have shape \(cuts, 4, 12, at least 6\), got",
        ),
        (
            lambda: ops.finish_views(x, y, grad, total, loss[:1], None, None, *numbers, x.clone(), y.clone()),
            r"of_loss must have shape \(2\), got \(1\)",
        ),
        (
            lambda: ops.finish_views(x, y, grad, total, loss, None, None, *numbers, x.mT.contiguous().mT, y.clone()),
            "dx must be contiguous",
        ),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


# ---- whole losses ----------------------------------------------------------------------------------------------------

SOFTMAX, DECOUPLED, SIGMOID, ENERGY, CLASSES = range(5)


def float_zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, device=DEVICE)


def head(code: int, n: int, row: Tensor, places: tuple, **given: object) -> dict[str, object]:
    """The operator `head`, with what is not given; its arguments."""
    batch = given.get("batch", 2)
    arguments = {
        **{"head": code, "n": n, "further": 0, "row": row, "top": None, "second": None, "places": places},
        **{"positives": None, "together": False, "scale": None, "scale_value": 1.0, "reciprocal": False, "bias": None},
        **{"bias_value": 0.0, "unit": 1.0, "share": 1.0, "sigma": 0.0, "gain": 1.0, "t": 1.0, "zeros": None},
        **{"terms": None, "weights": None, "total": None, "loss": float_zeros(batch)},
        **{"partials": float_zeros(batch * (n // 256 + 2)), "counted": float_zeros(batch + 1)},
        **{name: value for name, value in given.items() if name != "batch"},
    }
    library.ops(row.device).head(**arguments)
    return arguments


@pytest.mark.parametrize("unit", [1.0, 1.4426950408889634])
def test_the_softmax_of_many_rows(unit: float) -> None:
    """Two ways, relative to maxima, by several blocks of threads; what is written for rows that are nobody's."""
    n, cuts, batch = 777, 3, 2
    tops = 40 * torch.randn(cuts, 2 * batch, n, device=DEVICE)
    sums = torch.rand(cuts, 2 * batch, n, device=DEVICE) + 0.1
    tops[:, 1, 5], sums[:, 1, 5] = -torch.inf, 0  # a row without others
    tops[0], sums[0] = -torch.inf, 0  # a range of columns without any
    positives = 2 * torch.rand(batch, n, device=DEVICE) - 1
    terms, weights = torch.full((batch, 5, 1700), torch.nan, device=DEVICE), torch.full_like(positives, torch.nan)
    scale = torch.tensor(0.2, dtype=torch.float64, device=DEVICE)
    places = (1, 0, 1, 0, 0, 1, 1, batch * n, 1, 0, 0, 1)
    given = {"positives": positives, "scale": scale, "reciprocal": True, "terms": terms, "weights": weights}
    found = head(
        SOFTMAX, n, sums, places, top=tops, unit=unit, share=0.3, gain=7.0, partials=float_zeros(2 * 7), **given
    )
    lse = (tops.double() / unit + sums.double().log()).logsumexp(0).view(2, batch, n)
    excess = lse - 5 * positives.double()
    torch.testing.assert_close(
        found["loss"].double(), 0.3 * torch.nn.functional.softplus(excess).sum((0, 2)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(weights.double(), -excess.sigmoid().sum(0), rtol=1e-4, atol=1e-6)
    assert (found["counted"] == 0).all()
    p, a, nothing, again, p_again = terms.unbind(1)
    assert torch.equal(a, again)
    assert torch.equal(p, p_again)
    assert (nothing == 0).all()
    second = n + n % 2
    for way, first in ((0, 0), (1, second)):
        of_way = slice(first, first + n)
        weighed = a[:, of_way].double() * ((p[:, of_way].double() / unit) + lse[way]).exp()
        expected = 7 * excess[way].sigmoid()
        torch.testing.assert_close(weighed, expected.masked_fill(expected == 0, 0), rtol=2e-4, atol=1e-6)
    assert (terms[:, :, n:second] == 0).all()
    assert (terms[:, :, second + n :] == 0).all()


def test_the_weights_of_alike_positives() -> None:
    n, batch = 600, 2
    sums, positives = torch.rand(1, batch, 2 * n, device=DEVICE) + 1, torch.rand(batch, n, device=DEVICE)
    weights = torch.empty(batch, n, device=DEVICE)
    found = head(
        DECOUPLED, n, sums, (1, 0, 2, 0, 0, 2, 1, 1, 2, 0, 0, 2), positives=positives, together=True, scale_value=3.0,
        sigma=0.05, weights=weights,
    )  # fmt: skip
    w = 2 - n * (positives.double() / 0.05).softmax(1)
    torch.testing.assert_close(weights.double(), -2 * w, rtol=1e-4, atol=1e-5)
    expected = sums.double().log().sum((0, 2)) - 2 * 3 * (w * positives.double()).sum(1)
    torch.testing.assert_close(found["loss"].double(), expected, rtol=1e-5, atol=1e-3)


def test_the_energy_of_many_rows() -> None:
    n, k, t, batch, blocks = 1000, 300, 0.7, 2, 163
    sums = torch.rand(3, 2 * batch, n, device=DEVICE)
    zeros = float_zeros(2, batch, blocks)
    zeros[0, 1, :100], zeros[1, 0, 7], zeros[1, 1, 3] = 1, 4, 2
    total = float_zeros(batch)
    found = head(
        ENERGY, n, sums, (1, 0, 1, 1, batch * n, 1), further=k, zeros=zeros, total=total, t=t, partials=float_zeros(8)
    )
    zx, zy = zeros.double().sum(2)
    one, two = torch.tensor([t, 2 * t]).double().expm1()
    expected = sums[:, :batch].double().sum((0, 2)) / 2 + sums[:, batch:].double().sum((0, 2))
    expected += (2 * zx * (n - zx) * one + zx * (zx - 1) * two) / 2
    expected += (zx * (k - zy) + (n - zx) * zy) * one + zx * zy * two
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    mean = expected / (n * (n - 1) / 2 + n * k)
    torch.testing.assert_close(found["loss"].double(), mean.log() - 2 * t, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unit", [1.0, 1.4426950408889634])
@pytest.mark.parametrize("mean", [True, False])
def test_the_classes_of_many_rows(unit: float, mean: bool) -> None:
    """By several blocks of threads; rows without a positive, and a range of columns without any."""
    n, cuts, batch, padded = 777, 3, 2, 1500
    tops = 40 * torch.randn(cuts, 3 * batch, n, device=DEVICE)  # of the sums alone
    sums = torch.rand(cuts, 3 * batch, n, device=DEVICE) + 0.1
    tops[0], sums[0] = -torch.inf, 0
    sums[1:, 2:4] *= 20
    sums[:, 4:] = torch.randint(3, (cuts, batch, n), device=DEVICE).float()
    sums[:, 4:, ::5] = 0
    terms = torch.full((batch, 6, padded), torch.nan, device=DEVICE)
    total = torch.full((batch,), torch.nan, device=DEVICE)
    found = head(
        CLASSES, n, sums, (1, 0, 1, 0, 0, 1, 1, batch * n, 1, 1, 2 * batch * n, 1), top=tops, unit=unit, gain=7.0,
        terms=terms, total=total if mean else None, partials=float_zeros(2 * 2 * 6),
    )  # fmt: skip
    lse = (tops[:, :batch].double() / unit + sums[:, :batch].double().log()).logsumexp(0)
    logits, number = sums[:, batch:].double().sum(0).split(batch)
    anchors = number > 0
    losses = torch.where(anchors, lse - logits / unit / number.clamp_min(1), 0)
    torch.testing.assert_close(
        found["loss"].double(), losses.sum(1) / (anchors.sum(1) if mean else 1), rtol=1e-5, atol=0
    )
    assert (found["counted"] == 0).all()
    assert total.equal(anchors.sum(1).float()) if mean else total.isnan().all()
    p, a, nothing, again, p_again, share = terms.unbind(1)
    assert torch.equal(a, again)
    assert torch.equal(p, p_again)
    assert (nothing == 0).all()
    weighed = a[:, :n].double() * (p[:, :n].double() / unit + lse).exp()
    torch.testing.assert_close(weighed, 7 * anchors.double(), rtol=2e-4, atol=0)
    torch.testing.assert_close(share[:, :n].double(), torch.where(anchors, 7 / number, 0), rtol=1e-6, atol=0)
    assert (p[:, n:] == -torch.inf).all()
    assert (a[:, n:] == 0).all()
    assert (share[:, n:] == 0).all()


@pytest.mark.parametrize("others", [0, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_rows(dtype: torch.dtype, others: int) -> None:
    """Classes are in the order of the rows, and nothing beside them is written."""
    n, limits = 11, torch.iinfo(dtype)
    x, queue = torch.randn(2, n, 6, device=DEVICE), torch.randn(2, others, 6, device=DEVICE)
    labels, queue_labels = (torch.randint(9, (2, k), device=DEVICE).to(dtype) for k in (n, others))
    labels[0, 3], labels[1, 4] = limits.min, limits.max
    around = torch.full((2 * (n + others) + 2,), 77, dtype=torch.int64, device=DEVICE)
    classes = around[1:-1].view(2, n + others)
    library.ops(x.device).prepare_loss(
        *(x, None, queue if others else None, 1e-12, not others, None, False, None, 0.0, 1.0),
        *(x.new_empty(2, n + others, 8), None, None, x.new_empty(3), None, None, None, None, None),
        *(labels, queue_labels if others else None, classes),
    )
    assert torch.equal(classes, torch.cat([labels, queue_labels], 1).long())
    assert around[0] == around[-1] == 77


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [3, 8, 130, 256])
def test_whole_losses_read_and_write_nothing_outside(dim: int, dtype: torch.dtype, together: bool) -> None:
    everything: list[Tensor] = []

    def inside(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A contiguous tensor amid nan."""
        around = torch.full((1024 + torch.Size(shape).numel(),), torch.nan, dtype=dtype, device=DEVICE)
        everything.append(around)
        tensor = around[512:-512].view(shape)
        return tensor.copy_(torch.randn(shape))

    n, k = 11, 0 if together else 5
    rows, padded = 2 * n + k, -(-dim // (16 // dtype.itemsize)) * (16 // dtype.itemsize)
    ops = library.ops(torch.device(DEVICE))
    x, y, dx, dy = (inside(2, n, dim, dtype=dtype) for _ in range(4))
    queue, dqueue = (None, None) if together else (inside(2, k, dim, dtype=dtype) for _ in range(2))
    operand, positives, terms = inside(2, rows, padded, dtype=dtype), inside(2, n), inside(2, 5, rows + 3)
    counts, cleared, zeros, bias = inside(3), inside(7), inside(2, 2, 2), inside(17)
    scale, kept_x, kept_y, kept_scale = inside(1).abs_(), inside(2, n, dim), inside(2, n, dim), inside(1)
    ops.prepare_loss(
        x, y, queue, 1e-12, together, scale, True, None, 3.0, 2.0, operand, positives, zeros, counts, cleared, bias,
        kept_x, kept_y, kept_scale, None, None, None,
    )  # fmt: skip
    assert torch.equal(kept_scale, scale)
    for kept, given in ((kept_x, x), (kept_y, y)):
        torch.testing.assert_close(kept, torch.nn.functional.normalize(given.float(), dim=-1))
    assert (operand[..., dim:] == 0).all()
    assert (counts == 0).all()
    assert (cleared == 0).all()
    assert (bias == 3.0).all()
    sums, weights, loss = inside(1, 2, rows).abs_(), inside(2, n), inside(2)
    places = (1, 0, 2, 0, 0, 2, 1, 1, 2, 0, 0, 2) if together else (1, 0, 1, 0, 0, 1)
    head(
        SOFTMAX, n, sums, places, positives=positives, together=together, terms=terms, weights=weights, loss=loss,
        partials=inside(2), counted=counts,
    )  # fmt: skip
    grad = inside(3 * 2 * rows + 2 * 2 * rows, padded)
    second = (6 * rows, 2, 0, 0, rows)
    if together:
        of_features = (0, 3, 6 * rows, 2, rows, 0, 2, 0, 3, 0, 0, rows, 1, 2, *[0] * 7)
    else:
        of_features = (0, 3, 6 * rows, 2, rows, 0, 1, *second, 0, 1, *second, n, 1)
    of_scale = inside(1)
    partials = inside(2 * 2 * (4 + (0 if together else 1)))
    ops.finish_loss(
        x, y, queue, together, scale, 1.0, True, grad, None, of_features, weights, None, loss, 0.5, 1.0, 1.0,
        1e-12, dx, dy, dqueue, of_scale, None, partials, counts,
    )  # fmt: skip
    for around in everything:
        assert around[:512].isnan().all()
        assert around[-512:].isnan().all()
        assert around[512:-512].isfinite().all()


def test_bad_arguments_of_whole_losses_are_named() -> None:
    x, y = torch.randn(2, 2, 12, 6, device=DEVICE)
    ops = library.ops(x.device)
    operand, positives, counts = x.new_empty(2, 24, 8), x.new_empty(2, 12), x.new_zeros(3)
    sums, grad, cotangent = x.new_ones(1, 2, 12), x.new_ones(48, 8), x.new_ones(2)

    def prepare(**changed: object) -> None:
        ops.prepare_loss(**{
            **{"x": x, "y": y, "queue": None, "eps": 1e-12, "together": False, "scale": None, "reciprocal": False},
            **{"bias": None, "bias_value": 0.0, "unit": 1.0, "operand": operand, "positives": positives, "zeros": None},
            **{"counted": counts, "cleared": None, "terms": None, "kept_x": None, "kept_y": None, "kept_scale": None},
            **{"labels": None, "queue_labels": None, "classes": None},
            **changed,
        })  # fmt: skip

    labels = torch.zeros(2, 12, dtype=torch.int32, device=DEVICE)
    classes = labels.long()

    def alone(**changed: object) -> None:
        of_x = operand[:, :12].contiguous()
        prepare(**{"y": None, "operand": of_x, "positives": None, "classes": classes, **changed})

    def places(first: int = 0, cuts: int = 1, rows: int = 12) -> tuple[int, ...]:
        return (first, cuts, 0, 0, rows, 0, 1, *(24, 1, 0, 0, 12, 0, 1), *(0, 0, 0, 0, 0, 0, 1))

    def finish(**changed: object) -> None:
        ops.finish_loss(**{
            **{"x": x, "y": y, "queue": None, "together": False, "scale": None, "scale_value": 1.0},
            **{"reciprocal": False, "grad": grad, "sum": None, "places": places()},
            **{"weights": None, "total": None, "of_loss": cotangent, "share": 1.0, "of_pairs": 1.0, "of_zero_row": 1.0},
            **{"eps": 1e-12, "dx": x.clone(), "dy": None, "dqueue": None, "of_scale": None, "of_bias": None},
            **{"partials": None, "counted": counts},
            **changed,
        })  # fmt: skip

    place = (1, 0, 1, 0, 0, 1)
    cases = [
        (lambda: prepare(y=y[:, :5]), r"y must have shape \(2, 12, 6\), got \(2, 5, 6\)"),
        (lambda: prepare(kept_x=y[:, :5].contiguous()), r"kept_x must have shape \(2, 12, 6\)"),
        (lambda: prepare(kept_scale=x.new_empty(1)), "kept_scale is that of a tensor"),
        (lambda: finish(dx=x.half()), "a gradient must have the type of its feature, got Half"),
        (lambda: prepare(operand=operand[:, :23].contiguous()), r"operand must have shape \(2, 24, 8\)"),
        (lambda: prepare(positives=None), "positives are those of x and y"),
        (lambda: prepare(counted=counts[:2]), "counts must be contiguous and have at least 3 elements"),
        (lambda: prepare(scale=x.new_ones(2)), r"scale must be one number, got \(2\)"),
        (lambda: prepare(scale=x.new_ones(()).int()), "scale must be of a floating dtype, got Int"),
        (lambda: prepare(queue=y, together=True), "one symmetric problem is of x, or of x and y, and no others"),
        (lambda: prepare(classes=classes), "partners have no classes"),
        (lambda: alone(), "labels is missing"),
        (lambda: alone(labels=labels[:, :5]), r"labels must have shape \(2, 12\), got \(2, 5\)"),
        (lambda: alone(labels=labels.float()), "labels must be signed integers or uint8, got Float"),
        (lambda: alone(labels=labels.mT.contiguous().mT), "labels must be contiguous"),
        (lambda: alone(labels=labels, classes=classes[:, :5]), r"classes must have shape \(2, 12\), got \(2, 5\)"),
        (lambda: prepare(x=x.new_ones(2, 12, 1025)), "D must be at most 1024, got 1025"),
        (lambda: prepare(queue=y[0]), "queue must have as many dimensions as x"),
        (lambda: head(5, 12, sums, place, positives=positives), "head must be between 0 and 4, got 5"),
        (lambda: head(CLASSES, 12, sums, place, top=sums), "head 4 needs top, and beside the sums those of positives"),
        (lambda: head(SOFTMAX, 12, sums, place), "head 0 needs positives"),
        (lambda: head(ENERGY, 12, sums, place), "head 3 needs zeros and total"),
        (lambda: head(SOFTMAX, 12, sums, place[:3], positives=positives), "places has six numbers for each"),
        (lambda: head(SOFTMAX, 12, sums, (1, 1, 1, 0, 0, 1), positives=positives), "place 0 is not within sums"),
        (lambda: head(SOFTMAX, 12, sums, (2, 0, 1, 0, 0, 1), positives=positives), "there are no sums 2"),
        (
            lambda: head(SOFTMAX, 12, sums, place, positives=positives, terms=x.new_empty(2, 3, 99)),
            r"terms must have shape \(batch, 2 or 5",
        ),
        (
            lambda: head(SOFTMAX, 12, sums, place, positives=positives, partials=x.new_empty(1)),
            "partials must be contiguous and have at least 2 elements",
        ),
        (
            lambda: finish(grad=grad[..., :5].contiguous()),
            r"grad must have shape \(results, at least 6\), got",
        ),
        (lambda: finish(of_loss=cotangent[:1]), r"of_loss must have shape \(2\), got \(1\)"),
        (lambda: finish(places=places(cuts=3)), "feature 0 is not within the rows of grad"),
        (lambda: finish(places=places(first=25)), "feature 0 is not within the rows of grad"),
        (lambda: finish(places=places(rows=11)), "feature 0 is not within the rows of grad"),
        (lambda: finish(places=(0, 1)), "places has seven numbers for each of three features"),
        (lambda: finish(dx=x.mT.contiguous().mT), "a gradient must be contiguous"),
        (lambda: finish(dqueue=x.clone()), "there is no feature 2 to have a gradient"),
        (lambda: finish(of_scale=x.new_empty(())), "the gradient of a number is that of a tensor"),
        (lambda: finish(of_bias=x.new_empty(())), "the gradient of a bias is made of sum"),
        (
            lambda: finish(scale=x.new_ones(()), of_scale=x.new_empty(())),
            "the gradient of a number needs partials",
        ),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()


def test_schemas_of_whole_losses() -> None:
    """What an operator writes is what its schema says, and its fake agrees."""
    checks = ("test_schema", "test_faketensor")
    x, y = torch.randn(2, 2, 12, 6, device=DEVICE)
    ops, counts = library.ops(x.device), x.new_zeros(3)
    operand, positives = x.new_empty(2, 24, 8), x.new_empty(2, 12)
    prepared = (x, y, None, 1e-12, False, None, False, None, 0.0, 1.0, operand, positives, None, counts, None)
    prepared += (None, None, None, None, None, None, None)
    torch.library.opcheck(ops.prepare_loss.default, prepared, test_utils=checks)
    arguments = head(
        SOFTMAX, 12, x.new_ones(1, 2, 12), (1, 0, 1, 0, 0, 1), positives=positives, terms=x.new_empty(2, 2, 40)
    )
    torch.library.opcheck(ops.head.default, (), arguments, test_utils=checks)
    finish = (
        *(x, y, None, False, None, 1.0, False, x.new_ones(48, 8), None),
        (0, 1, 0, 0, 12, 0, 1, 24, 1, 0, 0, 12, 0, 1, 0, 0, 0, 0, 0, 0, 1),
        *(None, None, x.new_ones(2), 1.0, 1.0, 1.0, 1e-12, x.clone(), y.clone(), None, None, None, None, counts),
    )
    torch.library.opcheck(ops.finish_loss.default, finish, test_utils=checks)
