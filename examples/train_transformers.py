"""Hugging Face Trainer: a tiny CLIP learns to read; the lines that hyperkern changes are marked.

::

    python examples/train_transformers.py
    torchrun --nproc_per_node=2 examples/train_transformers.py    # the negatives are those of all processes

An image is four handwritten digits, its caption the number in words; evaluation has numbers that training has not, in
other handwriting. Without hyperkern the model has the loss of the batch of each process alone.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, Trainer, TrainingArguments, set_seed
from written_numbers import Numbers

# hyperkern: new
from hyperkern.integrations.transformers import AlignmentUniformityCallback, ContrastiveTrainerMixin

LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {"vocab_size": 12, "max_position_embeddings": 6, "bos_token_id": 10, "eos_token_id": 11, **LAYERS}
VISION = {"image_size": 16, "patch_size": 4, **LAYERS}


# hyperkern: new
class ContrastiveTrainer(ContrastiveTrainerMixin, Trainer):
    """A trainer with the loss of the pairs of all processes."""


def samples(numbers: Numbers, count: int) -> list[dict[str, Any]]:
    """Images and the tokens of their captions, a word for each digit between those of beginning and end."""
    return [
        {"pixel_values": image, "input_ids": torch.tensor([10, *digits, 11])}
        for image, digits in zip(*numbers.draw(count), strict=True)
    ]


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.stack([sample[key] for sample in batch]) for key in batch[0]} | {"return_loss": True}


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train, and evaluate on held-out numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=5, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="pairs of a step of a process (%(default)s)")
    options = parser.parse_args(arguments)
    set_seed(0)
    train, held_out = samples(Numbers(held_out=False), 5120), samples(Numbers(held_out=True), 128)
    model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=64))
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch,
            per_device_eval_batch_size=options.batch,
            learning_rate=2e-3,
            logging_steps=10,
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        parts = {"data_collator": collate, "train_dataset": train, "eval_dataset": held_out}
        # hyperkern: new
        parts["callbacks"] = [AlignmentUniformityCallback()]
        # hyperkern: was trainer = Trainer(model, settings, **parts)
        trainer = ContrastiveTrainer(model, settings, **parts)
        trainer.train()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}, of held-out numbers {evaluated[0]:.4f} to {evaluated[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
