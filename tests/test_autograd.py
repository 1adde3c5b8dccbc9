"""Derivatives of every loss, of any order and through every transform that can ask for them."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from cases import BY_NAME, CASES, FIRST, names, tensors
from oracle import assert_close
from torch import Tensor
from torch.func import grad, jacrev, vmap
from torch.utils.checkpoint import checkpoint

import hyperkern as hk
from hyperkern import backends
from hyperkern.spec import LossInputs, LossSpec, PairSpec

F64 = torch.float64


def scalar(name: str, function: str = "ours") -> Callable[..., Tensor]:
    """A loss of the table as one number, a fixed combination of all its outputs."""
    run = getattr(BY_NAME[name], function)

    def value(*args: Tensor) -> Tensor:
        return sum((i + 1) * (out * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum()
                   for i, out in enumerate(run(*args)))  # fmt: skip

    return value


def leaves(name: str, m: int = 4, n: int = 3, d: int = 3, batch: int | None = None) -> list[Tensor]:
    return [arg.requires_grad_() for arg in tensors(BY_NAME[name], m, n, d, batch)]


# The truth of `pdist` and `cdist` has no second derivative: numerical ones are the judge.
# Without those of extreme curvature, and that whose weights are constants by definition.
GENTLE = [name for name in names() if not any(hot in name for hot in ("400", "1000", "0.001", "0.005", "dclw"))]


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", GENTLE)
def test_gradcheck(name: str, batch: int | None) -> None:
    # Each number of the gradient: `test_values`.
    torch.autograd.gradcheck(BY_NAME[name].ours, leaves(name, batch=batch), fast_mode=True)


@pytest.mark.parametrize("name", GENTLE)
def test_gradgradcheck(name: str) -> None:
    torch.autograd.gradgradcheck(BY_NAME[name].ours, leaves(name, 3, 3, 2), atol=1e-4, fast_mode=name not in FIRST)


def test_gradgradcheck_over_many_blocks(monkeypatch: pytest.MonkeyPatch, small_blocks: None) -> None:
    monkeypatch.setattr("hyperkern.second_order._BLOCK_ELEMENTS", 12)
    for name in ("uniformity-queue-intra", "clip_loss-10", "pairwise_logsumexp-weights", "info_nce-learnable"):
        torch.autograd.gradgradcheck(BY_NAME[name].ours, leaves(name, 9, 5, 2, 1), atol=1e-4, fast_mode=True)


def test_third_derivative() -> None:
    (x,) = tensors(BY_NAME["uniformity-default"], 3, 0, 2)

    def second(x: Tensor) -> Tensor:
        first = grad(scalar("uniformity-default"))
        return grad(lambda x: first(x).square().sum())(x)

    torch.autograd.gradcheck(second, x.requires_grad_(), atol=1e-4)


@pytest.mark.parametrize(
    "name", ["info_nce-negatives", "clip_loss-learnable", "clip_loss-raw", "pairwise_logsumexp-weights"]
)
def test_gradient_penalty_is_the_dense_one(name: str) -> None:
    def penalty(function: str) -> list[Tensor]:
        args = leaves(name, 11, 7, 5)
        first = torch.autograd.grad(scalar(name, function)(*args), args, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), args))

    for actual, truth in zip(penalty("ours"), penalty("truth"), strict=True):
        assert_close(actual, truth)


def dense_uniformity(x: Tensor) -> Tensor:
    x = torch.nn.functional.normalize(x, dim=-1)
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (-2 * (x[i] - x[j]).square().sum(-1)).exp().mean().log()


def test_gradient_penalty_of_uniformity() -> None:
    (x,) = leaves("uniformity-default", 11, 0, 5)
    results = []
    for loss in (hk.uniformity, dense_uniformity):
        (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
        results.append(torch.autograd.grad(loss(x) + first.square().sum(), x)[0])
    assert_close(*results)


TRANSFORMED = [
    "alignment-alpha1-sum",
    "uniformity-default",
    "uniformity-queue-weights",
    "uniformity-queue-raw-intra",
    "align_uniform-options",
    "info_nce-learnable-negatives",
    "clip_loss-10",
    "pairwise_logsumexp-weights",
]


@pytest.mark.parametrize("name", TRANSFORMED)
def test_func_grad_vmap_and_their_compositions(name: str) -> None:
    loss = scalar(name)
    mapped = [torch.stack(parts) for parts in zip(*(tensors(BY_NAME[name], 5, 4, 3, seed=s) for s in range(3)),
                                                  strict=True)]  # fmt: skip
    each = [[arg[i] for arg in mapped] for i in range(3)]
    values = torch.stack([loss(*args) for args in each])
    argnums = tuple(range(len(mapped)))
    grads = [torch.autograd.grad(loss(*a), a) for a in ([t.clone().requires_grad_() for t in args] for args in each)]
    stacked = [torch.stack(parts) for parts in zip(*grads, strict=True)]

    assert_close(vmap(loss)(*mapped), values)
    inner_dims = tuple(1 if arg.dim() > 1 else 0 for arg in mapped)
    assert_close(vmap(loss, in_dims=inner_dims)(*(a.movedim(0, d) for a, d in zip(mapped, inner_dims, strict=True))),
                 values)  # fmt: skip
    for found, truth in zip(grad(loss, argnums)(*each[0]), grads[0], strict=True):
        assert_close(found, truth)
    for found, truth in zip(vmap(grad(loss, argnums))(*mapped), stacked, strict=True):
        assert_close(found, truth)
    for found, truth in zip(grad(lambda *a: vmap(loss)(*a).sum(), argnums)(*mapped), stacked, strict=True):
        assert_close(found, truth)


def test_vmap_over_one_argument_shares_the_other() -> None:
    x, queue = tensors(BY_NAME["uniformity-queue"], 5, 4, 3)
    queues = torch.stack([queue, 2 - queue])
    shared = grad(lambda x: vmap(hk.uniformity, in_dims=(None, 0))(x, queues).sum())(x)
    assert_close(shared, sum(grad(hk.uniformity)(x, q) for q in queues))


def test_nested_grad_of_a_closed_over_argument() -> None:
    # The inner transform differentiates y alone; x belongs to the outer one and must not be taken as frozen.
    x, y = tensors(BY_NAME["uniformity-queue"], 5, 4, 3)

    def inner(x: Tensor) -> Tensor:
        return grad(lambda y: hk.uniformity(x, y))(y).square().sum()

    leaf = x.clone().requires_grad_()
    leaf_y = y.clone().requires_grad_()
    (first,) = torch.autograd.grad(hk.uniformity(leaf, leaf_y), leaf_y, create_graph=True)
    (truth,) = torch.autograd.grad(first.square().sum(), leaf)
    assert_close(grad(inner)(x), truth)
    mapped = grad(lambda x: vmap(lambda y: grad(lambda y: hk.uniformity(x, y))(y).square().sum())(y[None]).sum())(x)
    assert_close(mapped, truth)


def test_jacrev() -> None:
    x, y = tensors(BY_NAME["info_nce-default"], 6, 0, 3)
    jacobian = jacrev(lambda x: hk.info_nce(x, y, reduction="none"))(x)
    for i in range(6):
        assert_close(jacobian[i], grad(lambda x, i=i: hk.info_nce(x, y, reduction="none")[i])(x))
    hessian = jacrev(jacrev(hk.uniformity))(x).reshape(18, 18)
    assert_close(hessian, hessian.T)
    assert_close(hessian, jacrev(jacrev(dense_uniformity))(x).reshape(18, 18))


@pytest.mark.parametrize("name", names())
def test_two_backward_passes_with_different_grad_output(name: str) -> None:
    args = leaves(name)
    loss = scalar(name)(*args)
    one = torch.autograd.grad(loss, args, retain_graph=True)
    three = torch.autograd.grad(loss, args, torch.tensor(3.0, dtype=F64), retain_graph=True)
    again = torch.autograd.grad(loss, args)
    for a, b, c in zip(one, three, again, strict=True):
        assert_close(3 * a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("name", ["uniformity-default", "info_nce-learnable", "pairwise_logsumexp-weights"])
def test_batched_grad_outputs(name: str) -> None:
    args = leaves(name)
    loss = scalar(name)(*args)
    weights = torch.tensor([1.0, -2.0], dtype=F64)
    batched = torch.autograd.grad(loss, args, weights, is_grads_batched=True, retain_graph=True)
    for many, one in zip(batched, torch.autograd.grad(loss, args), strict=True):
        assert_close(many, torch.stack([one, -2 * one]))


class Spy(SimpleNamespace):
    """The reference, with a record of which sides were asked for."""

    def __init__(self) -> None:
        reference = backends.load("reference")
        super().__init__(asked=[], finished=0, prepare=reference.prepare, unsupported=reference.unsupported)
        self.LOSSES: tuple[str, ...] = ()
        self.unverified, self.evidence = reference.unverified, reference.evidence
        self.row_lse, self.reference = reference.row_lse, reference

    def normalize_backward(self, grad: Tensor, *args: object) -> Tensor:
        self.finished += grad.shape[0] * grad.shape[1]
        return self.reference.normalize_backward(grad, *args)

    def pair_grad(self, *args: object, need_x: bool, need_y: bool) -> tuple:
        self.asked.append((need_x, need_y))
        return self.reference.pair_grad(*args, need_x=need_x, need_y=need_y)

    def energy(self, *args: object, need_x: bool, need_y: bool) -> tuple:
        self.asked.append((need_x, need_y))
        return self.reference.energy(*args, need_x=need_x, need_y=need_y)


@pytest.mark.parametrize("name", ["uniformity-queue", "info_nce-default", "clip_loss-10", "pairwise_logsumexp-weights"])
@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True), (False, False)])
def test_case_15_the_frozen_side_is_not_computed(
    name: str, needs: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch, chosen_anew: None
) -> None:
    spy = Spy()
    args = leaves(name)
    full = torch.autograd.grad(scalar(name)(*args), args)
    monkeypatch.setattr(backends, "load", lambda _: spy)
    for i, arg in enumerate(args):
        arg.requires_grad_(i < 2 and needs[i])
    loss = scalar(name)(*args)
    if any(needs):
        loss.backward()
        # An energy may have asked in the forward pass, a log-sum-exp in the backward pass; never for more.
        assert spy.asked == [needs]
    else:
        assert not loss.requires_grad
        assert spy.asked in ([], [(False, False)])
    assert spy.finished == sum(len(arg) for arg, needed in zip(args, needs, strict=False) if needed)
    for arg, expected in zip(args, full, strict=True):
        if arg.requires_grad:
            assert_close(arg.grad, expected)
        else:
            assert arg.grad is None


def test_no_grad_computes_no_gradient(monkeypatch: pytest.MonkeyPatch, chosen_anew: None) -> None:
    spy = Spy()
    monkeypatch.setattr(backends, "load", lambda _: spy)
    x = torch.randn(5, 3, requires_grad=True)
    with torch.no_grad():
        hk.uniformity(x)
    hk.uniformity(x.detach())
    assert spy.asked == [(False, False)] * 2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", [case.name for case in CASES if case.name.endswith(("default", "intra", "learnable"))])
def test_checkpoint(name: str, reentrant: bool) -> None:
    args = leaves(name)
    plain = torch.autograd.grad(scalar(name)(*args), args)
    checkpoint(scalar(name), *args, use_reentrant=reentrant).backward()
    for arg, expected in zip(args, plain, strict=True):
        assert_close(arg.grad, expected)


def operator_calls() -> list:
    x, y = torch.randn(2, 5, 3), torch.randn(2, 4, 3)
    u, v, lse, col = torch.randn(2, 5), torch.randn(2, 4), torch.zeros(2, 5), torch.zeros(2, 4)
    row_ids, col_ids = torch.arange(5).expand(2, 5), torch.arange(4).expand(2, 4)
    permuted, strided = torch.randn(2, 3, 5).mT, torch.randn(2, 5, 6)[..., ::2]
    ops, calls = torch.ops.hyperkern, []
    for a in (x, x.half(), x.double(), permuted, strided, x[:, :1].expand(2, 5, 3)):
        calls += [(ops.prepare, (a, None)), (ops.prepare, (a, "reference"))]
        calls += [
            (ops.normalize_backward, (a.float(), a.float(), lse, dtype, None))
            for dtype in (torch.float32, torch.float16)
        ]
        for b, terms, rule in (
            (None, (None,) * 4, "self"),
            (y.to(a.dtype), (None,) * 4, "none"),
            (y.to(a.dtype), (u.to(a.dtype), v.to(a.dtype), row_ids, col_ids), "same_id"),
        ):
            spec = PairSpec(2.0, True, rule)
            calls += [(ops.row_lse, (a, b, *terms, *spec, cols, None)) for cols in (False, True)]
            sums = torch.float64 if a.dtype == torch.float64 else torch.float32
            lses = (lse.to(sums), None if b is None else col.to(sums))
            for need_x, need_y in ((True, False), (True, b is not None), (False, False)):
                calls.append((ops.pair_grad, (a, b, *terms, *spec, *lses, *lses, need_x, need_y, None)))
                calls += [(ops.energy, (a, b, *terms, *spec, potential, need_x, need_y, None))
                          for potential in ("exp", "softplus")]  # fmt: skip
    return calls


def whole_loss_calls() -> list:
    ops, calls, x, y, scale = torch.ops.hyperkern, [], torch.randn(5, 3), torch.randn(5, 3), torch.tensor(2.0)
    for a in (x, x.half(), x.double()):
        b = y.to(a.dtype)
        for spec, rest, need in (
            (LossSpec("clip_loss"), (None, scale), "x,y,scale"),
            (LossSpec("align_uniform", 4.0), (None, None), "x,y"),
            (LossSpec("info_nce", 2.0, normalize=False), (b, None), "y"),
            (LossSpec("nt_xent", 2.0), (None, None), ""),
        ):
            inputs = (a, b, *rest, None, None, None)
            calls.append((ops.loss, (*inputs, *spec, need, None)))
            if need:
                given = dict(zip(LossInputs._fields, inputs, strict=True))
                needed = [given[name] for name in need.split(",")]
                outputs = 3 if spec.loss == "align_uniform" else 1
                state = ops.loss(*inputs, *spec, need, None)[outputs:]
                cotangents = [torch.tensor(2.0, dtype=state[0].dtype)] * outputs
                calls.append((ops.loss_grad, (needed, state, cotangents, *spec, need)))
    return calls


def test_opcheck() -> None:
    calls = operator_calls() + whole_loss_calls()
    assert {op._qualified_op_name.split("::")[1] for op, _ in calls} == set(
        ["prepare", "normalize_backward", "row_lse", "pair_grad", "energy", "loss", "loss_grad"]
    )
    for op, args in calls:
        # No derivative is registered on the operators, on purpose: the test of that registration does not apply.
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))


def test_opcheck_with_symbolic_shapes() -> None:
    for op, args in operator_calls()[:19]:
        torch.library.opcheck(op.default, args, test_utils=("test_aot_dispatch_dynamic",))
