"""The drop-in for GradCache against the original: loss, gradients, random numbers; and its losses."""

import importlib
import sys
from collections import UserDict, namedtuple
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from across_ranks import DIM, assert_same, averaged, own_features
from parity import assert_parity, defaults, library, relative_error
from ranks import Ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hyperkern.integrations import grad_cache


def original(name: str) -> ModuleType:
    """A module of the original, which imports itself by another name than that of its package."""
    sys.modules.setdefault("grad_cache", library("gradcache"))
    return importlib.import_module(f"gradcache.{name}")


class Encoder(nn.Module):
    """With dropout, so that the second pass must draw as the first one did."""

    def __init__(self, seed: int, dropout: float = 0.4) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, DIM)).double()

    def forward(self, x: Tensor, factor: Tensor | None = None) -> Tensor:
        rows = self.layers(x)
        return rows if factor is None else rows * factor


Output = namedtuple("Output", "pooler_output")


class WithOutput(Encoder):
    def forward(self, x: Tensor, factor: Tensor | None = None) -> Output:
        return Output(super().forward(x, factor))


def step(
    module: ModuleType, models: list[nn.Module], inputs: list[Any], sizes: Any, options: dict[str, Any], **kwargs: Any
) -> list[Tensor]:
    """Loss, gradients and the random state afterwards."""
    for model in models:
        model.zero_grad()
    torch.manual_seed(7)
    loss = module.GradCache(models, sizes, **options)(*inputs, **kwargs)
    grads = [p.grad.clone() for model in dict.fromkeys(models) for p in model.parameters()]
    return [loss, *grads, torch.get_rng_state().double()]


def assert_same_step(models: list[nn.Module], inputs: list[Any], sizes: Any, options: dict[str, Any], **kwargs) -> None:
    theirs = {**options, "loss_fn": options.get("loss_fn") or original("loss").SimpleContrastiveLoss()}
    ours = {**options, "loss_fn": options.get("loss_fn") or grad_cache.SimpleContrastiveLoss()}
    expected = step(original("grad_cache"), models, inputs, sizes, theirs, **kwargs)
    found = step(grad_cache, models, inputs, sizes, ours, **kwargs)
    assert not found[0].requires_grad
    assert_same(found, expected)


def rows(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sizes", [2, 7, 100, [3, 1]])
def test_two_encoders(sizes: Any) -> None:
    assert_same_step([Encoder(1), Encoder(2)], [rows(7), rows(7, 1)], sizes, {})


def test_a_tied_encoder() -> None:
    model = Encoder(1)
    assert_same_step([model, model], [rows(7), rows(7, 1)], 3, {})


def test_gradients_are_added() -> None:
    model, inputs = Encoder(1), [rows(6), rows(6, 1)]
    cache = grad_cache.GradCache([model, model], 2, grad_cache.SimpleContrastiveLoss())
    torch.manual_seed(0)
    cache(*inputs)
    once = [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(0)
    cache(*inputs)
    for parameter, grad in zip(model.parameters(), once, strict=True):
        assert relative_error(parameter.grad, 2 * grad) <= 1e-10


def factor(n: int) -> Tensor:
    return 1 + torch.rand(n, 1, dtype=torch.float64)


INPUTS: dict[str, Callable[[], Any]] = {
    "list": lambda: [rows(7), factor(7)],
    "dict": lambda: {"factor": factor(7), "x": rows(7)},
    "UserDict": lambda: UserDict({"x": rows(7), "factor": factor(7)}),
    "call": lambda: ([rows(7)], {"factor": factor(7)}),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs(kind: str) -> None:
    assert_same_step([Encoder(1), Encoder(2)], [INPUTS[kind](), rows(7, 1)], 3, {})


def test_keywords_alone() -> None:
    # The original has no chunks of an empty list of arguments.
    found = grad_cache.GradCache([], 3, print).split_inputs(([], {"x": rows(7)}), 3)
    assert [(args, len(kwargs["x"])) for args, kwargs in found] == [([], 3), ([], 3), ([], 1)]


def test_representations_in_an_output() -> None:
    options = {"get_rep_fn": lambda output: output.pooler_output}
    assert_same_step([WithOutput(1), WithOutput(2)], [rows(7), rows(7, 1)], 3, options)


def ragged(value: tuple[Tensor, list[int]], size: int) -> list[dict[str, Any]]:
    """Samples of different lengths that lie in one tensor, as of images of different sizes."""
    tensor, lengths = value
    samples = tensor.split(lengths)
    return [{"samples": list(samples[i : i + size])} for i in range(0, len(samples), size)]


class OfSamples(Encoder):
    def forward(self, samples: list[Tensor]) -> Tensor:
        means = torch.stack([sample.mean(0) for sample in samples])
        return super().forward(means)


def test_chunks_of_the_caller() -> None:
    lengths = [1, 4, 2, 3, 1, 2]
    inputs = [(rows(13), lengths), (rows(13, 1), lengths[::-1])]
    assert_same_step([OfSamples(1), OfSamples(2)], inputs, 4, {"split_input_fn": ragged})


@pytest.mark.parametrize("kwargs", [{"reduction": "sum"}, {"target": torch.tensor([2, 0, 0, 6, 1, 4, 5])}], ids=str)
def test_keywords_of_the_loss(kwargs: dict[str, Any]) -> None:
    assert_same_step([Encoder(1), Encoder(2)], [rows(7), rows(7, 1)], 3, {}, **kwargs)


def test_hard_negatives() -> None:
    for module in (original("loss"), grad_cache):
        loss = module.SimpleContrastiveLoss(n_hard_negatives=2)
        assert_same_step([Encoder(1), Encoder(2)], [rows(4), rows(12, 1)], [2, 5], {"loss_fn": loss})


class Learned(nn.Module):
    """A loss with a parameter, which draws random numbers too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (self.scale * F.dropout(x @ y.T)).logsumexp(1).mean()


def test_a_loss_that_learns_and_draws() -> None:
    loss = Learned()
    grads = []
    for module in (original("grad_cache"), grad_cache):
        loss.zero_grad()
        step(module, [Encoder(1), Encoder(2)], [rows(7), rows(7, 1)], 3, {"loss_fn": loss})
        grads.append(loss.scale.grad)
    assert relative_error(*grads) <= 1e-10
    assert_same_step([Encoder(1), Encoder(2)], [rows(7), rows(7, 1)], 3, {"loss_fn": loss})


def test_queries_without_a_cache() -> None:
    queries = rows(7)

    def of_both(module: ModuleType, loss: Any) -> list[Tensor]:
        outside, inside = Encoder(3, dropout=0.0), Encoder(2)
        options = {"loss_fn": loss.ContrastiveLossWithQueryClosure()}
        found = step(module, [inside], [rows(7, 1)], 3, options, query_closure=lambda: outside(queries))
        return found + [p.grad for p in outside.parameters()]

    assert_same(of_both(grad_cache, grad_cache), of_both(original("grad_cache"), original("loss")))
    x, y = rows(5), rows(5, 1)
    closure = grad_cache.ContrastiveLossWithQueryClosure()
    assert closure(x, y) == closure(y, query_closure=lambda: x) == grad_cache.SimpleContrastiveLoss()(x, y)
    for reps, function in (((x, y), lambda: x), ((y,), None), ((), None)):
        with pytest.raises(ValueError, match="query_closure"):
            closure(*reps, query_closure=function)


# --- what callers set or override


def test_what_is_set_later() -> None:
    models, inputs = [Encoder(1), Encoder(2)], [rows(7), rows(7, 1)]
    values = []
    for module, loss in ((original("grad_cache"), original("loss")), (grad_cache, grad_cache)):
        cache = module.GradCache([nn.Identity()], 100, print)
        cache.models, cache.chunk_sizes, cache.loss_fn = models, [2, 3], loss.SimpleContrastiveLoss()
        cache.get_rep_fn = lambda reps: 2 * reps
        cache.split_input_fn = lambda value, size: list(value.flip(0).split(size))
        torch.manual_seed(7)
        values.append(cache(*inputs))
        assert cache.chunk_sizes == [2, 3]
    assert relative_error(*values) <= 1e-10


def overriding(base: type) -> type:
    class Mine(base):
        def model_call(self, model: nn.Module, model_input: Any) -> Tensor:
            return 0.5 * super().model_call(model, model_input)

        def get_reps(self, model_out: Tensor) -> Tensor:
            return F.normalize(super().get_reps(model_out), dim=1)

        def split_inputs(self, model_input: Any, chunk_size: int) -> list[Any]:
            return super().split_inputs(model_input.flip(0), chunk_size)

        def compute_loss(self, *reps: Tensor, **kwargs: Any) -> Tensor:
            return 3 * super().compute_loss(*reps, **kwargs)

    return Mine


def test_what_is_overridden() -> None:
    found = []
    for module, loss in ((original("grad_cache"), original("loss")), (grad_cache, grad_cache)):
        of_mine = ModuleType("mine")
        of_mine.GradCache = overriding(module.GradCache)
        options = {"loss_fn": loss.SimpleContrastiveLoss()}
        found.append(step(of_mine, [Encoder(1), Encoder(2)], [rows(7), rows(7, 1)], 2, options))
    assert_same(*found)


@pytest.mark.parametrize("name", ["forward_no_grad", "build_cache", "forward_backward"])
def test_what_cannot_be_overridden(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"^Mine overrides {name}, which this replacement never calls"):
        type("Mine", (grad_cache.GradCache,), {name: lambda self: None})
    with pytest.raises(NotImplementedError, match=name):
        setattr(grad_cache.GradCache([], 1, print), name, print)


def test_nothing_public_of_the_original_is_missing() -> None:
    theirs = original("grad_cache").GradCache
    public = {name for name in vars(theirs) if not name.startswith("_")}
    assert public - {*dir(grad_cache.GradCache)} == set(grad_cache.GradCache._not_here)
    assert defaults(theirs.__init__) == defaults(grad_cache.GradCache.__init__)
    shared = [name for name in public if hasattr(grad_cache.GradCache, name)]
    for name in shared:
        signatures = (defaults(getattr(cls, name)) for cls in (theirs, grad_cache.GradCache))
        assert len({str(signature) for signature in signatures}) == 1, name
    attributes = vars(theirs([], 1, print))
    assert attributes.keys() == vars(grad_cache.GradCache([], 1, print)).keys()


class Scaler:
    def scale(self, loss: Tensor) -> Tensor:
        return 1024 * loss


def test_a_scaler_scales_the_gradients() -> None:
    model, inputs = Encoder(1), [rows(6), rows(6, 1)]
    grads = []
    for options in ({}, {"fp16": True, "scaler": Scaler()}):
        options["loss_fn"] = grad_cache.SimpleContrastiveLoss()
        grads.append(step(grad_cache, [model, model], inputs, 2, options))
    (loss, *plain, _), (same_loss, *scaled, _) = grads
    assert loss == same_loss
    for actual, truth in zip(scaled, plain, strict=True):
        assert relative_error(actual, 1024 * truth) <= 1e-10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:`torch.cuda.amp")
def test_half_precision_on_a_gpu() -> None:
    models = [Encoder(seed).float().cuda() for seed in (1, 2)]
    inputs = [rows(7, seed).float().cuda() for seed in (0, 1)]
    found = []
    for module, loss in ((original("grad_cache"), original("loss")), (grad_cache, grad_cache)):
        scaler = torch.amp.GradScaler("cuda", init_scale=64.0)
        options = {"fp16": True, "scaler": scaler, "loss_fn": loss.SimpleContrastiveLoss()}
        torch.cuda.manual_seed(7)
        found.append(step(module, models, inputs, 3, options))
    for actual, truth in zip(*found, strict=True):
        assert relative_error(actual, truth) <= 0.02


X = rows(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: grad_cache.GradCache([], 1, print, fp16=True), ValueError, "^fp16=True needs .*scaler=None"),
        (
            lambda: grad_cache.GradCache([Encoder(1)], 2, print)(X, X),
            ValueError,
            "^model_inputs must have one .* 1 .* got 2",
        ),
        (lambda: grad_cache.GradCache([Encoder(1)], [2, 2], print)(X), ValueError, "^chunk_sizes must have one"),
        (lambda: grad_cache.GradCache([Encoder(1)], 0, print)(X), ValueError, "^chunk_sizes must be at least 1, got 0"),
        (lambda: grad_cache.GradCache([Encoder(1)], 2.5, print)(X), TypeError, "^chunk_sizes must be an integer, got"),
        (lambda: grad_cache.GradCache([Encoder(1)], 2, print)({"x": [1]}), NotImplementedError, "dict.*split_input_fn"),
        (
            lambda: grad_cache.GradCache([Encoder(1)], 2, print)([X, X[:2]]),
            ValueError,
            r"shapes \[\(4, 5\), \(2, 5\)\]",
        ),
        (
            lambda: grad_cache.GradCache([Encoder(1)], 2, print, split_input_fn=lambda x, n: [])(X),
            ValueError,
            "^model_inputs must have rows, got none",
        ),
        (
            lambda: grad_cache.GradCache([Encoder(1)], 2, print, split_input_fn=lambda x, n: ["x"])(X),
            NotImplementedError,
            "input of type str",
        ),
        (
            lambda: grad_cache.GradCache([WithOutput(1)], 2, print)(X),
            TypeError,
            "^get_rep_fn must return .* got Output",
        ),
        (
            lambda: grad_cache.GradCache([Encoder(1)], 2, print)(X, no_sync_except_last=True),
            ValueError,
            "^no_sync_except_last=True needs models in DistributedDataParallel, got Encoder",
        ),
        (
            lambda: grad_cache.SimpleContrastiveLoss(1)(X, X),
            ValueError,
            r"^y must have 2 rows for each of the 4 .* got 4",
        ),
        (lambda: grad_cache.SimpleContrastiveLoss(-1), ValueError, "^n_hard_negatives must be at least 0"),
        (lambda: grad_cache.SimpleContrastiveLoss()(X, X, reduction="max"), ValueError, "^reduction must be one of"),
        (lambda: grad_cache.SimpleContrastiveLoss()(X, X, X), TypeError, "^target must have an integer dtype"),
        (lambda: grad_cache.SimpleContrastiveLoss()(X, X, torch.tensor([0, 1, 2, -1])), IndexError, "index"),
        (lambda: grad_cache.DistributedContrastiveLoss(), ValueError, "init_process_group"),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_tensors_that_must_be_found() -> None:
    cache = grad_cache.GradCache([Encoder(1)], 2, print, split_input_fn=lambda x, n: [{"x": x, "factor": None}])
    cache._get_input_tensors_strict = True
    with pytest.raises(NotImplementedError, match="NoneType"):
        cache(X)


# --- the losses


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("hard", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2, 9])
def test_loss(n: int, hard: int, reduction: str) -> None:
    x, y = torch.randn(n, 5, dtype=torch.float64), torch.randn(n * (1 + hard), 5, dtype=torch.float64)
    pair = (module.SimpleContrastiveLoss(hard) for module in (grad_cache, original("loss")))
    assert_parity(*(lambda x, y, loss=loss: loss(x, y, reduction=reduction) for loss in pair), x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("places", [[3, 0, 3, 10], [3, -100, 3, 0], [0, 1, 2, 3]], ids=str)
def test_loss_with_targets(places: list[int], reduction: str) -> None:
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    weights = torch.arange(1.0, 5.0)
    pair = (module.SimpleContrastiveLoss() for module in (grad_cache, original("loss")))

    def scalar(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def function(x: Tensor, y: Tensor) -> Tensor:
            value = loss(x, y, torch.tensor(places), reduction)
            return (value * weights).sum() if reduction == "none" else value

        return function

    assert_parity(*map(scalar, pair), x, y)


def test_loss_of_half_precision() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x, y = (torch.randn(n, 5).to(dtype).requires_grad_() for n in (6, 12))
        loss = grad_cache.SimpleContrastiveLoss(1)(x, y)
        truth = original("loss").SimpleContrastiveLoss(1)(x.detach().double(), y.detach().double())
        assert loss.dtype == torch.float32
        assert relative_error(loss.detach(), truth) <= 0.02
        assert all(grad.dtype == dtype for grad in torch.autograd.grad(loss, (x, y)))


# --- several processes


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("size", [2, 3])
def test_distributed_loss(ranks: Ranks, size: int, hard: int, reduction: str) -> None:
    original("loss")
    ranks(size).run(of_rank, hard, reduction)


def of_rank(rank: int, hard: int, reduction: str) -> None:
    x, *passages = own_features(rank, 2 + hard)
    y = torch.stack(passages, 1).flatten(end_dim=1)
    pair = [module.DistributedContrastiveLoss(hard) for module in (grad_cache, original("loss"))]
    for factor_of in (1.0, 0.3):
        found, expected = (grads_of(loss, x, y, reduction, factor_of) for loss in pair)
        assert_same(found, expected)


def grads_of(loss: Callable[..., Tensor], x: Tensor, y: Tensor, reduction: str, factor_of: float) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (x, y)]
    value = loss(*leaves, reduction=reduction)
    return [value.detach(), *torch.autograd.grad(factor_of * value, leaves)]


def uneven(rank: int) -> list[Tensor]:
    counts = [2, 5]
    everything = [torch.randn(n, 4, dtype=torch.float64) for n in (7, 14)]  # seeded alike on all ranks
    begin, end = sum(counts[:rank]), sum(counts[: rank + 1])
    own = everything[0][begin:end], everything[1][2 * begin : 2 * end]
    found = grads_of(grad_cache.DistributedContrastiveLoss(1), *own, "mean", 1.0)
    whole = grads_of(grad_cache.SimpleContrastiveLoss(1), *everything, "mean", 1.0)
    assert_same(found, [whole[0], whole[1][begin:end], whole[2][2 * begin : 2 * end]])
    return found


def test_processes_with_different_numbers_of_queries(ranks: Ranks) -> None:
    ranks(2).run(uneven)


def under_ddp(rank: int, tied: bool, no_sync: bool) -> None:
    inputs = [rows(6, 10 + rank), rows(6, 20 + rank)]
    results = []
    for module, losses in ((original("grad_cache"), original("loss")), (grad_cache, grad_cache)):
        encoders = [Encoder(1)] * 2 if tied else [Encoder(1), Encoder(2)]
        wrapped = {encoder: DistributedDataParallel(encoder) for encoder in dict.fromkeys(encoders)}
        models = [wrapped[encoder] for encoder in encoders]
        options = {"loss_fn": losses.DistributedContrastiveLoss()}
        first = step(module, models, inputs, 4, options, no_sync_except_last=no_sync)
        assert_same([averaged(first[1])], [first[1]])  # all processes have the same
        results.append(first)
    assert_same(*results)


@pytest.mark.parametrize("no_sync", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_under_ddp(ranks: Ranks, tied: bool, no_sync: bool) -> None:
    original("loss")
    ranks(2).run(under_ddp, tied, no_sync)


def accumulated(rank: int) -> None:
    """Inside of DDP's no_sync nothing is reduced; the next step reduces the sum."""
    inputs = [rows(6, 10 + rank), rows(6, 20 + rank)]
    results = []
    for module, losses in ((original("grad_cache"), original("loss")), (grad_cache, grad_cache)):
        model = DistributedDataParallel(Encoder(1, dropout=0.0))
        cache = module.GradCache([model, model], 4, losses.DistributedContrastiveLoss())
        with model.no_sync():
            cache(*inputs)
        own = [p.grad.clone() for p in model.parameters()]
        cache(*(2 * value for value in inputs), no_sync_except_last=True)
        results.append([*own, *(p.grad.clone() for p in model.parameters())])
    assert_same(*results)


def test_accumulation_under_ddp(ranks: Ranks) -> None:
    original("loss")
    ranks(2).run(accumulated)


def refused(rank: int) -> list[str]:
    x, y = own_features(rank, 2)
    loss, messages = grad_cache.DistributedContrastiveLoss(), []
    for kwargs in ({"target": torch.arange(5)}, {"reduction": "none"}):
        try:
            loss(x, y, **kwargs)
        except NotImplementedError as error:
            messages.append(str(error))
    try:
        loss(x, y[: 5 - rank])
    except ValueError as error:
        messages.append(str(error))
    try:  # the others must not wait
        passages = y if rank else y.float()
        loss(x, passages)
    except (TypeError, ValueError) as error:
        messages.append(str(error))
    return messages


def test_what_several_processes_refuse(ranks: Ranks) -> None:
    for rank, messages in enumerate(ranks(2).run(refused)):
        assert messages[0].startswith("target=tensor")
        assert messages[1].startswith("reduction='none' is not supported here")
        assert ("refused on rank 0" if rank else "y must have the dtype of x") in messages[-1]


def test_what_would_be_gathered_by_a_method() -> None:
    with pytest.raises(NotImplementedError, match=r"^Mine overrides gather_tensor"):
        type("Mine", (grad_cache.DistributedContrastiveLoss,), {"gather_tensor": lambda self, t: t})


@pytest.mark.parametrize(
    "name", ["SimpleContrastiveLoss", "DistributedContrastiveLoss", "ContrastiveLossWithQueryClosure"]
)
def test_signatures_of_losses(name: str) -> None:
    ours, theirs = (getattr(module, name) for module in (grad_cache, original("loss")))
    assert defaults(ours.__init__) == defaults(theirs.__init__)
    assert dist.is_available()
