"""The callback for `Trainer`: its metrics are those of the features of the evaluated samples, each once."""

import math
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import launched
from parity import library
from ranks import Ranks
from torch import Tensor, nn
from trained import Pairs, tiny, trainer

import hyperkern as hk
from hyperkern.metrics import uniformity_limit

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="PyTorch without torch.distributed")


def callback(*args: Any, **options: Any) -> Any:
    library("transformers")
    from hyperkern.integrations.transformers import AlignmentUniformityCallback

    return AlignmentUniformityCallback(*args, **options)


def plain() -> type:
    return library("transformers").Trainer


def features(model: nn.Module, count: int = 10) -> dict[str, Tensor]:
    data = Pairs(count)
    with torch.no_grad():
        outputs = model.eval()(input_ids=data.texts, pixel_values=data.images)
    return {name: outputs[name] for name in ("image_embeds", "text_embeds")}


def expected(model: nn.Module, prefix: str = "eval", t: float = 2.0, alpha: float = 2.0) -> dict[str, float]:
    sides = features(model)
    of_sides = {name: hk.uniformity(rows, t=t).item() for name, rows in sides.items()}
    found = {
        "alignment": hk.alignment(*sides.values(), alpha=alpha).item(),
        "uniformity": sum(of_sides.values()) / 2,
        "uniformity_limit": uniformity_limit(12, t),
    }
    for name, value in of_sides.items():
        found |= {f"{name}_uniformity": value}
        found |= {f"{name}_norm_{which}": 1.0 for which in ("min", "mean", "max")}
    return {f"{prefix}_{name}": value for name, value in found.items()}


def assert_contains(metrics: dict[str, float], truth: dict[str, float]) -> None:
    for name, value in truth.items():
        assert metrics[name] == pytest.approx(value, rel=1e-6), name


def test_evaluation_alone() -> None:
    model = tiny("CLIP")
    found = trainer(plain(), model, [callback(t=1.5, alpha=1.0)])
    for prefix in ("eval", "test"):
        metrics = found.evaluate(metric_key_prefix=prefix)
        assert_contains(metrics, expected(model, prefix, 1.5, 1.0))
        assert_contains(found.state.log_history[-1], expected(model, prefix, 1.5, 1.0))
    assert len([entry for entry in found.state.log_history if "eval_uniformity" in entry]) == 1


def test_during_training() -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}
    kept = trainer(plain(), tiny("CLIP"), [callback()], **options)
    kept.train()
    history = [entry for entry in kept.state.log_history if "eval_uniformity" in entry]
    assert [entry["step"] for entry in history] == [2, 4]
    assert history[0]["eval_uniformity"] != history[1]["eval_uniformity"]
    assert_contains(history[1], expected(kept.model))
    assert not any("alignment" in name for entry in kept.state.log_history if "loss" in entry for name in entry)
    assert not any("train_uniformity" in entry for entry in kept.state.log_history)


def test_the_best_model(tmp_path: Any) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 3, "save_steps": 1, "save_strategy": "steps"}
    options |= {"metric_for_best_model": "eval_uniformity", "greater_is_better": False, "output_dir": str(tmp_path)}
    found = trainer(plain(), tiny("CLIP"), [callback()], **options)
    found.train()
    values = [entry["eval_uniformity"] for entry in found.state.log_history if "eval_uniformity" in entry]
    assert len(values) == 3
    assert found.state.best_metric == min(values)


def test_several_data_sets() -> None:
    model = tiny("CLIP")
    metrics = trainer(plain(), model, [callback()]).evaluate({"a": Pairs(10), "b": Pairs(7)})
    assert_contains(metrics, expected(model, "eval_a"))
    assert metrics["eval_b_uniformity"] == pytest.approx(
        sum(hk.uniformity(rows).item() for rows in features(model, 7).values()) / 2, rel=1e-6
    )


def test_what_is_not_evaluated_does_not_count() -> None:
    model = tiny("CLIP")
    found = trainer(plain(), model, [callback()])
    found.predict(Pairs(7))
    model.eval()(input_ids=Pairs(3).texts, pixel_values=Pairs(3).images)
    assert_contains(found.evaluate(), expected(model))
    model.train()(input_ids=Pairs(3).texts, pixel_values=Pairs(3).images)
    assert_contains(found.evaluate(), expected(model))


def test_an_evaluation_that_was_broken_off() -> None:
    model = tiny("CLIP")
    found = trainer(plain(), model, [callback()])

    class Broken(Pairs):
        def __getitem__(self, i: int) -> dict[str, Tensor]:
            if i == 9:
                raise KeyError(i)
            return super().__getitem__(i)

    with pytest.raises(KeyError):
        found.evaluate(Broken(10))
    assert_contains(found.evaluate(), expected(model))


def test_attached() -> None:
    # Trackers come before the callbacks of the user, and see the metrics only of one that stands before them.
    seen: list[dict[str, float]] = []

    class Tracker(library("transformers").TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    model = tiny("CLIP")
    found = trainer(plain(), model, [Tracker()])
    found.add_callback(callback())
    with pytest.raises(ValueError, match=r"attach\(trainer\)"):
        found.evaluate()
    late = found.callback_handler.callbacks[-1]
    for _ in range(2):
        assert late.attach(found) is found.callback_handler.callbacks[0]
    assert found.callback_handler.callbacks.count(late) == 1
    assert_contains(found.evaluate(), expected(model))
    assert_contains(seen[-1], expected(model))


def test_a_second_one() -> None:
    found = trainer(plain(), tiny("CLIP"), [callback(), callback(t=1.0)])
    with pytest.raises(ValueError, match=r"^the evaluation has a metric 'eval_alignment' already"):
        found.evaluate()


def test_a_model_that_is_watched_can_be_pickled() -> None:
    model, watching = tiny("CLIP"), callback()
    found = trainer(plain(), model, [watching])
    found.evaluate()
    watching._rows = [[torch.ones(1)]]
    copied = pickle.loads(pickle.dumps(model))
    assert watching._rows
    assert torch.equal(features(copied)["text_embeds"], features(model)["text_embeds"])
    (hook,) = copied._forward_hooks.values()
    assert hook.__self__._rows == []


def test_a_model_that_is_made_anew() -> None:
    found = trainer(
        plain(), None, [callback()], model_init=lambda: tiny("CLIP"), max_steps=1, eval_strategy="steps", eval_steps=1
    )
    found.train()
    assert_contains(found.state.log_history[1], expected(found.model))


def test_under_the_fused_loss() -> None:
    library("transformers")
    from hyperkern.integrations.transformers import ContrastiveTrainerMixin

    kind = type("Fused", (ContrastiveTrainerMixin, plain()), {})
    model = tiny("CLIP")
    metrics = trainer(kind, model, [callback()]).evaluate()
    assert_contains(metrics, expected(model))
    assert math.isfinite(metrics["eval_loss"])


class Encoder(nn.Module):
    """One output, of no particular length."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(3 * 8 * 8, 6).double()

    def forward(self, pixel_values: Tensor, return_loss: bool = True) -> dict[str, Tensor]:
        rows = self.linear(pixel_values.flatten(1))
        return {"loss": rows.mean(), "rows": rows, "indices": torch.zeros(len(rows)).long()}


def test_one_output_as_it_comes() -> None:
    model = Encoder()
    rows = model(Pairs(10).images)["rows"].detach()
    with pytest.warns(UserWarning, match="rows are not of unit length"):
        metrics = trainer(plain(), model, [callback("rows", None, normalize=False)]).evaluate()
    norms = rows.norm(dim=1)
    truth = {"uniformity": hk.uniformity(rows, normalize=False).item(), "rows_norm_min": norms.min().item()}
    truth |= {"rows_norm_mean": norms.mean().item(), "rows_norm_max": norms.max().item()}
    assert_contains(metrics, {f"eval_{name}": value for name, value in truth.items()})
    assert not {"eval_alignment", "eval_uniformity_limit"} & metrics.keys()


def test_options_of_the_evaluation() -> None:
    with pytest.raises(ValueError, match=r"^columns must be at least 16"):
        trainer(plain(), tiny("CLIP"), [callback(method="estimate", columns=3)]).evaluate()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    name = {torch.bfloat16: "bf16_full_eval", torch.float16: "fp16_full_eval"}[dtype]
    model = tiny("CLIP")
    data = Pairs(10)
    data.images = data.images.to(dtype)
    metrics = trainer(plain(), model, [callback()], **{name: True}).evaluate(data)
    assert model.visual_projection.weight.dtype == dtype
    for key, value in expected(tiny("CLIP")).items():
        assert metrics[key] == pytest.approx(value, rel=0.03, abs=0.03), key


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing", ValueError, "^the model returned no 'nothing', but loss, rows, indices"),
        ("loss", TypeError, r"^the output 'loss' must be floating features \(N, D\), got torch.float64 of shape \(\)"),
        ("indices", TypeError, "^the output 'indices' must be .* got torch.int64"),
    ],
)
def test_outputs_that_are_no_features(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        trainer(plain(), Encoder(), [callback(name, None)]).evaluate()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"t": 0}, ValueError, "^t must be a finite number > 0"),
        ({"alpha": "2"}, TypeError, "^alpha must be a number"),
        ({"method": "sample"}, ValueError, "^method must be one of 'exact', 'estimate'"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        callback(**options)


# --- several processes


def in_processes(rank: int, count: int) -> tuple[dict[str, float], float]:
    with launched(rank):
        found = trainer(plain(), tiny("CLIP"), [callback()], per_device_eval_batch_size=3)
        metrics = found.evaluate(Pairs(count))
        return metrics, found.state.log_history[-1]["eval_uniformity"]


@pytest.mark.parametrize("count", [10, 12, 13])
def test_two_processes(ranks: Ranks, count: int) -> None:
    # Batches of 2 times 3: the last one is filled up with samples from the beginning, which count once.
    sides = features(tiny("CLIP"), count)
    truth = sum(hk.uniformity(rows).item() for rows in sides.values()) / 2
    alignment = hk.alignment(*sides.values()).item()
    for metrics, logged in ranks(2).run(in_processes, count):
        assert metrics["eval_uniformity"] == logged == pytest.approx(truth, rel=1e-6)
        assert metrics["eval_alignment"] == pytest.approx(alignment, rel=1e-6)


def refused_in_processes(rank: int) -> str:
    with launched(rank):
        found = trainer(plain(), tiny("CLIP"), [callback(method="estimate", columns=3)], per_device_eval_batch_size=3)
        try:
            found.evaluate(Pairs(10))
        except ValueError as error:
            return str(error)
    return ""


def test_what_the_first_process_refuses(ranks: Ranks) -> None:
    library("transformers")
    for message in ranks(2).run(refused_in_processes):
        assert message.startswith("columns must be at least 16")
