"""What a check allows: all that a right kernel may be off by, and no more than that."""

from collections.abc import Callable

import pytest
import torch
from check_calls import CPU

from hyperkern import losses
from hyperkern.backends import reference
from hyperkern.bench import gate, registry
from hyperkern.bench.load import load_all
from hyperkern.correctness import cases, rounding
from hyperkern.correctness.variants import MANY_ROWS, VARIANTS

pytest_plugins = ["check_fixtures"]


@pytest.mark.parametrize("dim", [50, 64])
def test_gradients_of_thousands_of_rows_have_few_digits_in_float16(dim: int) -> None:
    found = cases._variant(MANY_ROWS["uniformity"], "reference", CPU, "float16", 4099, dim, many=True)
    assert found.right, found.reason
    assert found.error > 2.0**-26  # of what is computed in float32, the rounding to the dtype of the features


# A batch is a composition in plain PyTorch, which the fake computes by.
@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.batch is None])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "tf32", "float32"])
def test_ways_to_call_a_loss_reach_its_kernels(
    name: str, kind: str, fake: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fake("right")
    assert cases._variant(VARIANTS[name], "fake", CPU, kind, 19, 16).right
    assert module.calls == ["loss", "loss_grad"]

    def wrong(needed: object, *args: object) -> dict:
        return {role: 1.3 * grad for role, grad in reference.loss_grad(needed, *args).items()}

    monkeypatch.setattr(module, "loss_grad", wrong)
    found = cases._variant(VARIANTS[name], "fake", CPU, kind, 19, 16)
    assert not found.right


@pytest.mark.parametrize("rows", [2, 19, 127])
@pytest.mark.parametrize("seed", range(4))
def test_operands_that_are_cut_off_are_right(rows: int, seed: int) -> None:
    """As tensor cores cut tf32 off, in front of the products of a formula in float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows, 64, generator=generator).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(1 / 0.07).requires_grad_())
    load_all()
    truth = registry.CASES["clip_learned"].truth
    wanted = gate.step(truth, [gate.exactly(x) for x in inputs])
    allowed = rounding.moves(truth, wanted, inputs, "tf32", 64)
    scale = inputs[2].detach().double().requires_grad_()
    rows_of = [torch.nn.functional.normalize(gate.exactly(x), dim=-1) for x in inputs[:2]]
    cut = [_Cut.apply(x) for x in rows_of]
    logits = scale * cut[0] @ cut[1].T
    # The positives come from rows that are not cut off, as in the kernels.
    positives = scale * (rows_of[0] * rows_of[1]).sum(1)
    logits = logits + torch.diag(positives - logits.diagonal())
    value = (logits.logsumexp(1) + logits.logsumexp(0) - 2 * positives).mean() / 2
    (slope,) = torch.autograd.grad(value, scale)
    assert (value - wanted[0]).abs() <= allowed[0]
    assert (slope - wanted[3]).abs() <= allowed[3]


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
        """What is left of float32 with 10 bits behind the first."""
        return (x.float().view(torch.int32) & -(1 << 13)).view(torch.float32).double()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
        """As it is."""
        return grad


def test_rows_that_are_one_class_are_left_out() -> None:
    load_all()
    shapes = {(case.what, case.shape) for case in cases.cases("reference", CPU, cases.Scope("tf32", 64), (16,), "full")}
    assert ("sup_con", "19 × 16") in shapes
    assert ("clip", "2 × 16") in shapes
    assert ("sup_con", "2 × 16") not in shapes


def test_a_wrong_name_is_seen_where_nothing_is_computed() -> None:
    x = torch.empty(4, 8, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match=r"backend='nonsense' is unknown"):
        losses.clip_loss(x, x.detach(), logit_scale=1.0, reduction="none", backend="nonsense")
