"""What the tests of the drop-ins in several processes share: features of a process, how it compares, the losses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parity import library, relative_error, value_and_grads
from torch import Tensor, nn

from hyperkern.integrations import lightly, sentence_transformers

ROWS, DIM = 5, 4
Loss = Callable[..., Tensor]
# Value and gradients.
Result = list[Tensor]


def own_features(rank: int, count: int, rows: int = ROWS, seed: int = 0) -> list[Tensor]:
    """Features of a process, related as positives are."""
    draw = torch.Generator().manual_seed(100 * seed + rank)
    first, *others = torch.randn(count, rows, DIM, generator=draw, dtype=torch.float64)
    return [first, *(first + other for other in others)]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    for actual, truth in zip(found, expected, strict=True):
        # Of pairs told apart with confidence the weights are p - 1: the original too has the rounding of 1.
        rounded = (actual - truth).abs().max() <= 100 * torch.finfo(torch.float64).eps
        assert rounded or relative_error(actual, truth) <= tolerance


def averaged(tensor: Tensor) -> Tensor:
    """What DDP makes of the gradients of a parameter."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def parity(
    ours: Loss,
    original: Loss,
    features: list[Tensor],
    shared: Sequence[Tensor] = (),
    *,
    factor: float = 1.0,
    tolerance: float = 1e-6,
) -> None:
    """Value and gradients of the features on this process, and the mean over processes of those of parameters.

    In float64 to 1e-10; in float32 to ``tolerance``, or to twice what the original loses, of what float64 makes of the
    same numbers, for all features together, since some may matter little beside the others.
    """
    count = 1 + len(features)
    rounded = [t.float() for t in (*features, *shared)]
    args = [t.double() for t in rounded]
    truths = value_and_grads(original, *args, factor=factor)
    found = value_and_grads(ours, *args, factor=factor)
    assert all(t.dtype == torch.float64 for t in found)
    assert_same(found[:count], truths[:count])
    assert_same([averaged(g) for g in found[count:]], [averaged(g) for g in truths[count:]])
    of_float32 = (value_and_grads(loss, *rounded, factor=factor) for loss in (ours, original))
    joined = [(value, torch.stack(grads[: count - 1])) for value, *grads in (*of_float32, truths)]
    for actual, peer, truth in zip(*joined, strict=True):
        assert actual.dtype == torch.float32
        assert relative_error(actual, truth) <= max(tolerance, 2 * relative_error(peer, truth))


def unit(features: list[Tensor]) -> list[Tensor]:
    return [F.normalize(side, dim=1) for side in features]


CLIP_OPTIONS = [{"local_loss": local, "gather_with_grad": grad} for local in (False, True) for grad in (False, True)]


def distance(x: Tensor, y: Tensor) -> Tensor:
    return ((x - y) ** 2).sum(1)


def lightly_losses(name: str, options: dict[str, Any]) -> list[nn.Module]:
    if "weight_fn" in options:
        options = {**options, "weight_fn": distance}
    return [getattr(m, name)(**options, gather_distributed=True) for m in (lightly, library("lightly.loss"))]


class Encoder(nn.Module):
    """Embeddings with the parameters of all columns; like a module of the library it adds to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(DIM, DIM)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        features["sentence_embedding"] = torch.tanh(self.linear(features["input_ids"]))
        return features


def ranking_losses(name: str, options: dict[str, Any]) -> list[Any]:
    theirs = library("sentence_transformers.sentence_transformer.losses")
    if "similarity_fct" in options:
        util = library("sentence_transformers.util")
        options = {**options, "similarity_fct": getattr(util, options["similarity_fct"])}
    torch.manual_seed(1)
    model = nn.Sequential(Encoder()).double()
    return [getattr(m, name)(model, **options, gather_across_devices=True) for m in (sentence_transformers, theirs)]
