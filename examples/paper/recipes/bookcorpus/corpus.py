"""The books as numbers of words in files that are mapped into memory: any size, whatever the machine has."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from examples.digits.config import OptionError
from hyperkern.files import as_json, write_files

from ..session import Session
from .text import UNKNOWN, Vocabulary, read_lines

# None is a *.txt, for the folder may be within that of the books.
WORDS, STARTS, BOOKS, VOCABULARY, ABOUT = "words.bin", "starts.bin", "books.npy", "vocabulary", "corpus.json"
_BUFFER = 100_000  # sentences that are in memory at a time while the files are written
Rows = NDArray[np.int64]


class Sentences(NamedTuple):
    """A batch: numbers of words, ``(N, L)`` padded by 0, and the number of words of each, ``(N,)``; both int64."""

    words: Tensor
    lengths: Tensor


def pad(rows: Sequence[Sequence[int]]) -> Sentences:
    """A batch of sentences; one without a word becomes an unknown one."""
    filled = [torch.tensor(row or [UNKNOWN]) for row in rows]
    lengths = torch.tensor([len(row) for row in filled])
    return Sentences(torch.nn.utils.rnn.pad_sequence(filled, batch_first=True), lengths)


class Corpus:
    """What `write` has written, mapped into memory.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        self._starts: Rows = np.memmap(folder / STARTS, np.int64, "r")
        words = np.dtype(self.about["dtype"])
        # No file of no bytes can be mapped.
        self._words = np.memmap(folder / WORDS, words, "r") if self.about["words"] else np.empty(0, words)
        self._books: Rows = np.load(folder / BOOKS)  # the sentence at which each ends, after a 0

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        """A process that loads data maps the files itself."""
        return Corpus, (self.folder,)

    def __len__(self) -> int:
        """The sentences."""
        return int(self._books[-1])

    def follows(self, first: int, last: int) -> Tensor:
        """Of the sentences from ``first`` to before ``last``: whether the next is of the same book, one fewer, bool."""
        books = np.searchsorted(self._books, np.arange(first, last), side="right")
        return torch.from_numpy(books[1:] == books[:-1])

    def sentences(self, rows: Tensor) -> Sentences:
        """Sentences by their numbers, ``(N,)``."""
        starts, stops = self._starts[rows.numpy()], self._starts[rows.numpy() + 1]
        lengths = stops - starts
        columns = np.arange(lengths.max())
        index = np.minimum(starts[:, None] + columns, stops[:, None] - 1)
        words = np.where(columns < lengths[:, None], self._words[index], 0).astype(np.int64)
        return Sentences(torch.from_numpy(words), torch.from_numpy(lengths))


def write(folder: Path, books: Iterable[Path], vocabulary: Vocabulary, length: int, asked: Mapping[str, Any]) -> None:
    """Write the files of a corpus; the one that says what the others hold is the last.

    Args:
        folder: for the files, which is there.
        books: a sentence a line; the end of a file and a line without a word end a book.
        vocabulary: numbers of the words.
        length: words of a sentence; what follows is cut off.
        asked: what the corpus is made of, kept in its description.
    """
    dtype = np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.int32)
    words: list[int] = []
    starts, ends = [0], [0]  # of sentences in words, those not yet written; of books in sentences
    sentences = total = unknown = 0
    with open(folder / WORDS, "wb") as words_file, open(folder / STARTS, "wb") as starts_file:

        def flush() -> None:
            np.array(words, dtype).tofile(words_file)
            np.array(starts, np.int64).tofile(starts_file)
            words.clear()
            starts.clear()

        for line in itertools.chain.from_iterable(itertools.chain(read_lines(book), [[]]) for book in books):
            if line:
                numbers = vocabulary.numbers(line[:length])
                words += numbers
                unknown += numbers.count(UNKNOWN)
                total += len(numbers)
                starts.append(total)
                sentences += 1
            elif sentences > ends[-1]:
                ends.append(sentences)
            if len(starts) >= _BUFFER:
                flush()
        flush()
    np.save(folder / BOOKS, np.array(ends))
    about = {
        "asked": asked,
        "dtype": dtype.name,
        "books": len(ends) - 1,
        "sentences": sentences,
        "words": total,
        "unknown": unknown,
        "vocabulary": vocabulary.digest(),
    }
    write_files({folder / VOCABULARY: vocabulary.content()})
    write_files({folder / ABOUT: as_json(about)})


def prepared(data: Path, folder: Path, size: int, length: int, session: Session) -> Corpus:
    """The corpus of the books in ``data``, written to ``folder`` by the first process if it is not there.

    Args:
        data: folder of the books, ``*.txt`` at any depth but for the folders ``MR`` and ``CR``.
        folder: for the files.
        size: words of the vocabulary.
        length: words of a sentence.
        session: the others wait for the first, however long that takes.

    Raises:
        OptionError: there are no books, the folder has the corpus of others, or cannot be written to.
    """
    paths = [path for path in sorted(data.rglob("*.txt")) if path.relative_to(data).parts[0] not in ("MR", "CR")]
    if not paths:
        raise OptionError("data", data, "must have the books as text, one sentence a line, in files *.txt")
    books = {path.relative_to(data).as_posix(): path.stat().st_size for path in paths}
    asked = {"books": books, "vocabulary": size, "length": length}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if session.is_first and not (folder / ABOUT).exists():
            session.say(f"counting the words of {len(paths)} files")
            vocabulary = Vocabulary.count(itertools.chain.from_iterable(map(read_lines, paths)), size)
            session.say(f"writing their numbers to {folder}")
            write(folder, paths, vocabulary, length, asked)
    except OSError as error:
        raise OptionError("out", folder, f"cannot be written to ({error.strerror})") from error
    while not (folder / ABOUT).exists():  # no collective waits for hours
        time.sleep(0.5)
    corpus = Corpus(folder)
    for name, value in asked.items():
        if corpus.about["asked"][name] != value:
            raise OptionError(
                "out", folder.parent, f"has a corpus that was made with another {name}; take another folder"
            )
    return corpus
