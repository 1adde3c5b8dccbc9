"""The libraries beside whose losses hyperkern's are measured, each imported from its own package when it is made.

A file of further implementations as anybody may write one: ``hyperkern bench --load benchmarks/peers.py``, which
``python -m benchmarks`` and `make bench` do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hyperkern import textbook
from hyperkern.bench import case, implementation
from hyperkern.bench.baselines import HALF, MOST_DENSE
from hyperkern.bench.registry import CASES, Loss
from hyperkern.catalog import CLASSES
from hyperkern.integrations.align_uniform import uniform_loss


def load(module: str) -> Any:
    """A module of a library. Some import torchvision, whose build for CUDA stops at operators that it cannot load."""
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            for name in ("nms", "qnms"):
                torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    return importlib.import_module(module)


def unit(loss: Loss) -> Loss:
    """For losses whose models normalise."""
    return lambda *views: loss(*(F.normalize(view, dim=-1) for view in views))


def two_way(one_way: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    """The mean of a loss of queries and keys and of the same with the roles exchanged, for unit rows."""
    return unit(lambda x, y: (one_way(x, y) + one_way(y, x)) / 2)


# KeOps sums products as plain loops: for large D it takes a hundred times the library's product.
keops = functools.partial(
    implementation, package="pykeops", most_rows=2048, dtypes=("float64", "float32"), slowdown=150, first_s=12
)


def _lazy(x: Tensor, y: Tensor) -> tuple[Any, Any]:
    lazy = load("pykeops.torch").LazyTensor
    return lazy(x[:, None, :].contiguous()), lazy(y[None, :, :].contiguous())


@keops("uniformity", "keops")
def keops_uniformity() -> Loss:
    """Its lazy matrix of distances."""
    load("pykeops.torch")

    def loss(x: Tensor, t: float = 2.0) -> Tensor:
        n = x.shape[0]
        rows, columns = _lazy(x, x)
        kernel = (-t * ((rows - columns) ** 2).sum(-1)).exp()
        return ((kernel.sum(1).sum() - n) / (n * (n - 1))).log()

    return unit(loss)


@keops("clip", "keops", slowdown=200)
def keops_clip() -> Loss:
    """Its lazy matrix of logits, reduced by rows and by columns."""
    load("pykeops.torch")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        rows, columns = _lazy(textbook.LOGIT_SCALE * x, y)
        logits = (rows * columns).sum(-1)
        positive = textbook.LOGIT_SCALE * (x * y).sum(-1).mean()
        return (logits.logsumexp(1).mean() + logits.logsumexp(0).mean()) / 2 - positive

    return unit(loss)


@keops("nt_xent", "keops", slowdown=200)
def keops_nt_xent() -> Loss:
    """Its lazy matrix of logits; of unit rows the own one is a constant, subtracted behind the sum."""
    load("pykeops.torch")

    def loss(x: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([x, y])
        rows, columns = _lazy(z / textbook.TEMPERATURE, z)
        lse = (rows * columns).sum(-1).logsumexp(1).view(-1)
        others = lse + torch.log1p(-(z.square().sum(-1) / textbook.TEMPERATURE - lse).exp())
        return others.mean() - (x * y).sum(-1).mean() / textbook.TEMPERATURE

    return unit(loss)


@implementation("nt_xent", "lightly", package="lightly", most_rows=MOST_DENSE // 4, slowdown=8)
def lightly_nt_xent() -> Loss:
    """Its NTXentLoss."""
    loss: Loss = load("lightly.loss").NTXentLoss(temperature=textbook.TEMPERATURE)
    return loss


@implementation(
    "align_uniform", "lightly", package="lightly", most_rows=4096, dtypes=("float64", "float32"), slowdown=30
)
def lightly_align_uniform() -> Loss:
    """Its HypersphereLoss, which is pdist's."""
    loss: Loss = load("lightly.loss.hypersphere_loss").HypersphereLoss(t=2.0, lam=1.0, alpha=2.0)
    return loss


def _metric_learning(name: str) -> Loss:
    loss = getattr(load("pytorch_metric_learning.losses"), name)(temperature=textbook.TEMPERATURE)

    def of_views(x: Tensor, y: Tensor) -> Tensor:
        samples = torch.arange(x.shape[0], device=x.device).repeat(2)
        value: Tensor = loss(torch.cat([x, y]), samples)
        return value

    return of_views


@implementation(
    "nt_xent", "pytorch-metric-learning", package="pytorch-metric-learning", most_rows=MOST_DENSE // 4, slowdown=13
)
def metric_learning() -> Loss:
    """Its SupConLoss: with one label for each sample, and so one positive for each row, it is NT-Xent."""
    return _metric_learning("SupConLoss")


@implementation(
    *("nt_xent", "pytorch-metric-learning NTXentLoss"),
    package="pytorch-metric-learning",
    most_rows=256,  # it stores positive pairs x negative pairs, 8 N^3 numbers
    slowdown=1300,
)
def metric_learning_nt_xent() -> Loss:
    """Its NTXentLoss."""
    return _metric_learning("NTXentLoss")


@implementation("clip", "open_clip", package="open-clip-torch", module="open_clip", most_rows=MOST_DENSE, slowdown=4)
def open_clip() -> Loss:
    """Its ClipLoss, of rows that its models have normalised."""
    loss = load("open_clip.loss").ClipLoss()
    return unit(lambda x, y: loss(x, y, textbook.LOGIT_SCALE))


class _Identity(nn.Module):
    """A model whose embeddings are its features."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hands them on."""
        return {"sentence_embedding": features["rows"]}


@implementation(
    *("clip", "sentence-transformers cached"),
    package="sentence-transformers",
    modes=("forward", "both"),  # the gradients are made in the forward pass and handed out once
    slowdown=13,
)
def sentence_transformers_cached() -> Loss:
    """Its CachedMultipleNegativesRankingLoss in both directions, behind a model that does nothing."""
    loss = load("sentence_transformers.sentence_transformer.losses").CachedMultipleNegativesRankingLoss(
        nn.Sequential(_Identity()),  # it asks for a model's first module
        scale=textbook.LOGIT_SCALE,
        mini_batch_size=textbook.CHUNK,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    def of_views(x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = loss([{"rows": x}, {"rows": y}], torch.empty(0))
        return value

    return of_views


class _Cached(torch.autograd.Function):
    """A step that makes the gradients of its inputs itself, as a loss: it hands them out in the backward pass."""

    @staticmethod
    def forward(ctx: Any, cached_step: Callable[..., Tensor], *views: Tensor) -> Tensor:
        leaves = [view.detach().requires_grad_() for view in views]
        with torch.enable_grad():
            value = cached_step(*leaves)
        ctx.save_for_backward(*(leaf.grad for leaf in leaves))
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * saved for saved in ctx.saved_tensors)


@implementation("clip", "gradcache", package="gradcache", modes=("both",), most_rows=MOST_DENSE, slowdown=13)
def gradcache() -> Loss:
    """Its GradCache of the usual loss, behind encoders that do nothing."""
    # What the package index has refers to itself by the name that its repository installs.
    sys.modules.setdefault("grad_cache", load("gradcache"))
    cache = load("gradcache.grad_cache").GradCache(
        models=[nn.Identity(), nn.Identity()], chunk_sizes=textbook.CHUNK, loss_fn=textbook.dense_clip
    )

    def of_views(x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = _Cached.apply(cache, x, y)
        return value

    return of_views


def _cross_entropy_of_rows(linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
    """InfoNCE as a linear cross entropy: the rows are the inputs, those of the other side the classes."""

    def one_way(x: Tensor, y: Tensor) -> Tensor:
        return linear(textbook.LOGIT_SCALE * x, y, torch.arange(x.shape[0], device=x.device))

    return two_way(one_way)


@implementation("clip", "cut-cross-entropy", package="cut-cross-entropy", devices=("cuda",), dtypes=HALF, slowdown=5)
def cut_cross_entropy() -> Loss:
    """Its linear_cross_entropy, with no gradient left out."""
    linear = load("cut_cross_entropy").linear_cross_entropy
    return _cross_entropy_of_rows(lambda x, y, labels: linear(x, y, labels, filter_eps=None))


@implementation("clip", "liger", package="liger-kernel", devices=("cuda",), slowdown=8)
def liger() -> Loss:
    """Its LigerFusedLinearCrossEntropyLoss."""
    loss = load("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    return _cross_entropy_of_rows(lambda x, y, labels: loss(y, x, labels))


# It reads beyond the end of the rows where N is no multiple of 64.
@implementation(
    "clip", "inf-cl", package="inf-cl", devices=("cuda",), multiple_of=256, rows_multiple_of=64, slowdown=11
)
def inf_cl() -> Loss:
    """Its cal_flash_loss, both ways."""
    loss = load("inf_cl").cal_flash_loss
    return two_way(lambda x, y: loss(x, y, scale=textbook.LOGIT_SCALE).mean())


# ---- losses of the libraries as cases of their own: the original, in float64 the truth, and the drop-in --------------


def _drop_in(
    name: str, package: str, module: str, make: Callable[[Any], Loss], *, like: str, most_rows: int = 1 << 40
) -> None:
    """Enters a loss of a library; ``make`` makes it from their module or ours, ``like`` has its arithmetic."""
    root = module.split(".")[0]

    def truth(*views: Tensor) -> Tensor:
        value: Tensor = make(load(module))(*views)
        return value

    case(name, inputs=2, flops=CASES[like].flops, counted=f"as {like}", baseline="original")(truth)
    of_library = implementation(name, "original", package=package, module=root, most_rows=most_rows)
    of_library(lambda: make(load(module)))
    own = implementation(name, "hyperkern", package="hyperkern", module=root, slowdown=1.5)
    own(lambda: make(load(f"hyperkern.integrations.{root}")))


def _labelled(name: str, labels: Callable[[int], Tensor]) -> Callable[[Any], Loss]:
    """A loss of embeddings and labels as one of features alone, two views one behind the other."""

    def make(module: Any) -> Loss:
        loss = getattr(module, name)()
        return lambda *views: loss(torch.cat(views), labels(sum(view.shape[0] for view in views)))

    return make


def _of_unit_rows(name: str, *options: float) -> Callable[[Any], Loss]:
    """A loss of rows that its models have normalised, and of numbers that they have learned."""

    def make(module: Any) -> Loss:
        loss = getattr(module, name)()
        return unit(lambda x, y: loss(x, y, *(torch.tensor(option, dtype=x.dtype) for option in options)))

    return make


for _name, _options, _module, _like in (
    ("NTXentLoss", {"temperature": 0.2}, "lightly.loss", "nt_xent"),
    ("DCLLoss", {}, "lightly.loss", "dcl"),
    ("DCLWLoss", {}, "lightly.loss", "dclw"),
    ("HypersphereLoss", {}, "lightly.loss.hypersphere_loss", "align_uniform"),
):
    _make = functools.partial(
        lambda module, name, options: getattr(module, name)(**options), name=_name, options=_options
    )
    _drop_in(f"lightly {_name}", "lightly", _module, _make, like=_like)

_METRIC_LEARNING = ("pytorch-metric-learning", "pytorch_metric_learning.losses")
_drop_in(
    *("PML NTXentLoss (two views)", *_METRIC_LEARNING, _labelled("NTXentLoss", lambda n: torch.arange(n) % (n // 2))),
    like="nt_xent",
    most_rows=256,  # as above
)
_drop_in(
    *(f"PML SupConLoss ({CLASSES} classes)", *_METRIC_LEARNING),
    _labelled("SupConLoss", lambda n: torch.arange(n) % CLASSES),
    like="nt_xent",
)
_OPEN_CLIP = ("open-clip-torch", "open_clip.loss")
_drop_in("OpenCLIP ClipLoss", *_OPEN_CLIP, _of_unit_rows("ClipLoss", textbook.LOGIT_SCALE), like="clip")
_drop_in("OpenCLIP SigLipLoss", *_OPEN_CLIP, _of_unit_rows("SigLipLoss", 10.0, -10.0), like="siglip")

PAPER = "paper's uniform_loss"
case(PAPER, inputs=1, flops=CASES["uniformity"].flops, counted="as uniformity", baseline="pdist", unit=True)(
    textbook.paper_uniform_loss
)
implementation(PAPER, "pdist", most_rows=4096, slowdown=30)(lambda: textbook.paper_uniform_loss)
implementation(PAPER, "hyperkern", package="hyperkern")(lambda: uniform_loss)
