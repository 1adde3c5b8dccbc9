"""Sentences of plain text as words, and the words that the encoders know."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gensim.utils import prune_vocab

PADDING, UNKNOWN, FIRST_WORD = 0, 1, 2
# Distinct words that are counted at a time; beyond it the rarest are forgotten, so that the memory is bounded.
COUNTED = 10_000_000
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


def words_of(sentence: str) -> list[str]:
    """Words and punctuation marks of a sentence in lower case; none for white space."""
    return _WORD.findall(unicodedata.normalize("NFC", sentence).lower())


def read_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[list[str]]:
    """The words of every line of a file; bytes that are no text become a mark of their own."""
    with open(path, encoding=encoding, errors="replace") as file:
        yield from map(words_of, file)


class Vocabulary:
    """The words that have a number of their own, from 2 on; 0 pads a batch and 1 is any other word.

    Args:
        words: the most frequent first.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(self.words, FIRST_WORD)}

    def __len__(self) -> int:
        """Numbers in use, those of padding and unknown words included."""
        return FIRST_WORD + len(self.words)

    @classmethod
    def count(cls, lines: Iterable[Sequence[str]], size: int) -> Vocabulary:
        """The ``size`` most frequent words, equally frequent ones in alphabetical order."""
        counts: defaultdict[str, int] = defaultdict(int)
        least = 1
        for line in lines:
            for word in line:
                counts[word] += 1
            if len(counts) > COUNTED:
                least += 1
                prune_vocab(counts, least)
        ranked = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
        return cls([word for word, _ in ranked[:size]])

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """From a file that holds `content`."""
        return cls(path.read_bytes().decode().split("\n")[:-1])

    def content(self) -> bytes:
        """Of a file: a word a line."""
        return "".join(f"{word}\n" for word in self.words).encode()

    def digest(self) -> str:
        """A short one, by which two vocabularies are told apart."""
        return hashlib.sha256(self.content()).hexdigest()[:12]

    def numbers(self, words: Iterable[str]) -> list[int]:
        """The number of each word."""
        return [self._numbers.get(word, UNKNOWN) for word in words]
