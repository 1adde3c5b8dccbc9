"""SupCon where labels make a difference: singletons, one class, queues, batches, any integers."""

import oracle
import pytest
import torch
from cases import values_and_grads
from oracle import assert_close
from torch import Tensor

import hyperkern as hk

# One and two rows of a class, none of another's, and a class of the queue alone.
LABELS = torch.tensor([3, 0, 3, 5, 0, 7, 3])
QUEUE_LABELS = torch.tensor([0, 3, 3, 9, 5, 3, 9, 9, 0, 9])


def features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def check(
    x: Tensor, labels: Tensor, y: Tensor | None = None, y_labels: Tensor | None = None, **options: object
) -> None:
    """Values and gradients, of every reduction, against the dense formula."""
    args = [x] if y is None else [x, y]
    for reduction in ("mean", "sum", "none"):
        found = values_and_grads(
            lambda a, b=None, r=reduction: (hk.sup_con(a, labels, b, y_labels, reduction=r, **options),), args
        )
        truth = values_and_grads(
            lambda a, b=None, r=reduction: (
                oracle.sup_con(a, labels=labels, y=b, y_labels=y_labels, reduction=r, **options),
            ),
            args,
        )
        for actual, expected in zip([*found[0], *found[1]], [*truth[0], *truth[1]], strict=True):
            assert_close(actual, expected)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("normalize", [True, False])
def test_classes_of_one_row_are_negatives_only(normalize: bool, temperature: float) -> None:
    x = features(7, 4)
    check(x, LABELS, normalize=normalize, temperature=temperature)
    losses = hk.sup_con(x, LABELS, reduction="none")
    assert (losses == 0).tolist() == [False, False, False, True, False, True, False]
    assert_close(hk.sup_con(x, LABELS), losses.sum() / 5)
    # As negatives they count.
    assert hk.sup_con(x[:5], LABELS[:5]) != hk.sup_con(x, LABELS)


def test_no_row_has_a_positive() -> None:
    x = features(5, 3).requires_grad_()
    for rows in (5, 1):
        loss = hk.sup_con(x[:rows], torch.arange(rows))
        (grad,) = torch.autograd.grad(loss, x)
        assert loss == 0
        assert (grad == 0).all()


def test_all_labels_equal() -> None:
    x = features(6, 4)
    check(x, torch.full((6,), 4))
    # Two rows of one class have nothing to be told apart from.
    pair = features(2, 4).requires_grad_()
    loss = hk.sup_con(pair, torch.zeros(2, dtype=torch.long))
    assert_close(loss, torch.zeros_like(loss))
    assert_close(torch.autograd.grad(loss, pair)[0], torch.zeros_like(pair))


@pytest.mark.parametrize("normalize", [True, False])
def test_against_a_queue(normalize: bool) -> None:
    x, y = features(7, 4), features(10, 4)
    check(x, LABELS, y, QUEUE_LABELS, normalize=normalize, temperature=0.3)
    check(x, LABELS, y[:1], QUEUE_LABELS[:1], normalize=normalize)
    # Labels that the queue does not know.
    assert hk.sup_con(x, LABELS + 100, y, QUEUE_LABELS) == 0


def test_a_queue_that_holds_the_rows_themselves_has_them_as_positives() -> None:
    x = features(7, 4)
    check(x, LABELS, x.clone(), LABELS)
    assert hk.sup_con(x, LABELS, x, LABELS, reduction="none").all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_any_integer_dtype(dtype: torch.dtype) -> None:
    x, y = features(7, 4), features(10, 4)
    assert hk.sup_con(x, LABELS.to(dtype)) == hk.sup_con(x, LABELS)
    # Of two dtypes they are compared as numbers.
    expected = hk.sup_con(x, LABELS, y, QUEUE_LABELS)
    assert hk.sup_con(x, LABELS.to(dtype), y, QUEUE_LABELS) == expected
    # 9 is a class of the queue alone; in eight bits these are 3 and 0.
    for other in (256 + 3, 2**40):
        assert hk.sup_con(x, LABELS.to(dtype), y, QUEUE_LABELS.masked_fill(QUEUE_LABELS == 9, other)) == expected


@pytest.mark.parametrize("shift", [-5, -(2**63), 2**63 - 10, 2**53])
def test_labels_are_names_not_numbers(shift: int) -> None:
    x, y = features(7, 4), features(10, 4)
    labels, queue_labels = LABELS + shift, QUEUE_LABELS + shift
    assert len(labels.unique()) == len(LABELS.unique())
    assert hk.sup_con(x, labels) == hk.sup_con(x, LABELS)
    assert hk.sup_con(x, labels, y, queue_labels) == hk.sup_con(x, LABELS, y, QUEUE_LABELS)


def test_batch_dimension() -> None:
    x, y = features(3, 7, 4), features(3, 10, 4)
    # The same numbers are other classes in another element of the batch.
    labels = torch.stack([LABELS, LABELS.flip(0), torch.zeros_like(LABELS)])
    queue_labels = torch.stack([QUEUE_LABELS, torch.zeros_like(QUEUE_LABELS), QUEUE_LABELS + 1])
    check(x, labels)
    check(x, labels, y, queue_labels)
    for i in range(3):
        assert_close(hk.sup_con(x, labels, y, queue_labels)[i], hk.sup_con(x[i], labels[i], y[i], queue_labels[i]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_labels_that_are_no_integers_are_refused(dtype: torch.dtype) -> None:
    x = features(7, 4)
    with pytest.raises(TypeError, match=f"labels must have an integer dtype, got {dtype}"):
        hk.sup_con(x, LABELS.to(dtype))
    with pytest.raises(TypeError, match=f"y_labels must have an integer dtype, got {dtype}"):
        hk.sup_con(x, LABELS, x, LABELS.to(dtype))


def test_a_queue_needs_labels_and_labels_a_queue() -> None:
    x = features(7, 4)
    with pytest.raises(ValueError, match="y is given, y_labels is None"):
        hk.sup_con(x, LABELS, x)
    with pytest.raises(ValueError, match="y_labels is given, y is None"):
        hk.sup_con(x, LABELS, y_labels=LABELS)
    with pytest.raises(ValueError, match=r"labels must have shape \(7,\)"):
        hk.sup_con(x, LABELS[:6])


def test_float32_is_as_close_as_its_rounding() -> None:
    x, labels = features(300, 24, dtype=torch.float32), torch.arange(300) % 17
    value, grad = (t[0] for t in values_and_grads(lambda a: (hk.sup_con(a, labels),), [x]))
    truth, true_grad = (t[0] for t in values_and_grads(lambda a: (oracle.sup_con(a, labels=labels),), [x.double()]))
    assert abs(value - truth) <= 1e-6 * truth
    assert (grad - true_grad).abs().max() <= 2e-6 * true_grad.abs().max()
