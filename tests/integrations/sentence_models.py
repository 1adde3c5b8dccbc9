"""What the tests of the drop-ins for Sentence Transformers share: models, features, one step, the library's classes."""

import os
import weakref
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from parity import library, relative_error
from torch import Tensor, nn

WORDS = [*"abcdefghijklmnopqrstuvwxyz", "one", "two", "three"]


class Encoder(nn.Module):
    """Like a module of the library it adds what it computes to the features; it shows what is alive of it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 12)
        self.hidden, self.dropout, self.out = nn.Linear(12, 12), nn.Dropout(dropout), nn.Linear(12, 6)
        self.activations: list[weakref.ref] = []
        self.alive_at_call: list[int] = []
        self.shapes: list[tuple[int, ...]] = []

    @property
    def alive(self) -> int:
        return sum(activation() is not None for activation in self.activations)

    def forward(self, features: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        self.alive_at_call.append(self.alive)
        self.shapes.append(tuple(features["input_ids"].shape))
        assert "token_embeddings" not in features
        mask = features["attention_mask"].unsqueeze(-1)
        tokens = self.dropout(torch.tanh(self.hidden(self.words(features["input_ids"]))))
        self.activations.append(weakref.ref(tokens))
        features["token_embeddings"] = tokens
        features["sentence_embedding"] = self.out((tokens * mask).sum(1) / mask.sum(1))
        return features


def new_model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(Encoder(dropout)).double()


def new_features(count: int, samples: int = 10, shortest: int = 1) -> list[dict[str, Any]]:
    torch.manual_seed(2)
    features = []
    for _ in range(count):
        mask = (torch.arange(7) < torch.randint(shortest, 8, (samples, 1))).long()
        ids = torch.randint(0, 40, (samples, 7))
        features.append({"input_ids": ids, "attention_mask": mask, "prompt_length": torch.tensor([1]), "task": "sts"})
    return features


def tiny_model(folder: Path, dropout: float = 0.1, layers: int = 2) -> Any:
    """A BERT of 16 dimensions and a tokenizer of some words, of the library's own modules, ready to be trained."""
    transformers = library("transformers")
    modules = library("sentence_transformers.sentence_transformer.modules")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(4)
    transformers.BertModel(config).save_pretrained(folder)
    parts = [library("sentence_transformers.base.modules").Transformer(str(folder)), modules.Pooling(16)]
    return library("sentence_transformers").SentenceTransformer(modules=parts, device="cpu").train()


def sentences(count: int, seed: int = 0, longest: int = 9) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=draw)) for n in lengths.tolist()]


def tokenized(model: Any, columns: int, samples: int = 6) -> list[dict[str, Any]]:
    return [model.preprocess(sentences(samples, seed=column)) for column in range(columns)]


def run(loss: nn.Module, features: list[dict[str, Any]], factor: float = 1.0) -> list[Tensor]:
    """The loss and the gradients of all parameters in one, with the same random numbers each time."""
    torch.manual_seed(3)
    loss.zero_grad()
    value = loss([dict(column) for column in features], torch.empty(0))
    (factor * value).backward()
    return [value.detach(), gradients(loss)]


def gradients(module: nn.Module) -> Tensor:
    """Of all parameters, in one: that of the bias of BERT's keys is rounding alone."""
    return torch.cat([gradient(parameter).flatten() for parameter in module.parameters()])


def gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-10) -> None:
    for actual, truth in zip(found, expected, strict=True):
        assert relative_error(actual, truth) <= tolerance
