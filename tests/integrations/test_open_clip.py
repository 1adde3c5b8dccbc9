"""The drop-in for OpenCLIP: against the library where it is installed, against dense formulas everywhere."""

import math

import oracle
import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close
from parity import assert_parity, defaults, library, value_and_grads
from torch import Tensor

from hyperkern.integrations import open_clip as ours

SHAPES = [(1, 4), (2, 3), (7, 5), (33, 16), (64, 130)]
# Numbers and parameters, of the initial and of a trained model.
SCALES = [1.0, 10.0, 1 / 0.07, torch.tensor(14.3), torch.tensor([30.0])]

CONSTRUCTORS = {
    "ClipLoss": {
        "local_loss": False,
        "gather_with_grad": False,
        "cache_labels": False,
        "rank": 0,
        "world_size": 1,
        "use_horovod": False,
    },
    "SigLipLoss": {"cache_labels": False, "rank": 0, "world_size": 1, "dist_impl": None, "chunk_size": 0},
}
# What one of the versions 3.3 and 4 does not have.
OF_ONE_VERSION = {"use_horovod", "chunk_size"}
CALLS = {
    "ClipLoss": {
        "image_features": ...,
        "text_features": ...,
        "logit_scale": ...,
        "logit_bias": None,
        "output_dict": False,
    },
    "SigLipLoss": {
        "image_features": ...,
        "text_features": ...,
        "logit_scale": ...,
        "logit_bias": ...,
        "output_dict": False,
    },
}


def features(n: int, d: int, normalize: bool = True) -> tuple[Tensor, Tensor]:
    images, noise = torch.randn(2, n, d, dtype=torch.float64)
    pair = images, images + noise
    return tuple(F.normalize(side, dim=1) if normalize else side / (2 * math.sqrt(d)) for side in pair)


def dense_clip(images: Tensor, texts: Tensor, scale, bias=None) -> Tensor:
    return oracle.clip_loss(images, texts, logit_scale=scale, normalize=False)


def dense_siglip(images: Tensor, texts: Tensor, scale, bias) -> Tensor:
    return oracle.siglip(images, texts, logit_scale=scale, logit_bias=0 if bias is None else bias, normalize=False)


@pytest.fixture(scope="module")
def open_clip():
    return library("open_clip.loss")


@pytest.mark.parametrize("name", CALLS)
def test_defaults(name: str) -> None:
    assert defaults(getattr(ours, name).__init__) == CONSTRUCTORS[name]
    assert defaults(getattr(ours, name).forward) == CALLS[name]
    loss = getattr(ours, name)()
    for option, value in CONSTRUCTORS[name].items():
        assert getattr(loss, option) == (value if option != "dist_impl" else "bidir")


@pytest.mark.parametrize("name", CALLS)
def test_defaults_of_the_library(open_clip, name: str) -> None:
    theirs = defaults(getattr(open_clip, name).__init__)
    assert theirs == {option: CONSTRUCTORS[name][option] for option in theirs}
    assert CONSTRUCTORS[name].keys() - theirs <= OF_ONE_VERSION
    assert list(theirs) == list(CONSTRUCTORS[name])[: len(theirs)]  # by position too
    assert defaults(getattr(open_clip, name).forward) == CALLS[name]


def both(call, original, scale, bias, *args: Tensor) -> None:
    """Parity with the scale and the bias as they are, and with those that are tensors as further arguments."""
    tensors = [t.double() for t in (scale, bias) if isinstance(t, Tensor)]

    def with_tensors(loss):
        def run(images: Tensor, texts: Tensor, *given: Tensor) -> Tensor:
            rest = iter(given)
            options = [next(rest) if isinstance(t, Tensor) else t for t in (scale, bias)]
            return loss(images, texts, *options)

        return run

    largest_logit = float(scale) + abs(float(bias or 0))
    assert_parity(with_tensors(call), with_tensors(original), *args, *tensors, largest_logit=largest_logit)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("bias", [None, -10.0, torch.tensor(-3.0), torch.tensor([2.0])], ids=str)
@pytest.mark.parametrize("scale", SCALES, ids=str)
class TestParity:
    """Values, and the gradients for features, scale and bias."""

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_clip(self, open_clip, shape, scale, bias, normalize: bool) -> None:
        # The original's gradient for the bias is its rounding error: there is nothing to be close to.
        number = None if bias is None else bias.item() if isinstance(bias, Tensor) else bias
        both(ours.ClipLoss(), open_clip.ClipLoss(), scale, number, *features(*shape, normalize))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_siglip(self, open_clip, shape, scale, bias, normalize: bool) -> None:
        both(ours.SigLipLoss(), open_clip.SigLipLoss(), scale, bias, *features(*shape, normalize))

    def test_dense_formulas(self, scale, bias, normalize: bool) -> None:
        both(ours.SigLipLoss(), dense_siglip, scale, bias, *features(9, 5, normalize))
        both(ours.ClipLoss(), dense_clip, scale, None, *features(9, 5, normalize))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_bias_of_clip_has_the_gradient_zero(shape: tuple[int, ...]) -> None:
    args = [*features(9, 5), torch.tensor(12.0, dtype=torch.float64)]
    bias = torch.full(shape, -7.0, dtype=torch.float64)
    without = value_and_grads(ours.ClipLoss(), *args)
    *found, of_bias = value_and_grads(ours.ClipLoss(), *args, bias)
    for actual, expected in zip(found, without, strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(of_bias, torch.zeros_like(bias))
    images, texts, scale = (arg.float() for arg in args)
    assert ours.ClipLoss()(images, texts, scale, bias).dtype == torch.float32


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_bias_of_the_library_has_it_too(open_clip, shape: tuple[int, ...]) -> None:
    args = [*features(9, 5), torch.tensor(12.0, dtype=torch.float64)]
    bias = torch.full(shape, -7.0, dtype=torch.float64)
    results = [value_and_grads(module.ClipLoss(), *args, bias) for module in (ours, open_clip)]
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected)
    assert results[0][-1].shape == results[1][-1].shape


def test_the_largest_scale_of_clip(open_clip) -> None:
    # Texts that do not belong to their images. Of a confident model the original knows no gradient: log-softmax takes
    # the difference of two equal numbers.
    images, texts = (F.normalize(torch.randn(33, 16, dtype=torch.float64), dim=1) for _ in range(2))
    losses = (lambda x, y, m=module: m.ClipLoss()(x, y, 100.0) for module in (ours, open_clip))
    assert_parity(*losses, images, texts, largest_logit=100)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_closer_than_the_original(open_clip, dtype: torch.dtype) -> None:
    images, texts = (side.to(dtype) for side in features(64, 32))
    for name, args in (("ClipLoss", (20.0,)), ("SigLipLoss", (10.0, -10.0))):
        found = getattr(ours, name)()(images, texts, *args)
        original = getattr(open_clip, name)()(images, texts, *args)
        truth = getattr(open_clip, name)()(images.double(), texts.double(), *args)
        assert found.dtype == torch.float32
        assert abs(found - truth) <= 1e-5 * truth <= abs(original - truth)


def test_output_dict() -> None:
    images, texts = features(9, 5)
    for name in CALLS:
        loss = getattr(ours, name)()
        result = loss(images, texts, 10.0, logit_bias=-1.0, output_dict=True)
        assert list(result) == ["contrastive_loss"]
        assert result["contrastive_loss"] == loss(images, texts, 10.0, -1.0)


@pytest.mark.parametrize("chunk_size", [1, 4, 9, 100])
def test_chunks_change_nothing(chunk_size: int) -> None:
    images, texts = features(9, 5)
    loss = ours.SigLipLoss(chunk_size=chunk_size)
    assert loss.chunk_size == chunk_size
    assert loss(images, texts, 10.0, -3.0) == ours.SigLipLoss()(images, texts, 10.0, -3.0)


def test_cached_labels_change_nothing() -> None:
    images, texts = features(9, 5)
    loss = ours.ClipLoss(cache_labels=True)
    assert loss(images, texts, 10.0) == loss(images, texts, 10.0) == ours.ClipLoss()(images, texts, 10.0)
    assert loss(images[:4], texts[:4], 10.0) == ours.ClipLoss()(images[:4], texts[:4], 10.0)


class TestErrors:
    """What is refused."""

    @pytest.mark.parametrize("name", CALLS)
    def test_several_processes_without_a_group(self, name: str) -> None:
        loss = getattr(ours, name)(rank=1, world_size=2)
        with pytest.raises(ValueError, match=r"world_size=2 needs torch.distributed: call .*init_process_group"):
            loss(*features(3, 4), 10.0, None)

    def test_horovod(self) -> None:
        assert ours.ClipLoss(use_horovod=True)(*features(3, 4), 10.0).isfinite()
        with pytest.raises(NotImplementedError, match=r"use_horovod=True with world_size=2: .*use_horovod=False"):
            ours.ClipLoss(world_size=2, use_horovod=True)

    def test_dist_impl(self) -> None:
        for known in ("bidir", "shift", "reduce", "gather"):
            assert ours.SigLipLoss(dist_impl=known).dist_impl == known
        with pytest.raises(ValueError, match=r"dist_impl must be one of 'bidir', .* got 'ring'"):
            ours.SigLipLoss(dist_impl="ring")

    def test_chunk_size(self) -> None:
        with pytest.raises(ValueError, match="chunk_size must be at least 0, got -1"):
            ours.SigLipLoss(chunk_size=-1)
        loss = ours.SigLipLoss()
        with pytest.raises(TypeError, match="chunk_size must be an integer, got float"):
            loss.chunk_size = 2.5
        assert loss.chunk_size == 0

    def test_an_option_of_no_version(self) -> None:
        with pytest.raises(TypeError, match="label_smoothing"):
            ours.ClipLoss(label_smoothing=0.1)

    @pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
    @pytest.mark.parametrize(
        ("bias", "error"), [("a", TypeError), (float("nan"), ValueError), (torch.zeros(4), ValueError)], ids=str
    )
    def test_bias(self, name: str, bias, error: type[Exception]) -> None:
        with pytest.raises(error, match=r"^logit_bias must be a"):
            getattr(ours, name)()(*features(4, 3), 5.0, bias)

    @pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
    def test_different_features(self, name: str) -> None:
        x, y = features(4, 3)
        with pytest.raises(TypeError, match=r"^text_features must have the dtype of image_features, torch\.float"):
            getattr(ours, name)()(x, y.half(), 5.0, None)
        with pytest.raises(ValueError, match=r"^image_features must not be empty, got shape \(0, 3\)"):
            getattr(ours, name)()(x[:0], y[:0], 5.0, None)

    def test_scale(self) -> None:
        with pytest.raises(ValueError, match="logit_scale must be a finite number > 0, got 0"):
            ours.ClipLoss()(*features(3, 4), 0)

    @pytest.mark.parametrize("name", CALLS)
    def test_features_of_another_shape(self, name: str) -> None:
        for shape in ((2, 3, 4), (3, 3, 3), (4,)):
            x, y = torch.randn(2, *shape)
            with pytest.raises(ValueError, match=r"must have shape \(N, D\)"):
                getattr(ours, name)()(x, y, 10.0, None)
