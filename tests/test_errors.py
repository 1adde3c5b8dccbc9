"""Bad input of every public name: TypeError or ValueError that names the argument and shows what was wrong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import hyperkern as hk
from hyperkern.integrations import align_uniform as drop_in

X, Y, LABELS = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5)

# Each function of features, with its features as positional arguments x, y and keyword arguments.
ONE = {
    "uniformity": hk.uniformity,
    "pairwise_logsumexp": lambda x, **k: hk.pairwise_logsumexp(x, scale=2.0, **k),
    "UniformityLoss": lambda x: hk.UniformityLoss()(x),
    "sup_con": lambda x, **k: hk.sup_con(x, LABELS, **k),
    "SupConLoss": lambda x: hk.SupConLoss()(x, LABELS),
    "drop-in uniform_loss": drop_in.uniform_loss,
}
PAIRED = {
    "alignment": hk.alignment,
    "align_uniform": hk.align_uniform,
    "info_nce": hk.info_nce,
    "clip_loss": lambda x, y, **k: hk.clip_loss(x, y, logit_scale=5.0, **k),
    "siglip": lambda x, y, **k: hk.siglip(x, y, logit_scale=5.0, logit_bias=-5.0, **k),
    "nt_xent": hk.nt_xent,
    "dcl": hk.dcl,
    "dclw": hk.dclw,
    "AlignmentLoss": lambda x, y: hk.AlignmentLoss()(x, y),
    "AlignUniformLoss": lambda x, y: hk.AlignUniformLoss()(x, y),
    "InfoNCELoss": lambda x, y: hk.InfoNCELoss()(x, y),
    "CLIPLoss": lambda x, y: hk.CLIPLoss()(x, y),
    "SigLIPLoss": lambda x, y: hk.SigLIPLoss()(x, y),
    "NTXentLoss": lambda x, y: hk.NTXentLoss()(x, y),
    "DCLLoss": lambda x, y: hk.DCLLoss()(x, y),
    "DCLWLoss": lambda x, y: hk.DCLWLoss()(x, y),
    "drop-in align_loss": drop_in.align_loss,
}
# The second argument has rows of its own.
COLUMNS = {
    "y uniformity": lambda y: hk.uniformity(X, y),
    "y pairwise_logsumexp": lambda y: hk.pairwise_logsumexp(X, y, scale=2.0),
    "negatives info_nce": lambda n: hk.info_nce(X, Y, negatives=n),
    "negatives InfoNCELoss": lambda n: hk.InfoNCELoss()(X, Y, n),
    "negatives nt_xent": lambda n: hk.nt_xent(X, Y, negatives=n),
    "y sup_con": lambda y: hk.sup_con(X, LABELS, y, None if y is None else LABELS),
    "y UniformityLoss": lambda y: hk.UniformityLoss()(X, y),
}


def first(name: str, x: Any) -> Any:
    return PAIRED[name](x, Y) if name in PAIRED else ONE[name](x)


def second(name: str, y: Any) -> Any:
    return COLUMNS[name](y) if name in COLUMNS else PAIRED[name.removeprefix("y ")](X, y)


FIRST = [*ONE, *PAIRED]
SECOND = [*(f"y {name}" for name in PAIRED), *COLUMNS]

WRONG_TYPES = [([[1.0, 2.0]], "list"), (None, "NoneType"), (3.0, "float"), (X.numpy(), "ndarray")]
WRONG_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn]
WRONG_SHAPES = [(3,), (2, 2, 5, 3), (), (0, 3), (5, 0), (0, 5, 3)]


@pytest.mark.parametrize("name", FIRST)
def test_x(name: str) -> None:
    for bad, shown in WRONG_TYPES:
        with pytest.raises(TypeError, match=f"^x must be a torch.Tensor.*got {shown}"):
            first(name, bad)
    for dtype in WRONG_DTYPES:
        with pytest.raises(TypeError, match=f"^x must be float64.*got {dtype}"):
            first(name, torch.ones(5, 3).to(dtype))
    for shape in WRONG_SHAPES:
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^x must .*got .*{shown}"):
            first(name, torch.ones(shape))


@pytest.mark.parametrize("name", SECOND)
def test_the_other_side(name: str) -> None:
    argument = name.split()[0]
    for bad, shown in WRONG_TYPES:
        if bad is not None or name not in COLUMNS:  # None is the default of a queue
            with pytest.raises(TypeError, match=f"^{argument} must be a torch.Tensor.*got {shown}"):
                second(name, bad)
    for dtype in WRONG_DTYPES:
        with pytest.raises(TypeError, match=f"^{argument} must be float64.*got {dtype}"):
            second(name, torch.ones(5, 3).to(dtype))
    with pytest.raises(TypeError, match=rf"^{argument} must have the dtype of x, torch.float32, got torch.float64"):
        second(name, Y.double())
    with pytest.raises(ValueError, match=rf"^{argument} must be on the device of x, cpu, got meta"):
        second(name, Y.to("meta"))
    for shape in [*WRONG_SHAPES, (5, 4), (1, 5, 3)]:
        if shape == (0, 3) and argument == "negatives":
            continue  # an empty queue
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^{argument} must .*got .*{shown}"):
            second(name, torch.ones(shape))


@pytest.mark.parametrize("name", [n for n in PAIRED if "drop-in" not in n])
def test_paired_rows_and_batches_must_agree(name: str) -> None:
    for x, y in ((X, Y[:4]), (X[None], Y.expand(2, 5, 3)), (X[None], Y)):
        shapes = rf"{tuple(x.shape)}, got {tuple(y.shape)}".replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"^y must have the shape of x, {shapes}"):
            PAIRED[name](x, y)


def test_batches_of_columns_must_agree() -> None:
    for x, y in ((X.expand(3, 5, 3), Y.expand(2, 5, 3)), (X.expand(3, 5, 3), Y)):
        shown = str(tuple(y.shape)).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"^y must have shape \(3, N, 3\).*got {shown}"):
            hk.uniformity(x, y)


@pytest.mark.parametrize("loss", [hk.uniformity, lambda x: hk.align_uniform(x, x), drop_in.uniform_loss])
def test_fewer_than_two_rows(loss: Callable) -> None:
    for shape in ((1, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match=rf"^x must have at least 2 rows.*\({str(shape)[1:-1]}\)"):
            loss(torch.randn(shape))


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "alpha alignment": lambda v: hk.alignment(X, Y, alpha=v),
    "alpha align_uniform": lambda v: hk.align_uniform(X, Y, alpha=v),
    "alpha AlignmentLoss": lambda v: hk.AlignmentLoss(alpha=v),
    "alpha AlignUniformLoss": lambda v: hk.AlignUniformLoss(alpha=v),
    "alpha align_loss": lambda v: drop_in.align_loss(X, Y, alpha=v),
    "t uniformity": lambda v: hk.uniformity(X, t=v),
    "t queue": lambda v: hk.uniformity(X, Y, t=v),
    "t align_uniform": lambda v: hk.align_uniform(X, Y, t=v),
    "t UniformityLoss": lambda v: hk.UniformityLoss(t=v),
    "t AlignUniformLoss": lambda v: hk.AlignUniformLoss(t=v),
    "t uniform_loss": lambda v: drop_in.uniform_loss(X, t=v),
    "t uniformity_limit": lambda v: hk.metrics.uniformity_limit(3, v),
    "temperature info_nce": lambda v: hk.info_nce(X, Y, temperature=v),
    "logit_scale clip_loss": lambda v: hk.clip_loss(X, Y, logit_scale=v),
    "logit_scale CLIPLoss": lambda v: hk.CLIPLoss(logit_scale=v),
    "max_logit_scale CLIPLoss": lambda v: hk.CLIPLoss(max_logit_scale=v),
    "scale pairwise_logsumexp": lambda v: hk.pairwise_logsumexp(X, scale=v),
    "temperature InfoNCELoss": lambda v: hk.InfoNCELoss(temperature=v),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    argument = name.split()[0]
    for bad in (0, 0.0, -1, -1.0, float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match=rf"^{argument} must be a finite number > 0, got {bad}"):
            NUMBERS[name](bad)
    for bad in ("1", True, None, [2.0], 2 + 0j):
        with pytest.raises(TypeError, match=rf"^{argument} must be a number.*got .*{type(bad).__name__}"):
            NUMBERS[name](bad)


@pytest.mark.parametrize("name", [n for n in NUMBERS if n.split()[0] in ("temperature", "logit_scale")][:2])
def test_scale_tensors(name: str) -> None:
    argument = name.split()[0]
    for bad in (torch.ones(2), torch.ones(0), torch.tensor(3), torch.tensor(True), torch.tensor(1 + 0j)):
        with pytest.raises((TypeError, ValueError), match=rf"^{argument} must be .*{bad.dtype}"):
            NUMBERS[name](bad)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)])
def test_a_scale_of_one_element_does_not_change_the_shape_of_the_loss(shape: tuple[int, ...]) -> None:
    scale = torch.full(shape, 5.0)
    for x, y in ((X, Y), (X.expand(2, 5, 3), Y.expand(2, 5, 3))):
        losses = hk.info_nce(x, y, temperature=scale), hk.clip_loss(x, y, logit_scale=scale)
        assert all(loss.shape == x.shape[:-2] for loss in losses)
        torch.testing.assert_close(losses[0], hk.info_nce(x, y, temperature=5.0))


@pytest.mark.parametrize("weight", ["align_weight", "uniform_weight"])
def test_weights_of_the_sum(weight: str) -> None:
    for bad in ("1", None, [1.0]):
        with pytest.raises(TypeError, match=weight):
            hk.align_uniform(X, Y, **{weight: bad})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=weight):
            hk.align_uniform(X, Y, **{weight: bad})


CHOICES: dict[str, Callable[[Any], Any]] = {
    "reduction alignment": lambda v: hk.alignment(X, Y, reduction=v),
    "reduction info_nce": lambda v: hk.info_nce(X, Y, reduction=v),
    "reduction AlignmentLoss": lambda v: hk.AlignmentLoss(reduction=v),
    "reduction InfoNCELoss": lambda v: hk.InfoNCELoss(reduction=v),
    "exclude pairwise_logsumexp": lambda v: hk.pairwise_logsumexp(X, scale=1.0, exclude=v),
}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("bad", ["batchmean", "", None, 1])
def test_choices(name: str, bad: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name.split()[0]} must be one of .*got {bad!r}"):
        CHOICES[name](bad)


VECTORS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "x_weights uniformity": (lambda w: hk.uniformity(X, x_weights=w), 5),
    "x_weights queue": (lambda w: hk.uniformity(X, Y[:4], x_weights=w), 5),
    "y_weights queue": (lambda w: hk.uniformity(X, Y[:4], y_weights=w), 4),
    "x_weights module": (lambda w: hk.UniformityLoss()(X, x_weights=w), 5),
    "x_log_weights lse": (lambda w: hk.pairwise_logsumexp(X, Y[:4], scale=1.0, x_log_weights=w), 5),
    "y_log_weights lse": (lambda w: hk.pairwise_logsumexp(X, Y[:4], scale=1.0, y_log_weights=w), 4),
}


@pytest.mark.parametrize("name", VECTORS)
def test_weights(name: str) -> None:
    (function, n), argument = VECTORS[name], name.split()[0]
    for bad in ([1.0] * n, 1.0):
        with pytest.raises(TypeError, match=f"^{argument} must be a torch.Tensor, got {type(bad).__name__}"):
            function(bad)
    for shape in ((), (n + 1,), (n, 1), (1, n)):
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"^{argument} must have shape \({n},\).*got {shown}"):
            function(torch.ones(shape))
    with pytest.raises(ValueError, match=f"^{argument} must be on the device.*meta"):
        function(torch.ones(n, device="meta"))


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_weights_of_a_wrong_dtype(name: str, dtype: torch.dtype) -> None:
    function, n = VECTORS[name]
    with pytest.raises(TypeError, match=f"^{name.split()[0]} must have a floating dtype, got {dtype}"):
        function(torch.ones(n).to(dtype))


def test_ids() -> None:
    ids = torch.arange(5)

    def lse(exclude: str = "same_id", y: Tensor | None = Y, **options: Any) -> Any:
        return hk.pairwise_logsumexp(X, y, scale=1.0, exclude=exclude, **options)

    with pytest.raises(ValueError, match=r"x_ids must be given with exclude='same_id'.*x_ids=None"):
        lse(y_ids=ids)
    with pytest.raises(ValueError, match=r"y_ids must be given with exclude='same_id'.*y_ids=None"):
        lse(x_ids=ids)
    for exclude in ("none", "self"):
        with pytest.raises(ValueError, match=rf"x_ids must be given .* got exclude='{exclude}'"):
            lse(exclude, x_ids=ids)
    with pytest.raises(ValueError, match="y_ids need y, but y is None"):
        lse(y=None, x_ids=ids, y_ids=ids)
    with pytest.raises(ValueError, match=r"x_ids must have shape \(5,\).*got \(4,\)"):
        lse(x_ids=ids[:4], y_ids=ids)
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"y_ids must have an integer dtype, got {dtype}"):
            lse(x_ids=ids, y_ids=ids.to(dtype))
    with pytest.raises(TypeError, match=r"x_ids must be a torch.Tensor, got list"):
        lse(x_ids=[0, 1, 2, 3, 4], y_ids=ids)
    # Any integers will do, also of two kinds.
    expected = lse(x_ids=ids, y_ids=ids)[0]
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        with pytest.raises(TypeError, match=rf"y_ids must be signed integers or uint8, got {dtype}.*to\(torch.int64\)"):
            lse(x_ids=ids, y_ids=ids.to(dtype))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(lse(x_ids=ids.to(dtype), y_ids=ids)[0], expected)


def test_options_that_need_y() -> None:
    weights = torch.ones(5)
    with pytest.raises(ValueError, match=r"intra=True.*y is None"):
        hk.uniformity(X, intra=True)
    with pytest.raises(ValueError, match=r"intra=True.*y is None"):
        hk.UniformityLoss(intra=True)(X)
    with pytest.raises(ValueError, match="y_weights needs y, but y is None"):
        hk.uniformity(X, y_weights=weights)
    with pytest.raises(ValueError, match=r"y_log_weights.*but y is None"):
        hk.pairwise_logsumexp(X, scale=1.0, y_log_weights=weights)


def test_sparse_features() -> None:
    for name in FIRST:
        with pytest.raises((TypeError, ValueError), match=r"^x must .*sparse"):
            first(name, X.to_sparse())


def test_options_are_keyword_only() -> None:
    for call in (
        lambda: hk.alignment(X, Y, 2.0),
        lambda: hk.uniformity(X, Y, 2.0),
        lambda: hk.info_nce(X, Y, 0.1),
        lambda: hk.clip_loss(X, Y, 5.0),
        lambda: hk.pairwise_logsumexp(X, Y, 1.0),
        lambda: hk.AlignmentLoss(2.0),
        lambda: hk.CLIPLoss(5.0),
    ):
        with pytest.raises(TypeError, match="positional argument"):
            call()


@pytest.mark.parametrize("bad", [3.0, "3", True, None])
def test_dimension_of_the_limit(bad: object) -> None:
    with pytest.raises(TypeError, match=f"^dim must be an integer, got {type(bad).__name__}"):
        hk.metrics.uniformity_limit(bad)
    for number in (0, -2):
        with pytest.raises(ValueError, match=f"^dim must be at least 1, got {number}"):
            hk.metrics.uniformity_limit(number)
