"""The mixin for `Trainer` against the loss that the models of Transformers compute themselves."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import launched
from oracle import assert_close
from parity import library, relative_error
from ranks import Ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from trained import Pairs, collate, tiny, trainer

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


def fused() -> type:
    library("transformers")
    from hyperkern.integrations.transformers import ContrastiveTrainerMixin

    class ContrastiveTrainer(ContrastiveTrainerMixin, library("transformers").Trainer):
        pass

    return ContrastiveTrainer


def trained(kind: type, model: nn.Module, **options: Any) -> tuple[list[float], list[Tensor]]:
    """The losses of all steps, and the parameters after them."""
    found = trainer(kind, model, **options)
    found.train()
    losses = [entry["loss"] for entry in found.state.log_history if "loss" in entry]
    return losses, [parameter.detach().clone() for parameter in model.parameters()]


def assert_same_run(found: tuple, expected: tuple, tolerance: float = 1e-9) -> None:
    assert len(found[0]) == len(expected[0]) > 1
    assert expected[0][0] != pytest.approx(expected[0][-1], rel=1e-3)  # it has learned
    assert found[0] == pytest.approx(expected[0], rel=1e-6)  # they are float32 in the log
    for actual, truth in zip(found[1], expected[1], strict=True):
        assert_close(actual, truth, tolerance)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("CLIP", 10), ("Siglip", 10), ("Siglip2", 2), ("MetaClip2", 2), ("AltCLIP", 2), ("ChineseCLIP", 2)],
)
def test_training(kind: str, steps: int) -> None:
    data = Pairs(40, siglip2=kind == "Siglip2")
    runs = [trained(of, tiny(kind), data=data, max_steps=steps) for of in (fused(), library("transformers").Trainer)]
    assert_same_run(*runs)


def test_float32() -> None:
    data = Pairs(40)
    data.images = data.images.float()
    runs = [
        trained(of, tiny("CLIP").float(), data=data, max_steps=3) for of in (fused(), library("transformers").Trainer)
    ]
    assert_same_run(*runs, tolerance=1e-5)


def test_gradient_accumulation() -> None:
    # The mean over the batches of a step, also where a model is told how many labels there are.
    options = {"gradient_accumulation_steps": 3, "max_steps": 3}
    runs = [trained(of, tiny("CLIP"), **options) for of in (fused(), library("transformers").Trainer)]
    assert_same_run(*runs)
    labelled = trained(fused(), tiny("CLIP"), data=Labelled(40), remove_unused_columns=False, **options)
    assert_same_run(labelled, runs[0])


class Labelled(Pairs):
    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**super().__getitem__(i), "labels": torch.tensor(i)}


class Half(Pairs):
    """Of a mixed-precision run."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.images = self.images.float()


def test_mixed_precision() -> None:
    model = tiny("CLIP").float()
    found = trainer(fused(), model, data=Half(40), bf16=True, max_steps=2)
    seen = []
    model.visual_projection.register_forward_hook(lambda *args: seen.append(args[-1].dtype))
    found.train()
    assert set(seen) == {torch.bfloat16}
    losses = [entry["loss"] for entry in found.state.log_history if "loss" in entry]
    expected, _ = trained(library("transformers").Trainer, tiny("CLIP").float(), data=Half(40), max_steps=2)
    assert losses == pytest.approx(expected, rel=0.05)


def no_logits(shapes: list[tuple[int, ...]], batch: int) -> bool:
    return (batch, batch) not in shapes


@pytest.mark.usefixtures("small_blocks", "composition")
def test_there_are_no_logits() -> None:
    """No product that is made, by the model or for the loss, is that of all pairs."""
    model = tiny("CLIP")
    inputs = collate([Pairs(13)[i] for i in range(13)])
    found = trainer(fused(), model)
    for of, expected in ((lambda: found.compute_loss(model, dict(inputs)), True), (lambda: model(**inputs), False)):
        with Shapes() as seen:
            of()
        assert no_logits(seen.shapes, 13) == expected
    loss, outputs = found.compute_loss(model, dict(inputs), return_outputs=True)
    whole = model(**inputs)
    assert relative_error(loss.detach(), whole.loss.detach()) <= 1e-10
    assert list(outputs) == ["loss", "text_embeds", "image_embeds", "text_model_output", "vision_model_output"]
    for name in ("text_embeds", "image_embeds"):
        assert relative_error(outputs[name].detach(), whole[name].detach()) <= 1e-10
    assert torch.equal(outputs.text_model_output.last_hidden_state, whole.text_model_output.last_hidden_state)
    # Afterwards the model is what it was.
    assert "forward" not in vars(model)
    assert whole.logits_per_image.shape == (13, 13)


class Shapes(TorchDispatchMode):
    """The shapes of the results of all products."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.shapes.append(tuple(result.shape))
        return result


def test_evaluation() -> None:
    # With and without compute_metrics; the loss is that of the model, of batches of 4, 4 and 2.
    model = tiny("Siglip")
    expected = trainer(library("transformers").Trainer, model).evaluate()["eval_loss"]
    assert trainer(fused(), model).evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    shapes = {}

    def compute_metrics(prediction: Any) -> dict[str, float]:
        text, image, *_ = prediction.predictions
        shapes.update(text=text.shape, image=image.shape)
        return {"mine": 1.0}

    metrics = trainer(fused(), model, compute_metrics=compute_metrics).evaluate()
    assert metrics["eval_mine"] == 1.0
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert shapes == {"text": (10, 16), "image": (10, 16)}


def test_evaluation_without_return_loss() -> None:
    found = trainer(fused(), tiny("CLIP"))
    found.data_collator = lambda samples: {k: v for k, v in collate(samples).items() if k != "return_loss"}
    assert "eval_loss" in found.evaluate()


class Mine(nn.Module):
    config = None

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_what_is_refused() -> None:
    model, batch = tiny("CLIP"), collate([Pairs(4)[i] for i in range(4)])

    def call(model: nn.Module = model, changed: dict[str, Any] | None = None, **options: Any) -> None:
        trainer(fused(), model, **options).compute_loss(model, {**batch, **(changed or {})})

    class Own(type(model)):
        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs)

    model.__class__, kept = Own, type(model)
    with pytest.raises(TypeError, match=r"got Own with a forward of its own"):
        call()
    model.__class__ = kept
    with pytest.raises(NotImplementedError, match=r"^label_smoothing_factor=0.1 is not"):
        call(label_smoothing_factor=0.1)
    with pytest.raises(NotImplementedError, match=r"^compute_loss_func=<built-in function print>"):
        call(compute_loss_func=print)
    with pytest.raises(ValueError, match=r"^return_loss=False"):
        call(changed={"return_loss": False})
    with pytest.raises(NotImplementedError, match=r"^return_dict=False"):
        call(changed={"return_dict": False})
    with pytest.raises(TypeError, match=r"type altclip.*, got Mine of type None"):
        call(Mine())
    assert "forward" not in vars(model)
    found = trainer(fused(), model)
    found.args.torch_compile = True
    with pytest.raises(NotImplementedError, match=r"^torch_compile=True"):
        found.compute_loss(model, batch)
    found.args.torch_compile, found.args._n_gpu = False, 2
    with pytest.raises(NotImplementedError, match=r"^n_gpu=2"):
        found.compute_loss(model, batch)


def test_a_trainer_in_front_of_the_mixin() -> None:
    plain, mixin = library("transformers").Trainer, fused().__bases__[0]
    with pytest.raises(TypeError, match=r"^Other: ContrastiveTrainerMixin must stand before Trainer$"):
        type("Other", (plain, mixin), {})


# --- several processes


def two_processes(rank: int, kind: str, options: dict[str, Any]) -> tuple[list[float], list[Tensor], str]:
    with launched(rank):
        model = tiny(kind)
        found = trainer(fused(), model, **options)
        wrapped = []
        model.register_forward_hook(lambda *args: wrapped.append(type(found.model_wrapped).__name__))
        found.train()
        losses = [entry["loss"] for entry in found.state.log_history if "loss" in entry]
        return losses, [p.detach().clone() for p in model.parameters()], wrapped[0]


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_two_processes_are_one_with_the_whole_batch(ranks: Ranks, kind: str) -> None:
    options = {"max_steps": 5, "gradient_accumulation_steps": 1}
    library("transformers")
    both = ranks(2).run(two_processes, kind, options)
    # Batches go to the processes in turn: eight samples in order are two batches of four.
    one = trained(library("transformers").Trainer, tiny(kind), per_device_train_batch_size=8, **options)
    for losses, parameters, wrapper in both:
        assert wrapper == "DistributedDataParallel"
        assert_same_run((losses, parameters), one)


def test_accumulation_in_two_processes(ranks: Ranks) -> None:
    options = {"max_steps": 2, "gradient_accumulation_steps": 2, "ddp_find_unused_parameters": True}
    library("transformers")
    both = ranks(2).run(two_processes, "CLIP", options)
    one = trained(library("transformers").Trainer, tiny("CLIP"), per_device_train_batch_size=8, **options)
    for losses, parameters, _ in both:
        assert_same_run((losses, parameters), one)
