"""Forward mode of every loss: tangents of the first order, and every way to nest them with other transforms."""

from collections.abc import Callable, Sequence

import pytest
import torch
from cases import BY_NAME, names, tensors
from oracle import assert_close
from test_autograd import GENTLE, leaves, scalar
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vmap

import hyperkern as hk
from hyperkern import second_order


def directions(args: Sequence[Tensor], seed: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(arg.shape, generator=draw, dtype=torch.float64).to(arg.dtype) for arg in args]


def true_tangents(name: str, args: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """Those of the dense loss, by reverse mode."""
    sides = [arg.detach().requires_grad_() for arg in args]
    outputs = BY_NAME[name].truth(*sides)

    def tangent(number: Tensor) -> Tensor:
        grads = torch.autograd.grad(number, sides, retain_graph=True, allow_unused=True)
        return sum((g * v).sum() for g, v in zip(grads, along, strict=True) if g is not None)

    return [torch.stack([tangent(number) for number in out.flatten()]).view(out.shape) for out in outputs]


def dual_tangents(function: Callable[..., tuple[Tensor, ...]], args: Sequence[Tensor], along: Sequence[Tensor]) -> list:
    with forward_ad.dual_level():
        outputs = function(*map(forward_ad.make_dual, args, along))
        return [forward_ad.unpack_dual(out).tangent for out in outputs]


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", names())
def test_tangents_are_those_of_the_dense_loss(
    name: str, batch: int | None, monkeypatch: pytest.MonkeyPatch, composition: None
) -> None:
    monkeypatch.setattr(second_order, "_BLOCK_ELEMENTS", 24)
    case = BY_NAME[name]
    args = tensors(case, 6, 5, 4, batch)
    along = directions(args)
    truth = true_tangents(name, args, along)
    outputs, by_transform = jvp(case.ours, tuple(args), tuple(along))
    for out, expected in zip(outputs, case.ours(*args), strict=True):
        assert torch.equal(out, expected)
    for found in (by_transform, dual_tangents(case.ours, args, along)):
        for tangent, expected in zip(found, truth, strict=True):
            assert_close(tangent, expected)


@pytest.mark.parametrize("name", names())
def test_one_side_moves(name: str) -> None:
    case = BY_NAME[name]
    args = tensors(case, 6, 5, 4)
    for i, arg in enumerate(args):
        along = [torch.zeros_like(other) for other in args]
        (along[i],) = directions([arg])
        found = jvp(lambda moved, i=i: case.ours(*args[:i], moved, *args[i + 1 :]), (arg,), (along[i],))[1]
        for tangent, expected in zip(found, true_tangents(name, args, along), strict=True):
            assert_close(tangent, expected)


@pytest.mark.parametrize("name", ["alignment-alpha1-sum", "uniformity-queue-weights", "align_uniform-options",
                                  "info_nce-everything", "clip_loss-learnable", "siglip-learnable", "nt_xent-learnable",
                                  "dcl-learnable", "sup_con-learnable", "pairwise_logsumexp-weights"])  # fmt: skip
def test_tangents_against_central_differences(name: str) -> None:
    torch.autograd.gradcheck(
        BY_NAME[name].ours, leaves(name), check_forward_ad=True, check_backward_ad=False, check_batched_grad=False
    )


@pytest.mark.parametrize("name", [*GENTLE, "dclw-default"])
def test_hessian_vector_products(name: str) -> None:
    loss, args = scalar(name), leaves(name, 5, 4, 3)
    along, argnums = tuple(directions(args)), tuple(range(len(args)))
    first = torch.autograd.grad(loss(*args), args, create_graph=True)
    truth = torch.autograd.grad(first, args, along)
    primals = tuple(arg.detach() for arg in args)
    found = {"forward over reverse": jvp(grad(loss, argnums), primals, along)[1]}
    with forward_ad.dual_level():
        duals = map(forward_ad.make_dual, args, along)
        of_duals = torch.autograd.grad(loss(*duals), args)
        found["of dual tensors"] = [forward_ad.unpack_dual(g).tangent for g in of_duals]
    if not name.startswith("dclw"):  # its weights are constants: the second derivative is not symmetric
        found["reverse over forward"] = grad(lambda *a: jvp(loss, a, along)[1], argnums)(*primals)
    for products in found.values():
        for product, expected in zip(products, truth, strict=True):
            assert_close(product, expected, 1e-9)  # their terms are a hundred times as large, and cancel


@pytest.mark.parametrize("name", ["uniformity-default", "siglip-learnable", "clip_loss-learnable", "sup_con-default"])
def test_the_gradient_of_a_tangent(name: str) -> None:
    loss, args = scalar(name), leaves(name, 5, 4, 3)
    along = directions(args)
    truth = torch.autograd.grad(torch.autograd.grad(loss(*args), args, create_graph=True), args, along)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(loss(*map(forward_ad.make_dual, args, along))).tangent
        products = torch.autograd.grad(tangent, args)
    for product, expected in zip(products, truth, strict=True):
        assert_close(product, expected)


def dense_uniformity(x: Tensor) -> Tensor:
    # F.normalize writes in place in forward mode, which reverse mode over it refuses.
    x = x / x.square().sum(-1, keepdim=True).sqrt()
    i, j = torch.triu_indices(len(x), len(x), 1)
    return (-2 * (x[i] - x[j]).square().sum(-1)).exp().mean().log()


def test_every_order_of_nesting() -> None:
    x, v, w = torch.randn(3, 5, 3, dtype=torch.float64)

    def forward(function: Callable[[Tensor], Tensor], along: Tensor = v) -> Callable[[Tensor], Tensor]:
        return lambda x: jvp(function, (x,), (along,))[1]

    def of(function: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [
            jacfwd(function)(x),
            hessian(function)(x),
            jacfwd(jacfwd(function))(x),
            jacrev(jacfwd(function))(x),
            forward(forward(grad(function)), w)(x),
            forward(forward(forward(function)), w)(x),
            grad(lambda x: forward(grad(function))(x).square().sum())(x),
            forward(grad(lambda x: grad(function)(x).square().sum()), w)(x),
            linearize(function, x)[1](v),
        ]

    for found, truth in zip(of(hk.uniformity), of(dense_uniformity), strict=True):
        assert_close(found, truth)


def test_of_a_map_and_mapped() -> None:
    (x, v), learnable = torch.randn(2, 3, 5, 4, dtype=torch.float64), BY_NAME["clip_loss-learnable"].ours
    for loss in (hk.uniformity, lambda x: learnable(x, x.flip(0), x.abs().mean())[0]):
        each = torch.stack([jvp(loss, pair[:1], pair[1:])[1] for pair in zip(x, v, strict=True)])
        assert_close(vmap(lambda x, v, loss=loss: jvp(loss, (x,), (v,))[1])(x, v), each)
        assert_close(jvp(vmap(loss), (x,), (v,))[1], each)


@pytest.mark.parametrize(
    "name", ["info_nce-learnable-negatives", "clip_loss-10", "sup_con-learnable", "siglip-learnable"]
)
def test_hessians(name: str) -> None:
    loss, args = scalar(name), tensors(BY_NAME[name], 4, 3, 2)
    argnums = tuple(range(len(args)))
    for found, truth in zip(hessian(loss, argnums)(*args), jacrev(jacrev(loss, argnums), argnums)(*args), strict=True):
        for block, expected in zip(found, truth, strict=True):
            assert_close(block, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["alignment-default", "uniformity-default", "uniformity-raw", "align_uniform-default",
                                  "info_nce-negatives", "clip_loss-learnable", "siglip-learnable", "nt_xent-default",
                                  "sup_con-default"])  # fmt: skip
def test_low_precision_and_autocast(name: str, dtype: torch.dtype) -> None:
    case = BY_NAME[name]
    args = tensors(case, 6, 5, 4, dtype=dtype)
    along = directions(args)
    truth = true_tangents(name, [arg.double() for arg in args], [v.double() for v in along])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        found = dual_tangents(case.ours, args, along)
    for tangent, expected in zip(found, truth, strict=True):
        assert tangent.dtype == torch.float32
        torch.testing.assert_close(tangent.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_at_the_edge() -> None:
    # A zero row, a row too short to be divided by its length, equal rows: as reverse mode has it.
    x = torch.randn(6, 3, dtype=torch.float64)
    x[0], x[1], x[2] = 0, x[1] * 1e-14, x[3]
    y = torch.cat([x[:3], torch.randn(3, 3, dtype=torch.float64)])
    along = torch.randn_like(x)
    for loss in (hk.uniformity, lambda x: hk.alignment(x, y, alpha=0.5), lambda x: hk.clip_loss(x, y, logit_scale=3.0)):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        expected = (gradient * along).sum()
        torch.testing.assert_close(jvp(loss, (x,), (along,))[1], expected, rtol=1e-10, atol=1e-10)


def test_a_row_without_candidates_has_the_tangent_0() -> None:
    x, along = torch.randn(2, 4, 3)
    ids = torch.tensor([1, 1, 1, 1])
    for loss in (
        lambda x: hk.info_nce(x, x.flip(0), ids=ids),
        lambda x: hk.sup_con(x, torch.arange(4)),
        lambda x: hk.pairwise_logsumexp(x[:1], logit_scale=2.0, exclude="self")[0],
    ):
        assert not jvp(loss, (x,), (along,))[1].any()


def test_every_backend(backend: str, device: torch.device) -> None:
    x, y, along = torch.randn(3, 9, 4, device=device)

    def loss(x: Tensor, backend: str) -> Tensor:
        return hk.align_uniform(x, y, backend=backend).loss + hk.clip_loss(x, y, logit_scale=5.0, backend=backend)

    (found, truth) = (jvp(lambda x, name=name: loss(x, name), (x,), (along,))[1] for name in (backend, "reference"))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    (found,) = dual_tangents(lambda x: (loss(x, backend),), [x], [along])
    torch.testing.assert_close(found.to(truth.dtype), truth, rtol=1e-4, atol=1e-4)


def test_compiled_it_is_refused_or_left_to_eager_mode() -> None:
    x, along = torch.randn(2, 9, 4)

    def tangent(x: Tensor) -> Tensor:
        return jvp(lambda x: hk.clip_loss(x, x.flip(0), logit_scale=5.0), (x,), (along,))[1]

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(tangent, backend="eager")(x), tangent(x))
    torch._dynamo.reset()
    with pytest.raises(Exception, match="of a hyperkern loss does not compile"):
        torch.compile(tangent, backend="eager", fullgraph=True)(x)
