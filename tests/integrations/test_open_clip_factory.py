"""What OpenCLIP's training makes of its arguments: the losses against the library, the tasks against a stand-in."""

import sys
from argparse import Namespace
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import defaults, library
from torch import Tensor, nn

from hyperkern.integrations import open_clip as ours


def arguments(**changed: Any) -> Namespace:
    """Those of a training of version 3.3; version 4 has no horovod."""
    given = {
        "model": "ViT-B-32",
        "distill": False,
        "siglip": False,
        "local_loss": True,
        "gather_with_grad": True,
        "rank": 0,
        "world_size": 1,
        "horovod": False,
        "loss_dist_impl": "gather",
        "coca_caption_loss_weight": 2.0,
        "coca_contrastive_loss_weight": 0.5,
    }
    return Namespace(**{**given, **changed})


LOSSES: list[tuple[dict[str, Any], str]] = [
    ({}, "ClipLoss"),
    ({"local_loss": False, "gather_with_grad": False}, "ClipLoss"),
    ({"rank": 3, "world_size": 4}, "ClipLoss"),
    ({"horovod": True}, "ClipLoss"),
    ({"siglip": True}, "SigLipLoss"),
    ({"siglip": True, "loss_dist_impl": None, "rank": 1, "world_size": 2}, "SigLipLoss"),
    ({"model": "CoCa_ViT-B-32"}, "CoCaLoss"),
    ({"model": "coca_roberta-ViT-B-32", "siglip": True, "rank": 1, "world_size": 2}, "CoCaLoss"),
    ({"distill": True}, "DistillClipLoss"),
    ({"distill": True, "siglip": True, "model": "coca_ViT-L-14"}, "DistillClipLoss"),
]
# What has no effect: whether labels are kept, which no loss has.
WITHOUT_EFFECT = {"cache_labels"}


def options(loss: nn.Module) -> dict[str, Any]:
    """What was given to it."""
    found = {name: getattr(loss, name) for name in vars(loss) if not name.startswith("_")}
    if hasattr(loss, "caption_loss"):
        found["pad_id"] = loss.caption_loss.ignore_index
    return {name: value for name, value in found.items() if name not in {"labels", *WITHOUT_EFFECT}}


@pytest.mark.parametrize(("changed", "name"), LOSSES, ids=str)
def test_create_loss(changed: dict[str, Any], name: str) -> None:
    loss = ours.create_loss(arguments(**changed))
    assert type(loss) is getattr(ours, name)
    original = library("open_clip").create_loss(arguments(**changed))
    assert type(original).__name__ == name
    theirs = options(original)
    assert theirs == {option: options(loss)[option] for option in theirs}


def test_create_loss_of_the_arguments_of_version_4() -> None:
    args = arguments(torchcompile=True, torchcompile_strategy="task")
    del args.horovod
    assert type(ours.create_loss(args)) is ours.ClipLoss
    args.siglip = True
    assert type(ours.create_loss(args)) is ours.SigLipLoss


def test_create_loss_refuses_by_name() -> None:
    for model in ("genlip-b16", "GenLAP-base"):
        with pytest.raises(NotImplementedError, match=f"^model='{model}' .*open_clip.create_loss"):
            ours.create_loss(arguments(model=model))
    with pytest.raises(NotImplementedError, match=r"^horovod=True with siglip=True"):
        ours.create_loss(arguments(siglip=True, horovod=True))
    with pytest.raises(NotImplementedError, match=r"^use_horovod=True with world_size=2"):
        ours.create_loss(arguments(horovod=True, world_size=2))
    args = arguments(siglip=True)
    del args.loss_dist_impl
    with pytest.raises(AttributeError, match="loss_dist_impl"):
        ours.create_loss(args)


class Towers(nn.Module):
    """A model with the outputs of OpenCLIP's."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, image: Tensor, text: Tensor) -> dict[str, Tensor]:
        unit = (nn.functional.normalize(side, dim=1) for side in (image, text))
        return {
            **dict(zip(("image_features", "text_features"), unit, strict=True)),
            "logit_scale": self.logit_scale.exp(),
        }


class Task(nn.Module):
    """A model and a loss, called as version 4 calls them."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, loss: nn.Module | None) -> None:
        super().__init__()
        self.trainable_module, self.teacher = model, teacher
        if loss is not None:
            self.loss = loss

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        given = self.trainable_module(**batch)
        if self.teacher is not None:
            given |= {f"dist_{name}": value for name, value in self.teacher(**batch).items()}
        losses: dict[str, Tensor] = self.loss(**given, output_dict=True)
        return {**losses, "loss": sum(value for name, value in losses.items() if name.endswith("_loss"))}


@pytest.fixture
def version_4(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for OpenCLIP 4: the losses of the version that is installed, in tasks."""
    losses, module = library("open_clip").create_loss, ModuleType("open_clip")

    def create_task(args: Namespace, model: nn.Module, dist_model=None, naflex_data_config=None) -> Task:
        loss = None if "genlip" in args.model else losses(args)
        task = Task(model, dist_model, loss)
        task.naflex_data_config = naflex_data_config
        return task

    module.create_task = create_task
    monkeypatch.setitem(sys.modules, "open_clip", module)
    return module


BATCH = {"image": torch.randn(6, 5), "text": torch.randn(6, 5)}


@pytest.mark.parametrize("changed", [{}, {"siglip": True}, {"distill": True}], ids=str)
def test_create_task(version_4: ModuleType, changed: dict[str, Any]) -> None:
    args, model, policy = arguments(**changed), Towers(), object()
    teacher = Towers() if changed.get("distill") else None
    if changed.get("siglip"):  # whose models have a bias
        model.forward = lambda image, text: {**Towers.forward(model, image, text), "logit_bias": torch.tensor(-1.0)}
    found, expected = (make(args, model, teacher, policy) for make in (ours.create_task, version_4.create_task))
    assert type(found) is Task
    assert found.trainable_module is model
    assert found.naflex_data_config is policy
    assert type(found.loss) is getattr(ours, type(expected.loss).__name__)
    results = [task(BATCH) for task in (found, expected)]
    assert list(results[0]) == list(results[1])
    grads = []
    for result in results:
        model.zero_grad()
        result["loss"].backward()
        grads.append(model.logit_scale.grad)
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(("changed", "name"), LOSSES, ids=str)
def test_the_options_of_a_task_stay(version_4: ModuleType, changed: dict[str, Any], name: str) -> None:
    found, expected = (make(arguments(**changed), Towers()) for make in (ours.create_task, version_4.create_task))
    assert type(found.loss) is getattr(ours, name)
    theirs = options(expected.loss)
    assert theirs == {option: options(found.loss)[option] for option in theirs}


def test_what_version_4_makes_of_its_own(version_4: ModuleType) -> None:
    """Options that no argument has, of the losses of a task."""
    make = version_4.create_task

    def create_task(*args: Any, **further: Any) -> Task:
        task = make(*args, **further)
        task.loss.chunk_size = 512
        return task

    version_4.create_task = create_task
    assert ours.create_task(arguments(siglip=True), Towers()).loss.chunk_size == 512


def test_the_call_is_that_of_version_4() -> None:
    assert defaults(ours.create_task) == {"args": ..., "model": ..., "dist_model": None, "naflex_data_config": None}
    assert defaults(ours.create_loss) == {"args": ...}


def test_a_task_without_a_contrastive_loss(version_4: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match=r"^Task of model='genlip-b' has no contrastive loss: use open_clip"):
        ours.create_task(arguments(model="genlip-b"), Towers())


def test_a_version_without_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    older = ModuleType("open_clip")
    older.__version__ = "3.3.0"
    monkeypatch.setitem(sys.modules, "open_clip", older)
    with pytest.raises(ImportError, match=r"^create_task needs OpenCLIP 4, .* got 3\.3\.0: use create_loss"):
        ours.create_task(arguments(), Towers())
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        ours.create_task(arguments(), Towers())
