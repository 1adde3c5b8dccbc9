"""The options of the contrastive losses all at once: value and every gradient against the dense formula in float64."""

import pytest
import torch
from cases import CASES, Case, case_of, tensors, values_and_grads
from oracle import assert_close
from torch import Tensor

from hyperkern.catalog import Use

N, K, D = 6, 7, 5
IDS = torch.tensor([0, 0, 1, 1, 2, 2])
QUEUE_IDS = torch.tensor([0, 1, 5, 5, 9, 2, 2])
# Of one problem, and of a batch whose elements differ in what is a false negative.
ALL_IDS = {
    None: (IDS, QUEUE_IDS),
    3: (
        torch.stack([IDS, IDS.flip(0), torch.arange(N)]),
        torch.stack([QUEUE_IDS, QUEUE_IDS.flip(0), QUEUE_IDS + 50]),
    ),
}
# Of each loss with a learned number the use that has most inputs, and what else leaves others out.
LEARNED = [case for case in CASES if case.use.learned]
MOST = {loss: max(len(c.use.inputs) for c in LEARNED if c.loss.name == loss) for loss in {c.loss.name for c in LEARNED}}
CALLS = [c for c in LEARNED if len(c.use.inputs) == MOST[c.loss.name] or "in_batch" in c.use.options]


def with_ids(case: Case, batch: int | None = None, **options: object) -> Case:
    """The case with ids of which many are equal, and with further options."""
    rows, queue = (lambda _, found=found: found for found in ALL_IDS[batch])
    use = Use(case.use.name, case.use.inputs, case.use.learned, {**case.use.options, **options})
    return case_of(case.loss, use, ids=rows, labels=rows, negative_ids=queue, y_labels=queue)


def check(case: Case, args: list[Tensor]) -> None:
    """Value and gradients of a call of the package against those of the oracle."""
    found, truth = values_and_grads(case.ours, args), values_and_grads(case.truth, args)
    for actual, expected in zip([*found[0], *found[1]], [*truth[0], *truth[1]], strict=True):
        assert_close(actual, expected, 1e-11)


# SigLIP does not keep the pairs of a row apart.
REDUCED = [(c, how) for c in CALLS for how in ("mean", "sum", "none") if (c.loss.name, how) != ("siglip", "none")]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch", ALL_IDS, ids=str)
@pytest.mark.parametrize(("case", "reduction"), REDUCED, ids=[f"{case.name}-{how}" for case, how in REDUCED])
def test_all_options_at_once(case: Case, reduction: str, batch: int | None, normalize: bool) -> None:
    case = with_ids(case, batch, reduction=reduction, normalize=normalize)
    check(case, tensors(case, N, K, D, batch))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CALLS, ids=[case.name for case in CALLS])
def test_a_learned_scalar_of_any_shape_and_dtype(case: Case, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    case = with_ids(case, reduction="mean")
    rows = tensors(case, N, K, D)[: -len(case.use.learned)]
    # Their values in a dtype that holds them exactly, so that only the route differs.
    exact = {"temperature": 0.25, "logit_scale": 4.0, "logit_bias": -1.5}
    leaves = [torch.full(shape, exact[name], dtype=dtype, requires_grad=True) for name in case.use.learned]
    (value,) = case.ours(*rows, *(1 * leaf for leaf in leaves))
    assert value.shape == ()
    (expected,) = case.ours(*rows, *(exact[name] for name in case.use.learned))
    assert_close(value, expected)
    value.backward()
    for leaf in leaves:
        assert leaf.grad.shape == shape
        assert leaf.grad.dtype == dtype
        assert leaf.grad.abs().all()
