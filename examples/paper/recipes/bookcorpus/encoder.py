"""The two recurrent encoders of Quick-Thought vectors (Logeswaran & Lee, ICLR 2018)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from .corpus import Sentences
from .text import PADDING

EMBEDDING_RANGE = 0.1


class SentenceEncoder(nn.Module):
    """Embedded words through a GRU in both directions; a sentence's feature are the two last states.

    Args:
        vocabulary: numbers of words.
        embedding: dimension of a word's.
        dim: dimension of a sentence's, even.
    """

    def __init__(self, vocabulary: int, embedding: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        nn.init.uniform_(self.embedding.weight, -EMBEDDING_RANGE, EMBEDDING_RANGE)
        self.gru = nn.GRU(embedding, dim // 2, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Features of sentences: ``(N, L)`` numbers of words, ``(N,)`` lengths at least 1, to ``(N, dim)``."""
        packed = pack_padded_sequence(self.embedding(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states: Tensor = self.gru(packed)[1]
        return states.transpose(0, 1).flatten(1)


class QuickThought(nn.Module):
    """Encoders f and g: of neighbouring sentences x and y, f(x) and g(y) are pulled together.

    Args:
        vocabulary: numbers of words.
        embedding: dimension of a word's.
        dim: dimension of a sentence's, even.
        seed: of the initial weights.
    """

    def __init__(self, vocabulary: int, embedding: int, dim: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.f = SentenceEncoder(vocabulary, embedding, dim)
            self.g = SentenceEncoder(vocabulary, embedding, dim)

    def forward(self, x: Sentences, y: Sentences) -> tuple[Tensor, Tensor]:
        """Features f(x) and g(y), ``(N, dim)`` and ``(M, dim)``, not normalised."""
        return self.f(*x), self.g(*y)

    def encode(self, sentences: Sentences) -> Tensor:
        """What is evaluated: the unit features of both encoders side by side, ``(N, 2 dim)``."""
        return torch.cat([F.normalize(self.f(*sentences), dim=1), F.normalize(self.g(*sentences), dim=1)], dim=1)
