"""What the contrastive losses promise at their edges: no candidates, empty queues, bad arguments."""

import math
from functools import partial

import oracle
import pytest
import torch
from oracle import assert_close
from torch import Tensor

import hyperkern as hk

X, Y, QUEUE = torch.randn(6, 4), torch.randn(6, 4), torch.randn(9, 4)
SAME = torch.zeros(6, dtype=torch.int64)


def value_and_grads(loss, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return value.detach(), list(torch.autograd.grad(value.sum(), leaves))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_without_a_candidate_there_is_nothing_to_tell_apart(reduction: str) -> None:
    for loss in (
        lambda x, y: hk.info_nce(x, y, ids=SAME, reduction=reduction),
        lambda x, y: hk.clip_loss(x, y, ids=SAME, logit_scale=7.0, reduction=reduction),
        lambda x, y: hk.nt_xent(x[:1], y[:1], reduction=reduction),
        lambda x, y: hk.info_nce(x, y, in_batch=False, negatives=x.new_empty(0, 4), reduction=reduction),
        lambda x, y: hk.info_nce(x, y, ids=SAME, negatives=QUEUE, negative_ids=QUEUE[:, 0].long() * 0),
    ):
        value, grads = value_and_grads(loss, X, Y)
        assert (value == 0).all()
        assert all((grad == 0).all() for grad in grads)


def test_candidates_of_some_rows_alone() -> None:
    # Row 0 has nothing left, in the batch and in the queue; the others have.
    ids, queue_ids = torch.tensor([0, 1, 2, 3, 4, 5]), torch.zeros(9, dtype=torch.int64)
    ids[1:3] = 0
    losses, grads = value_and_grads(
        lambda x, y, q: hk.info_nce(x[:3], y[:3], negatives=q, ids=ids[:3], negative_ids=queue_ids, reduction="none"),
        *(X, Y, QUEUE),
    )
    assert (losses == 0).all()
    assert all((grad == 0).all() for grad in grads)
    losses, grads = value_and_grads(
        lambda x, y, q: hk.info_nce(x, y, negatives=q, ids=ids, negative_ids=queue_ids, reduction="none"), X, Y, QUEUE
    )
    assert (losses > 0).all()
    assert all(grad.isfinite().all() for grad in grads)


def test_an_empty_queue_counts_as_none() -> None:
    empty = torch.empty(0, 4)
    assert torch.equal(hk.info_nce(X, Y, negatives=empty), hk.info_nce(X, Y))
    assert torch.equal(hk.nt_xent(X, Y, negatives=empty), hk.nt_xent(X, Y))
    no_ids = torch.empty(0, dtype=torch.int64)
    assert torch.equal(hk.info_nce(X, Y, ids=SAME, negatives=empty, negative_ids=no_ids), torch.tensor(0.0))
    with pytest.raises(ValueError, match=r"y must not be empty, got shape \(0, 4\)"):
        hk.uniformity(X, empty)


def test_the_queue_alone_is_mocos_loss() -> None:
    x, y, queue = (torch.nn.functional.normalize(t, dim=-1) for t in (X, Y, QUEUE))
    logits = torch.cat([(x * y).sum(-1, keepdim=True), x @ queue.T], 1) / 0.07
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(hk.info_nce(X, Y, negatives=QUEUE, in_batch=False), expected)


def test_the_order_of_views_changes_nothing() -> None:
    third = torch.randn(6, 4)
    values = [hk.nt_xent(*views) for views in ((X, Y, third), (third, X, Y), (Y, X, third))]
    for value in values[1:]:
        torch.testing.assert_close(value, values[0])
    each = hk.nt_xent(X, Y, third, reduction="none")
    assert each.shape == (18,)
    torch.testing.assert_close(each.mean(), values[0])


@pytest.mark.parametrize(("loss", "others"), [(hk.info_nce, 7), (hk.nt_xent, 14)])
def test_confident_models(loss, others: int) -> None:
    # log Z - positive of float32 would be rounding alone, and below 0 half of the time.
    x = torch.eye(8)
    expected = torch.tensor(others * math.exp(-20.0))
    torch.testing.assert_close(loss(x, x, temperature=0.05), expected, rtol=1e-5, atol=0)


def test_a_common_log_weight_changes_nothing_and_a_missing_candidate_is_minus_infinity() -> None:
    v = torch.randn(6)
    torch.testing.assert_close(hk.info_nce(X, Y, y_log_weights=v), hk.info_nce(X, Y, y_log_weights=v + 3))
    weights = torch.zeros(9)
    weights[4:] = -torch.inf
    torch.testing.assert_close(
        hk.info_nce(X, Y, negatives=QUEUE, negative_log_weights=weights), hk.info_nce(X, Y, negatives=QUEUE[:4])
    )


@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_log_weights_of_any_size(shift: float) -> None:
    # Beyond what an exponential of float32 holds; the same for all candidates, they change nothing.
    expected, grads = value_and_grads(lambda x, y: hk.info_nce(x, y, negatives=QUEUE), X, Y)
    weights = {"y_log_weights": torch.full((6,), shift), "negative_log_weights": torch.full((9,), shift)}
    found, same = value_and_grads(lambda x, y: hk.info_nce(x, y, negatives=QUEUE, **weights), X, Y)
    # A logit of 200 is rounded to 1e-5.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    for ours, truth in zip(same, grads, strict=True):
        assert (ours - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_hard_negatives_belong_to_their_row() -> None:
    hard = torch.randn(6, 3, 4)
    each = hk.info_nce(X, Y, hard_negatives=hard, reduction="none")
    changed = hk.info_nce(X, Y, hard_negatives=hard.index_fill(0, torch.tensor([2]), 1.0), reduction="none")
    assert (each != changed).tolist() == [False, False, True, False, False, False]


def test_labels_of_which_each_is_the_only_one_change_nothing() -> None:
    for x, y in ((X, Y), (torch.eye(8), torch.eye(8))):  # also of a confident model, whose loss is near 0
        for labels in (torch.arange(len(x)), torch.arange(len(x)).flip(0) - 2**60):
            found, plain = (
                value_and_grads(lambda a, b, k=k: hk.clip_loss(a, b, logit_scale=20.0, reduction="none", **k), x, y)
                for k in ({"labels": labels}, {})
            )
            assert torch.equal(found[0], plain[0])
            assert all(map(torch.equal, found[1], plain[1]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 0, 0], [5, 1, 1, 5, 1, 7]])
def test_several_positives_of_a_pair(labels: list[int], dtype: torch.dtype) -> None:
    of_pairs = torch.tensor(labels, dtype=dtype)
    x, y = X.double(), Y.double()
    for reduction in ("mean", "sum", "none"):
        options = {"labels": of_pairs, "logit_scale": 3.0, "reduction": reduction}
        found, truth = (value_and_grads(partial(m.clip_loss, **options), x, y) for m in (hk, oracle))
        for actual, expected in zip([found[0], *found[1]], [truth[0], *truth[1]], strict=True):
            assert_close(actual, expected, 1e-11)
    # With the sides exchanged it is the same loss, also of each pair.
    each = hk.clip_loss(x, y, logit_scale=3.0, labels=of_pairs, reduction="none")
    assert_close(hk.clip_loss(y, x, logit_scale=3.0, labels=of_pairs, reduction="none"), each)


BAD = [
    (TypeError, "hard_negatives must be a torch.Tensor, got list", lambda: hk.info_nce(X, Y, hard_negatives=[1])),
    (
        TypeError,
        "hard_negatives must have the dtype of x, torch.float32, got torch.float64",
        lambda: hk.info_nce(X, Y, hard_negatives=torch.randn(6, 2, 4).double()),
    ),
    (
        ValueError,
        r"hard_negatives must have shape \(6, H, 4\) to go with x \(6, 4\), got \(5, 2, 4\)",
        lambda: hk.info_nce(X, Y, hard_negatives=torch.randn(5, 2, 4)),
    ),
    (
        ValueError,
        r"hard_negatives must have shape \(6, H, 4\) to go with x \(6, 4\), got \(6, 0, 4\)",
        lambda: hk.info_nce(X, Y, hard_negatives=torch.randn(6, 0, 4)),
    ),
    (TypeError, "ids must have an integer dtype, got torch.float32", lambda: hk.info_nce(X, Y, ids=X[:, 0])),
    (ValueError, r"ids must have shape \(6,\), one entry for each row of x", lambda: hk.info_nce(X, Y, ids=SAME[:5])),
    (TypeError, "ids must have an integer dtype", lambda: hk.clip_loss(X, Y, logit_scale=1.0, ids=X[:, 0])),
    (TypeError, "y_log_weights must have a floating dtype", lambda: hk.info_nce(X, Y, y_log_weights=SAME)),
    (ValueError, r"negatives must have shape \(N, 4\)", lambda: hk.nt_xent(X, Y, negatives=torch.randn(9, 3))),
    (ValueError, r"views\[0\] must have the shape of x", lambda: hk.nt_xent(X, Y, X[:5])),
    (ValueError, "temperature must be a finite number > 0, got 0", lambda: hk.nt_xent(X, Y, temperature=0)),
    (ValueError, "temperature must be a finite number > 0, got -1", lambda: hk.sup_con(X, SAME, temperature=-1)),
    (ValueError, "reduction must be one of", lambda: hk.dcl(X, Y, reduction="max")),
    (ValueError, r"x must have at least 2 rows: one alone has no negatives", lambda: hk.dcl(X[:1], Y[:1])),
    (ValueError, "sigma must be a finite number > 0, got 0", lambda: hk.dclw(X, Y, sigma=0)),
    (
        ValueError,
        "reduction must be one of 'mean', 'sum', got 'none'",
        lambda: hk.siglip(X, Y, logit_scale=1.0, logit_bias=0.0, reduction="none"),
    ),
    (
        ValueError,
        "logit_bias must be a finite number, got nan",
        lambda: hk.siglip(X, Y, logit_scale=1.0, logit_bias=math.nan),
    ),
    (
        ValueError,
        r"logit_bias must be a number or a floating tensor with one element, got .*\(2,\)",
        lambda: hk.siglip(X, Y, logit_scale=1.0, logit_bias=torch.zeros(2)),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), BAD, ids=[f"{i}-{case[1][:30]}" for i, case in enumerate(BAD)])
def test_bad_arguments(error: type[Exception], message: str, call) -> None:
    with pytest.raises(error, match=message):
        call()
