"""The drop-ins for OpenCLIP's losses of two parts, of captions and of a teacher, against the library."""

import pytest
import torch
import torch.nn.functional as F
from parity import assert_parity, defaults, library, relative_error, value_and_grads
from torch import Tensor, nn

from hyperkern.integrations import _soft_targets
from hyperkern.integrations import open_clip as ours

OF_TWO_TOWERS = {
    "local_loss": False,
    "gather_with_grad": False,
    "cache_labels": False,
    "rank": 0,
    "world_size": 1,
    "use_horovod": False,
}
CONSTRUCTORS = {
    "CoCaLoss": {"caption_loss_weight": ..., "clip_loss_weight": ..., "pad_id": 0, **OF_TWO_TOWERS},
    "DistillClipLoss": OF_TWO_TOWERS,
}
NAMES = {"CoCaLoss": ["contrastive_loss", "caption_loss"], "DistillClipLoss": ["contrastive_loss", "distill_loss"]}


@pytest.fixture(scope="module")
def open_clip():
    return library("open_clip.loss")


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_the_calls_are_those_of_the_library(open_clip, name: str) -> None:
    assert defaults(getattr(ours, name).__init__) == CONSTRUCTORS[name]
    theirs = defaults(getattr(open_clip, name).__init__)
    assert CONSTRUCTORS[name].keys() - theirs <= {"use_horovod"}
    assert theirs == {option: CONSTRUCTORS[name][option] for option in theirs}
    assert defaults(getattr(ours, name).forward) == defaults(getattr(open_clip, name).forward)


def features(*dims: int, n: int = 9) -> list[Tensor]:
    images = torch.randn(n, dims[0], dtype=torch.float64)
    sides = [images, images + torch.randn_like(images)]
    sides += [torch.randn(n, d, dtype=torch.float64) for d in dims[1:] for _ in range(2)]
    return [F.normalize(side, dim=1) for side in sides]


def weighed(parts: tuple[Tensor, Tensor]) -> Tensor:
    """One loss of both, in which neither hides the other's error."""
    return 0.3 * parts[0] + 1.7 * parts[1]


TOKENS = torch.tensor([[5, 2, 0, 0], [1, 1, 3, 0], [4, 4, 4, 4]])


class TestCoCa:
    """A contrastive loss and one of captions."""

    @pytest.mark.parametrize("options", [{}, {"pad_id": 4}, {"clip_loss_weight": 0.5}, {"caption_loss_weight": 0.0}])
    def test_parity(self, open_clip, options: dict) -> None:
        options = {"caption_loss_weight": 2.0, "clip_loss_weight": 1.0, **options}
        logits = 2 * torch.randn(3, 4, 6, dtype=torch.float64)
        losses = [module.CoCaLoss(**options) for module in (ours, open_clip)]
        assert_parity(
            *(lambda x, y, given, s, of=loss: weighed(of(x, y, given, TOKENS, s)) for loss in losses),
            *(*features(5, n=3), logits, torch.tensor(8.0, dtype=torch.float64)),
        )

    def test_without_the_contrastive_loss(self, open_clip) -> None:
        logits = torch.randn(3, 4, 6)
        for module in (ours, open_clip):
            contrastive, captions = module.CoCaLoss(2.0, 0.0)(None, None, logits, TOKENS, None)
            assert (contrastive.item(), contrastive.dtype) == (0, torch.int64)
            assert captions == 2 * F.cross_entropy(logits.transpose(1, 2), TOKENS, ignore_index=0)

    def test_the_module_of_the_captions_is_called(self) -> None:
        loss = ours.CoCaLoss(1.0, 0.0)
        assert loss.caption_loss.ignore_index == 0
        loss.caption_loss = nn.CrossEntropyLoss(label_smoothing=0.5)
        logits = torch.randn(3, 4, 6)
        expected = F.cross_entropy(logits.transpose(1, 2), TOKENS, label_smoothing=0.5)
        assert loss(None, None, logits, TOKENS, None)[1] == expected

    def test_output_dict(self) -> None:
        images, texts = features(5, n=3)
        args = images, texts, torch.randn(3, 4, 6), TOKENS, 8.0
        parts = ours.CoCaLoss(2.0, 1.0)(*args)
        result = ours.CoCaLoss(2.0, 1.0)(*args, output_dict=True)
        assert list(result) == NAMES["CoCaLoss"]
        assert tuple(result.values()) == parts


def dense(images, texts, scale, teacher_images, teacher_texts, teacher_scale) -> tuple[Tensor, Tensor]:
    student, teacher = scale * images @ texts.T, teacher_scale * teacher_images @ teacher_texts.T
    own = torch.arange(len(images))
    contrastive = sum(F.cross_entropy(logits, own) for logits in (student, student.T)) / 2
    ways = ((student, teacher), (student.T, teacher.T))
    return contrastive, sum(F.cross_entropy(logits, of_teacher.softmax(1)) for logits, of_teacher in ways) / 2


class TestDistillation:
    """A contrastive loss and the cross entropy of the probabilities of a teacher."""

    @pytest.mark.parametrize("block", [1 << 22, 20, 1])
    @pytest.mark.parametrize(("n", "dims"), [(1, (4, 4)), (9, (5, 5)), (33, (16, 7))], ids=str)
    def test_parity(
        self, open_clip, monkeypatch: pytest.MonkeyPatch, n: int, dims: tuple[int, int], block: int
    ) -> None:
        monkeypatch.setattr(_soft_targets, "BLOCK", block)  # one block, some of several rows, one for each row
        x, y, u, v = features(*dims, n=n)
        scales = torch.tensor([6.0, 9.0], dtype=torch.float64)
        ways = [
            lambda x, y, s, u, v, t, of=of: weighed(of(x, y, s, u, v, t))
            for of in (ours.DistillClipLoss(), open_clip.DistillClipLoss(), dense)
        ]
        assert_parity(ways[0], ways[1], x, y, scales[0], u, v, scales[1])
        assert_parity(ways[0], ways[2], x, y, scales[0], u, v, scales[1])

    def test_a_frozen_teacher(self) -> None:
        x, y, *teacher = features(5, 7)
        assert_parity(
            lambda x, y: weighed(ours.DistillClipLoss()(x, y, 6.0, *(t.to(x.dtype) for t in teacher), 9.0)),
            lambda x, y: weighed(dense(x, y, 6.0, *(t.to(x.dtype) for t in teacher), 9.0)),
            *(x, y),
        )

    def test_second_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_soft_targets, "BLOCK", 8)
        x, y, u, v = (side.requires_grad_() for side in features(3, 2, n=4))
        assert torch.autograd.gradgradcheck(
            lambda *t: ours.DistillClipLoss()(*t[:2], 3.0, *t[2:], 2.0)[1], (x, y, u, v)
        )

    def test_blocks_do_not_wait_for_backward(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is kept for it has no matrix of logits, however they are cut."""
        monkeypatch.setattr(_soft_targets, "BLOCK", 1 << 10)
        kept = []
        x, y, u, v = (side.requires_grad_() for side in features(3, 2, n=128))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            ours.DistillClipLoss()(x, y, 3.0, u, v, 2.0)
        assert max(kept) < 1 << 10

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, open_clip, dtype: torch.dtype) -> None:
        x, y, u, v = (side.to(dtype) for side in features(16, 16, n=64))
        with torch.autocast("cpu", torch.bfloat16):
            found = ours.DistillClipLoss()(x, y, torch.tensor(20.0), u, v, torch.tensor(20.0))
        truth = open_clip.DistillClipLoss()(x.double(), y.double(), 20.0, u.double(), v.double(), 20.0)
        for actual, expected in zip(found, truth, strict=True):
            assert actual.dtype == torch.float32
            assert relative_error(actual, expected) <= 1e-5

    def test_gradients_come_back_in_half_precision(self) -> None:
        sides = [side.bfloat16() for side in features(8, 8)]
        loss = ours.DistillClipLoss()
        found = value_and_grads(lambda x, y, u, v: weighed(loss(x, y, 5.0, u, v, 5.0)), *sides)
        truths = value_and_grads(lambda x, y, u, v: weighed(loss(x, y, 5.0, u, v, 5.0)), *(s.double() for s in sides))
        for actual, truth in zip(found[1:], truths[1:], strict=True):
            assert actual.dtype == torch.bfloat16
            assert relative_error(actual, truth) <= 2**-7

    def test_output_dict(self) -> None:
        x, y, u, v = features(5, 7)
        parts = ours.DistillClipLoss()(x, y, 6.0, u, v, 9.0)
        result = ours.DistillClipLoss()(x, y, 6.0, u, v, 9.0, output_dict=True)
        assert list(result) == NAMES["DistillClipLoss"]
        assert tuple(result.values()) == parts

    def test_the_loss_of_logits(self, open_clip) -> None:
        teacher, student = torch.randn(2, 5, 7)
        found, expected = (module.DistillClipLoss().dist_loss(teacher, student) for module in (ours, open_clip))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


class TestErrors:
    """What is refused, by its own name."""

    @pytest.mark.parametrize("name", CONSTRUCTORS)
    def test_horovod(self, name: str) -> None:
        args = [1.0] * (2 * (name == "CoCaLoss"))
        assert getattr(ours, name)(*args, use_horovod=True).use_horovod
        with pytest.raises(NotImplementedError, match="use_horovod=True with world_size=2"):
            getattr(ours, name)(*args, use_horovod=True, world_size=2)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({1: lambda y: y[:3]}, ValueError, r"^text_features must have the shape of image_features, \(9, 5\)"),
            ({0: lambda x: x[None], 1: lambda y: y[None]}, ValueError, r"image_features must have shape \(N, D\)"),
            ({2: lambda _: 0.0}, ValueError, "^logit_scale must be a finite number > 0"),
            ({3: lambda u: u[:3]}, ValueError, "^dist_text_features must have the shape of dist_image_features"),
            (
                {3: lambda u: u[:3], 4: lambda v: v[:3]},
                ValueError,
                "^dist_image_features must have a row for each .* 9, got 3",
            ),
            ({4: lambda v: v.half()}, TypeError, "^dist_text_features must have the dtype"),
            ({5: lambda _: -1.0}, ValueError, "^dist_logit_scale must be a finite number > 0"),
        ],
    )
    def test_arguments(self, change: dict, error: type[Exception], message: str) -> None:
        x, y, u, v = features(5, 7)
        args = [x, y, 6.0, u, v, 9.0]
        for place, make in change.items():
            args[place] = make(args[place])
        with pytest.raises(error, match=message):
            ours.DistillClipLoss()(*args)
