"""Every loss inside a compiled region, without graph breaks."""

import inspect
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import BY_NAME, FIRST, loss_of, tensors, values_and_grads
from oracle import assert_close
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import hyperkern as hk


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check(
    function: Callable, args: list[Tensor], backend: str = "aot_eager", tolerance: float = 1e-6, **options: object
) -> Callable:
    compiled = torch.compile(function, fullgraph=True, backend=backend, **options)
    expected, found = values_and_grads(function, args), values_and_grads(compiled, args)
    for actual, truth in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert actual.dtype == truth.dtype
        assert_close(actual.double(), truth.double(), tolerance)
    return compiled


# What the other cases trace is a part of the same graphs, or differs in numbers.
GRAPHS = [
    *("alignment-default", "align_uniform-default", "align_uniform-raw"),
    *("uniformity-default", "uniformity-raw", "uniformity-queue-intra", "uniformity-queue-weights"),
    *("info_nce-default", "info_nce-learnable-negatives", "info_nce-everything"),
    *("clip_loss-10", "clip_loss-ids", "clip_loss-learnable", "clip_loss-none"),
    *("nt_xent-default", "nt_xent-learnable", "nt_xent-views-none"),
    *("dcl-learnable", "dclw-default", "sup_con-learnable", "siglip-learnable"),
    *("pairwise_logsumexp-none", "pairwise_logsumexp-same_id-one-side", "pairwise_logsumexp-weights"),
]
GRAPHS += [name for name in FIRST if loss_of(name) not in map(loss_of, GRAPHS)]


@pytest.mark.parametrize("name", GRAPHS)
def test_forward_and_backward(name: str) -> None:
    case = BY_NAME[name]
    check(case.ours, tensors(case, 9, 7, 5, dtype=torch.float32))


ONE_OPERATOR = [
    *("align_uniform-default", "uniformity-default", "uniformity-queue-intra", "info_nce-learnable-negatives"),
    *("clip_loss-10", "clip_loss-learnable", "nt_xent-default", "dcl-learnable", "dclw-default", "sup_con-learnable"),
    *("siglip-learnable", "info_nce-queue_only"),
]


@pytest.mark.parametrize("name", ONE_OPERATOR)
def test_a_loss_is_one_operator_and_its_gradient_another(name: str) -> None:
    graphs = []

    def noted(module: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append([n.target for n in module.graph.nodes if n.op == "call_function"])
        return make_boxed_func(module.forward)

    case = BY_NAME[name]
    check(case.ours, tensors(case, 9, 7, 5, dtype=torch.float32), aot_autograd(fw_compiler=noted))
    ours = [[str(target) for target in graph if "hyperkern" in str(target)] for graph in graphs]
    assert ours == [["hyperkern.loss.default"], ["hyperkern.loss_grad.default"]]


@pytest.mark.parametrize("name", ONE_OPERATOR)
def test_inputs_that_are_not_ordinary_when_the_graph_runs(name: str) -> None:
    case = BY_NAME[name]
    args = tensors(case, 9, 7, 5, dtype=torch.float32)
    args[0][4] = 0  # a row of zeros is left to the composition
    check(case.ours, args, tolerance=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-5])
@pytest.mark.parametrize("factor", [1.0, 1024.0])
def test_a_row_shorter_than_the_eps_of_float16(length: float, factor: float) -> None:
    # Were it that of float32, one dead row would make every gradient infinite, and a GradScaler skip every step.
    y, grads = torch.randn(16, 8).half(), []
    compiled = torch.compile(hk.clip_loss, fullgraph=True, backend="aot_eager")
    rows = torch.randn(16, 8).half()
    rows[2] = length
    for loss in (hk.clip_loss, compiled):
        x = rows.clone().requires_grad_()
        grads += torch.autograd.grad(factor * loss(x, y, logit_scale=10.0), x)
    expected, found = grads
    assert expected.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=4e-3, atol=1e-5)


def test_rows_of_float16_that_are_not_normalised_do_not_saturate() -> None:
    # An infinite gradient is what a GradScaler looks for, and no row is too short where none is normalised.
    rows, y, found = torch.full((4, 8), 1e-5).half(), torch.randn(4, 8).half(), []
    compiled = torch.compile(hk.clip_loss, fullgraph=True, backend="aot_eager")
    for loss in (hk.clip_loss, compiled):
        x = rows.clone().requires_grad_()
        found += torch.autograd.grad(1e7 * loss(x, y, logit_scale=10.0, normalize=False), x)
    assert found[0].isinf().any()
    assert torch.equal(*found)


REPEATED = {
    "clip_loss": lambda x, y, labels: hk.clip_loss(x, x, logit_scale=5.0),
    "info_nce": lambda x, y, labels: hk.info_nce(x, y, negatives=y),
    "sup_con": lambda x, y, labels: hk.sup_con(x, labels, y, labels),
    "uniformity": lambda x, y, labels: hk.uniformity(x, x),
}


@pytest.mark.parametrize("name", REPEATED)
def test_one_tensor_in_two_places(name: str) -> None:
    labels, y = torch.arange(9) % 3, torch.randn(9, 4)
    check(lambda x: (REPEATED[name](x, y, labels),), [torch.randn(9, 4)])


def test_a_frozen_side_in_a_graph() -> None:
    x, y = torch.randn(2, 9, 4).unbind()
    compiled = torch.compile(hk.clip_loss, fullgraph=True, backend="aot_eager")
    for first, second in ((True, False), (False, True), (False, False)):
        x.requires_grad_(first)
        y.requires_grad_(second)
        found, expected = (loss(x, y, logit_scale=5.0) for loss in (compiled, hk.clip_loss))
        assert found.requires_grad == (first or second)
        torch.testing.assert_close(found, expected)
        if first or second:
            asked = x if first else y
            torch.testing.assert_close(*(torch.autograd.grad(loss, asked)[0] for loss in (found, expected)))


def everything(x: Tensor, y: Tensor, queue: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    return (
        hk.align_uniform(x, y, alpha=1.5).loss,
        hk.uniformity(x, queue, intra=True),
        hk.info_nce(x, y, negatives=queue),
        hk.clip_loss(x, y, logit_scale=scale),
        hk.pairwise_logsumexp(x, logit_scale=3.0, exclude="self")[0].mean(),
    )


def arguments(n: int = 9, k: int = 6, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [t.to(dtype) for t in (*torch.randn(2, n, 4), torch.randn(k, 4), torch.tensor(5.0))]


@pytest.mark.slow
def test_inductor_in_half_precision() -> None:  # in float32: `test_inductor_with_strides`
    check(everything, arguments(dtype=torch.bfloat16), "inductor", 2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [True, False])
def test_inductor_with_strides(normalize: bool) -> None:
    # Generated code believes the strides that the operators promise when traced.
    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        loss = hk.align_uniform(x * 2, y, normalize=normalize).loss
        return loss, hk.info_nce(x, y * 2, normalize=normalize), hk.uniformity(x, y, normalize=normalize)

    x, y = torch.randn(2, 4, 9)
    check(function, [x.T, y.T], "inductor", 1e-5)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside: bool) -> None:
    def function(x: Tensor, y: Tensor, queue: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            return everything(x, y, queue, scale)

    args = arguments()
    expected = values_and_grads(everything, args)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        found = values_and_grads(compiled, args)
    # Autocast is for the matrix products of a model; the losses keep float32.
    for actual, truth in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
        assert actual.dtype == torch.float32
        assert_close(actual, truth, 1e-5)


def test_a_second_batch_size() -> None:
    def function(x: Tensor, y: Tensor, queue: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return hk.align_uniform(x, y).loss, hk.info_nce(x, y, negatives=queue, temperature=1 / scale)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for n, k in ((9, 6), (12, 7), (5, 30)):
        args = arguments(n, k)
        expected, found = values_and_grads(function, args), values_and_grads(compiled, args)
        for actual, truth in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
            torch.testing.assert_close(actual, truth)


LOSSES = {
    "alignment": lambda x: hk.alignment(x, x.flip(0)),
    "uniformity": lambda x: hk.uniformity(x),
    "uniformity-queue": lambda x: hk.uniformity(x, x.flip(0), intra=True),
    "align_uniform": lambda x: hk.align_uniform(x, x.flip(0)).loss,
    "info_nce-learnable": lambda x: hk.info_nce(x, x.flip(0), temperature=x.new_tensor(0.1)),
    "clip_loss": lambda x: hk.clip_loss(x, x.flip(0), logit_scale=5.0),
    "pairwise_logsumexp": lambda x: hk.pairwise_logsumexp(x, logit_scale=5.0)[0].sum(),
}


# The others are sums of these, or have the same graph with numbers instead of a tensor.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "align_uniform"])
def test_marked_dynamic_compiles_once(name: str) -> None:
    # A last batch of another size must not mean another compilation, or an error for those who mark it.
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend=counter)
    for n in (16, 11, 33):
        x = torch.randn(n, 4, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        found = torch.autograd.grad(compiled(x), x)[0]
        torch.testing.assert_close(found, torch.autograd.grad(LOSSES[name](x), x)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["align_uniform", "info_nce-learnable", "uniformity-queue"])
def test_dynamic_compiles(name: str) -> None:
    compiled = torch.compile(LOSSES[name], fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (5, 9):
        x = torch.randn(n, 4)
        torch.testing.assert_close(compiled(x), LOSSES[name](x))


@pytest.mark.parametrize("option", ["t", "temperature", "logit_scale", "alpha", "scale"])
def test_an_option_that_changes_from_step_to_step(option: str) -> None:
    # A schedule of the temperature: at the second value the compiler turns the number into a symbol.
    x, y = torch.randn(2, 9, 4)
    function = {
        "t": lambda value: hk.uniformity(x, t=value),
        "temperature": lambda value: hk.info_nce(x, y, temperature=value),
        "logit_scale": lambda value: hk.clip_loss(x, y, logit_scale=value),
        "alpha": lambda value: hk.alignment(x, y, alpha=value),
        "scale": lambda value: hk.pairwise_logsumexp(x, y, logit_scale=value)[0],
    }[option]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value in (0.5, 0.75, 1.25):
        torch.testing.assert_close(compiled(value), function(value))


@pytest.mark.parametrize("make", [hk.CLIPLoss, hk.AlignUniformLoss, hk.InfoNCELoss, hk.SigLIPLoss, hk.UniformityLoss])
def test_modules(make: type[torch.nn.Module]) -> None:
    x, y = torch.randn(2, 9, 4)
    module = make(learnable=True) if "learnable" in inspect.signature(make).parameters else make()
    check(lambda x, y: (module(x, y),), [x, y])
    grads = []
    for loss in (module, torch.compile(module, fullgraph=True, backend="aot_eager")):
        grads.append(torch.autograd.grad(loss(x.requires_grad_(), y), [x, *module.parameters()]))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)
    # One that is made inside of a graph.
    made = torch.compile(lambda x, y: make()(x, y), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(made(x, y), make()(x, y))
