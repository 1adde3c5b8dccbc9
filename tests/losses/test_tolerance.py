"""The tolerance rule: in float32, bfloat16 and float16 no loss and no gradient is worse than PyTorch itself.

The comparator. A loss comes back in float32 whatever the input, and promises float32 accumulation. So for half
precision the textbook formula run in half precision would be no test: its own error is a thousand times larger
(and `pdist` does not exist there on a CPU). The comparator is the strictest that a user could write: upcast the
same half-precision inputs to float32, textbook formula in float32, the gradient rounded to half by autograd. The
truth starts from the same rounded inputs. `torch.set_float32_matmul_precision` stays at its default, "highest".

Kernels multiply half-precision features in half precision, with float32 sums; their comparators are the same formula
under autocast, which multiplies in half precision too, and the formula with products that are not rounded after that:
where autocast rounds the product of a row with itself, it comes out as exactly 1.

A scalar loss is one number, and PyTorch may hit it by luck: the rule is applied to the losses of several draws
together, so that a maximum says something.
"""

import pytest
import torch
from cases import BY_NAME, FEATURES, FIRST, Case, case_of, names, tensors, values_and_grads
from conftest import Exact, interpreted
from oracle import assert_within_tolerance
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hyperkern.catalog import TABLE, use

DRAWS = 8
FEWER_DRAWS = 3  # of losses over pairs in an interpreter, which takes a second for each
# Their logits reach 9 to 25 and round by 1e-6; PyTorch and the reference, which share a library's products, happen to
# be closer than a kernel with another order of sums.
LARGE_LOGITS = (
    "pairwise_logsumexp-raw",
    "info_nce-negatives",
    "info_nce-learnable-negatives",
    "dcl-learnable",
    "dcl-raw",
    "siglip-raw",
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def draws(case: Case, backend: str, device: torch.device) -> int:
    return FEWER_DRAWS if interpreted(backend, device) and not case.name.startswith("alignment") else DRAWS


class RoundedOperands(TorchFunctionMode):
    """Matrix products of operands rounded to a dtype, in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.matmul, Tensor.matmul):
            args = tuple(operand.to(self.dtype).float() for operand in args)
        return func(*args, **(kwargs or {}))


def results(case: Case, dtype: torch.dtype, device: torch.device, backend: str, shape: tuple) -> list[tuple]:
    """``(ours, PyTorch in float32 each way, truth)`` for each output and for each gradient, over the draws."""
    found: list[list[tuple[Tensor, ...]]] = []
    for seed in range(draws(case, backend, device)):
        args = tensors(case, *shape, seed=seed, dtype=dtype, device=device)
        ours = values_and_grads(lambda *a: case.ours(*a, backend=backend), args)
        peers = [
            values_and_grads(lambda *a, write=write: write(*(t.float() for t in a)), args)
            for write in (case.truth, *case.peers)
        ]
        if backend != "reference" and dtype != torch.float32:
            for in_half in (torch.autocast(device.type, dtype), RoundedOperands(dtype)):
                with in_half:
                    for write in (case.truth, *case.peers):
                        peers.append(values_and_grads(lambda *a, write=write: write(*(t.float() for t in a)), args))
        truth = values_and_grads(case.truth, [arg.double() for arg in args])
        found.append(list(zip(*(values + grads for values, grads in (ours, *peers, truth)), strict=True)))
    stacked = [[torch.stack(parts) for parts in zip(*same, strict=True)] for same in zip(*found, strict=True)]
    # Under autocast some outputs come in half precision.
    return [(ours, [peer.to(ours.dtype) for peer in peers], truth) for ours, *peers, truth in stacked]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names())
def test_no_worse_than_torch(name: str, dtype: torch.dtype, backend: str, device: torch.device, exact: Exact) -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    case = BY_NAME[name]
    if case.in_float64 and exact.dtype != torch.float64:
        pytest.skip(f"computed in float64, which {backend} does not have")
    if dtype != torch.float32 and interpreted(backend, device) and name not in FIRST:
        # It takes seconds, and every primitive has its test in half precision: `test_products_in_half_precision`.
        pytest.skip("in an interpreter one case of each loss")
    found = results(case, dtype, device, backend, (60, 45, 24))
    outputs = [f"output {i}" for i in range(len(found) - len(case.roles))]
    for what, (ours, peers, truth) in zip([*outputs, *case.roles], found, strict=True):
        lse = 25.0 if backend != "reference" and name in LARGE_LOGITS else case.largest_lse
        assert_within_tolerance(ours, peers, truth, what, largest_lse=lse)


@pytest.mark.parametrize("t", [0.01, 0.5, 2.0, 10.0, 30.0])
def test_uniformity_of_large_batches(t: float, backend: str, device: torch.device) -> None:
    if interpreted(backend, device) and t not in (2.0, 30.0):
        pytest.skip("an interpreter takes its time: one of either regime")
    # The sum over pairs grows with N^2 and the loss does not: a logarithm of the sum loses what was not divided.
    case = case_of(TABLE["uniformity"], use("", "x", t=t))
    for ours, peers, truth in results(case, torch.float32, device, backend, (500, 0, 8)):
        # At t = 30 the sum of 500^2 terms has left the bounded regime: the gradient goes through log-sum-exps near 2t.
        assert_within_tolerance(ours, peers, truth, largest_lse=2 * t if t >= 30 else 0.0)


@pytest.mark.parametrize("scale", [14.0, 100.0, 1e4])
@pytest.mark.parametrize("loss", ["info_nce", "clip_loss"])
def test_pairs_told_apart_with_confidence(loss: str, scale: float, backend: str, device: torch.device) -> None:
    # At the end of training the loss is near 0, and only a logit that the positive shares with the sum keeps it.
    options = {"temperature": 1 / scale} if loss == "info_nce" else {"logit_scale": scale}
    case = case_of(TABLE[loss], use("", "x y", **options))
    ours, peer, truth = [], [], []
    for seed in range(draws(case, backend, device)):
        x, noise = tensors(case, 100, 0, 64, seed=seed, dtype=torch.float32, device=device)
        args = [x, x + 0.01 * noise]
        ours.append(case.ours(*args, backend=backend)[0])
        peer.append(case.truth(*args)[0])
        # Near 0 float64 cross-entropy is no truth any more: its own cancellation is what is being tested.
        a, b = (torch.nn.functional.normalize(arg.double(), dim=-1) for arg in args)
        logits = scale * a @ b.T
        others = logits.masked_fill(torch.eye(len(a), dtype=torch.bool, device=device), -torch.inf)
        sides = [others.logsumexp(dim) - logits.diagonal() for dim in ((1,) if loss == "info_nce" else (1, 0))]
        truth.append(torch.stack([torch.logaddexp(side, side.new_zeros(())).mean() for side in sides]).mean())
    assert_within_tolerance(torch.stack(ours), [torch.stack(peer)], torch.stack(truth))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", names())
def test_dtypes(name: str, dtype: torch.dtype, backend: str, device: torch.device, exact: Exact) -> None:
    case = BY_NAME[name]
    if case.in_float64 and exact.dtype != torch.float64:
        pytest.skip(f"computed in float64, which {backend} does not have")
    if interpreted(backend, device) and name not in FIRST:
        pytest.skip("in an interpreter one case of each loss")
    outputs, grads = values_and_grads(
        lambda *a: case.ours(*a, backend=backend), tensors(case, 5, 4, 3, dtype=dtype, device=device)
    )
    assert {out.dtype for out in outputs} == {torch.float32}
    assert {grad.dtype for grad in grads} == {dtype}


@pytest.mark.parametrize("name", ["info_nce-learnable", "uniformity-queue-weights", "pairwise_logsumexp-weights"])
def test_float32_parameters_beside_half_features(name: str, backend: str, device: torch.device) -> None:
    # Scales, weights and log-weights are usually float32 while the features are not.
    case = BY_NAME[name]
    args = tensors(case, 9, 7, 5, dtype=torch.bfloat16, device=device)
    args = [a if role in FEATURES else a.float() for a, role in zip(args, case.roles, strict=True)]
    outputs, grads = values_and_grads(lambda *a: case.ours(*a, backend=backend), args)
    peer = values_and_grads(lambda *a: case.truth(*(t.float() for t in a)), args)
    for actual, expected in zip(outputs + grads, peer[0] + peer[1], strict=True):
        assert actual.dtype == expected.dtype
        # Kernels multiply half-precision features in half precision.
        rounding = {} if backend == "reference" else {"rtol": 2e-2, "atol": 2e-2 * expected.abs().max().item()}
        torch.testing.assert_close(actual, expected, **rounding)


def test_a_half_precision_temperature_is_not_rounded_twice(backend: str, device: torch.device) -> None:
    # 1 / temperature in the temperature's own dtype would round once more.
    from hyperkern import info_nce

    x, y = torch.randn(2, 50, 8, device=device)
    tau = torch.tensor(0.07, dtype=torch.bfloat16, device=device)
    expected = info_nce(x, y, temperature=tau.float().item(), backend=backend)
    torch.testing.assert_close(info_nce(x, y, temperature=tau, backend=backend), expected)
