"""The drop-ins and the evaluator in the trainer of Sentence Transformers, and what its model cards say of them."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from parity import library
from sentence_models import assert_same, sentences, tiny_model
from torch import Tensor, nn

from hyperkern.integrations import sentence_transformers as ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),  # of every loader on a CPU
]
PAIRS = 12
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("MultipleNegativesRankingLoss", {}),
    "whole, hard": ("MultipleNegativesRankingLoss", {"hardness_mode": "hard_negatives", "hardness_strength": 5.0}),
    "cached": ("CachedMultipleNegativesRankingLoss", {"mini_batch_size": 2}),
    "cached, tokens": ("CachedMultipleNegativesRankingLoss", {"mini_batch_num_tokens": 16}),
}


@pytest.fixture(scope="module")
def original() -> ModuleType:
    return library("sentence_transformers.sentence_transformer.losses")


def trained(folder: Path, make_loss: Any, columns: int = 2, evaluator: Any = None, **options: Any) -> Any:
    """The trainer after three epochs of twelve samples, from the same model and with the same random numbers."""
    st = library("sentence_transformers")
    model = tiny_model(folder, layers=1)
    names = ["anchor", "positive", "negative"][:columns]
    data = library("datasets").Dataset.from_dict({name: sentences(PAIRS, seed=i) for i, name in enumerate(names)})
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=4,
        num_train_epochs=3,
        learning_rate=1e-2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=5,
        **{"save_strategy": "no", "logging_steps": 1, **options},
    )
    trainer = st.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=make_loss(model), evaluator=evaluator
    )
    trainer.train()
    return trainer


def result(trainer: Any) -> list[Tensor]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [torch.tensor(losses), torch.cat([p.detach().flatten() for p in trainer.loss.parameters()])]


@pytest.mark.parametrize("case", LOSSES)
def test_a_training(case: str, tmp_path: Path, original: ModuleType) -> None:
    name, options = LOSSES[case]
    results = []
    for module in (ours, original):
        results.append(
            result(
                trained(
                    tmp_path,
                    lambda model, module=module: getattr(module, name)(model, **options),
                    columns=3,
                    gradient_accumulation_steps=2,
                    max_grad_norm=0.5,
                )
            )
        )
    assert results[0][0].std() > 0.01
    assert_same(*results, tolerance=1e-4)  # in float32, after steps of Adam


@pytest.mark.parametrize("cached", ["", "Cached"])
def test_a_training_of_the_scale(cached: str, tmp_path: Path, original: ModuleType) -> None:
    scales, results = [], []
    for module in (ours, original):
        scale = nn.Parameter(torch.tensor(5.0))
        make = getattr(module, f"{cached}MultipleNegativesRankingLoss")
        results.append(result(trained(tmp_path, lambda model, make=make, scale=scale: make(model, scale=scale))))
        scales.append(scale.detach())
    assert scales[0] != 5
    assert_same(*results, tolerance=1e-4)
    assert_same(scales[:1], scales[1:], tolerance=1e-4)


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"])
def test_the_model_card_is_that_of_the_original(name: str, tmp_path: Path, original: ModuleType) -> None:
    cards = []
    for module in (ours, original):
        trainer = trained(tmp_path, lambda model, module=module: getattr(module, name)(model, scale=15.0), max_steps=1)
        trainer.model._create_model_card(str(tmp_path))
        cards.append((tmp_path / "README.md").read_text())
    card = cards[0]
    link = f"* Loss: [<code>{name}</code>](https://sbert.net/docs/package_reference/sentence_transformer/losses.html#"
    assert link + name.lower() + ") with these parameters:" in card
    assert '"scale": 15.0' in card
    about_losses = [
        [line for line in text.splitlines() if "Loss:" in line or "loss:" in line or line.startswith("#### ")]
        for text in cards
    ]
    assert about_losses[0] == about_losses[1]
    papers = [text[text.index("## Citation") :] for text in cards]
    assert papers[0] == papers[1]
    assert "oord2019" in papers[0]


def test_the_evaluator_chooses_the_best_model(tmp_path: Path) -> None:
    library("sentence_transformers")
    evaluator = ours.AlignmentUniformityEvaluator(sentences(8, seed=7), sentences(8, seed=8), name="dev")
    trainer = trained(
        tmp_path,
        ours.MultipleNegativesRankingLoss,
        evaluator=evaluator,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_dev_negative_align_uniform",
    )
    values = [e["eval_dev_negative_align_uniform"] for e in trainer.state.log_history if "eval_runtime" in e]
    assert len(values) == 3
    assert trainer.state.best_metric == max(values) > min(values)
    found = evaluator(trainer.model)
    assert found["dev_negative_align_uniform"] == pytest.approx(max(values), abs=1e-5)
    assert len((tmp_path / "out" / "eval" / evaluator.csv_file).read_text().splitlines()) == 1 + 3
    trainer.model._create_model_card(str(tmp_path))
    card = (tmp_path / "README.md").read_text()
    assert "### Metrics\n\n#### Alignment and Uniformity\n\n* Dataset: `dev`" in card
    assert "<code>hyperkern.integrations.sentence_transformers.evaluator.AlignmentUniformityEvaluator</code>" in card
    assert f"| **negative_align_uniform** | **{found['dev_negative_align_uniform']:.4f}** |" in card
    assert f"{found['dev_uniformity_limit']:.4f}" in card
