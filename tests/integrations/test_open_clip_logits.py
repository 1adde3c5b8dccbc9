"""What the drop-ins for OpenCLIP show callers of the logits: the matrices and labels of the library."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from parity import defaults, library
from torch import Tensor

from hyperkern.integrations import open_clip as ours

SCALES = [7.0, torch.tensor(7.0), torch.tensor([7.0])]
BIASES = [None, -3.0, torch.tensor(-3.0)]


@pytest.fixture(scope="module")
def open_clip():
    return library("open_clip.loss")


def features(images: int = 6, texts: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 5), torch.randn(texts, 5)


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bias", BIASES, ids=str)
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("texts", [6, 9])  # classes, for instance
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_logits(open_clip, name: str, texts: int, scale, bias) -> None:
    args = *features(6, texts), scale, bias
    same(*(getattr(module, name)().get_logits(*args) for module in (ours, open_clip)))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_logits_have_the_dtype_of_the_features(open_clip, name: str) -> None:
    args = *(side.bfloat16() for side in features()), torch.tensor(7.0), torch.tensor([-3.0])
    same(*(getattr(module, name)().get_logits(*args) for module in (ours, open_clip)))


def test_logits_carry_gradients() -> None:
    images, texts = features()
    images.requires_grad_()
    of_images, _ = ours.ClipLoss().get_logits(images, texts, 2.0, 1.0)
    same(torch.autograd.grad(of_images.sum(), images)[0], 2 * texts.sum(0).expand(6, 5))


def test_they_are_those_of_the_loss() -> None:
    images, texts = features()
    loss = ours.ClipLoss()
    labels = loss.get_ground_truth(images.device, 6)
    expected = sum(F.cross_entropy(logits, labels) for logits in loss.get_logits(images, texts, 2.0)) / 2
    torch.testing.assert_close(loss(images, texts, 2.0), expected)
    loss = ours.SigLipLoss()
    signs = loss.get_ground_truth(images.device, images.dtype, 6)
    expected = -F.logsigmoid(signs * loss.get_logits(images, texts, 2.0, -1.0)).sum() / 6
    torch.testing.assert_close(loss(images, texts, 2.0, -1.0), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"local_loss": True}, {"rank": 2, "world_size": 4}, {"local_loss": True, "rank": 2, "world_size": 4}],
)
def test_ground_truth(open_clip, options: dict) -> None:
    for cached in (False, True):
        pair = [module.ClipLoss(**options, cache_labels=cached) for module in (ours, open_clip)]
        for number in (5, 5, 3):
            same(*(loss.get_ground_truth(torch.device("cpu"), number) for loss in pair))
            same(*(dict(loss.labels) for loss in pair))
            assert pair[0].prev_num_logits == pair[1].prev_num_logits


@pytest.mark.parametrize("negative_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_signs(open_clip, dtype: torch.dtype, negative_only: bool) -> None:
    same(
        *(
            module.SigLipLoss().get_ground_truth(torch.device("cpu"), dtype, 4, negative_only)
            for module in (ours, open_clip)
        )
    )


def test_the_calls_are_those_of_the_library(open_clip) -> None:
    for name in ("ClipLoss", "SigLipLoss"):
        for method in ("get_logits", "get_ground_truth"):
            assert defaults(getattr(getattr(ours, name), method)) == defaults(getattr(getattr(open_clip, name), method))
    assert defaults(ours.DistillClipLoss.dist_loss) == defaults(open_clip.DistillClipLoss.dist_loss)


def test_labels_can_be_emptied_and_not_given() -> None:
    loss = ours.ClipLoss(cache_labels=True)
    loss.get_ground_truth("cpu", 3)
    assert loss.labels["cpu"].tolist() == [0, 1, 2]
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert again.labels["cpu"].tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match="does not support item assignment"):
        loss.labels["cpu"] = torch.zeros(3)
    with pytest.raises(NotImplementedError, match=r"^labels are not read by this replacement"):
        loss.labels = {"cpu": torch.zeros(3)}
    loss.labels, loss.prev_num_logits = {}, 0
    assert not loss.labels


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("ClipLoss", "get_logits"),
        ("CoCaLoss", "get_logits"),
        ("CoCaLoss", "get_ground_truth"),
        ("DistillClipLoss", "get_logits"),
        ("DistillClipLoss", "dist_loss"),
        ("SigLipLoss", "get_logits"),
        ("SigLipLoss", "_loss"),
        ("SigLipLoss", "_chunked_loss"),
    ],
)
def test_nothing_that_only_the_library_calls_is_replaced(name: str, method: str) -> None:
    replaced = {method: lambda self, *args: None}
    for bases in ((getattr(ours, name),), (type("Mixin", (), replaced), getattr(ours, name))):
        with pytest.raises(NotImplementedError, match=f"^Mine overrides {method}, which this replacement never calls"):
            type("Mine", bases, replaced if len(bases) == 1 else {})
    loss = getattr(ours, name)(*[1.0] * (2 * (name == "CoCaLoss")))
    with pytest.raises(NotImplementedError, match=f"{name} has no {method} that could be set"):
        setattr(loss, method, print)
    assert type("Mine", (getattr(ours, name),), {"mine": 1}).mine == 1
