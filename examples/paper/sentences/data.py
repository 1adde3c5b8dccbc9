"""Running text that the gensim package has among the files of its tests: articles of Wikipedia, news, film reviews."""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from gensim.corpora.wikicorpus import extract_pages, filter_wiki
from gensim.test.utils import datapath

from ..recipes.bookcorpus.corpus import Corpus, write
from ..recipes.bookcorpus.probe import Task
from ..recipes.bookcorpus.text import Vocabulary, words_of

ARTICLES = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"  # a report a line
REVIEWS = "pang_lee_polarity.cor"
# What is left of tables, lists and headings is shorter than a paragraph, or ends without a full stop.
PARAGRAPH = 100
SENTENCE = 5
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
TRAINED = 0.75  # of every article, from its beginning; the rest is held out
TOPICS, ENOUGH = 20, 40  # articles at most that a sentence can be of, and held-out sentences of each

Documents = list[list[str]]


def sentences_of(text: str) -> list[str]:
    """The sentences of running text, at least five words each."""
    paragraphs = (re.sub(r"'{2,}", "", line.strip()) for line in text.split("\n"))
    running = [line for line in paragraphs if len(line) >= PARAGRAPH and line[-1] in ".!?\"'"]
    found = (sentence for line in running for sentence in _END.split(line))
    return [sentence for sentence in found if len(words_of(sentence)) >= SENTENCE]


def articles(limit: int | None) -> Documents:
    """The sentences of each article of Wikipedia, at most so many of them."""
    found: Documents = []
    with bz2.open(datapath(ARTICLES)) as file:
        for _, text, _ in extract_pages(file, filter_namespaces=("0",)):
            if text.lstrip().upper().startswith("#REDIRECT"):
                continue
            if sentences := sentences_of(filter_wiki(text)):
                found.append(sentences)
            if len(found) == limit:
                break
    return found


def news() -> Documents:
    """The sentences of each news report."""
    lines = Path(datapath(NEWS)).read_text(encoding="utf-8").split("\n")
    return [sentences for sentences in map(sentences_of, lines) if sentences]


def reviews() -> Task:
    """Sentences of film reviews and their sentiment: of those that MR is of."""
    lines = Path(datapath(REVIEWS)).read_text(encoding="latin-1").split("\n")
    rows = [line.split(" ", 1) for line in lines if line]
    return Task([words_of(text) for _, text in rows], np.array([label == "__label__pos" for label, _ in rows], int))


class Texts(NamedTuple):
    """What is trained on and what is judged by.

    Attributes:
        train: the beginnings of the articles, and the news.
        held_out: the ends of the articles.
        topics: sentences of `held_out`, labelled by the article.
        sentiment: `reviews`.
        vocabulary: of the training texts.
    """

    train: Corpus
    held_out: Corpus
    topics: Task
    sentiment: Task
    vocabulary: Vocabulary


def texts(folder: Path, size: int, length: int, limit: int | None = None) -> Texts:
    """Write the corpora as the recipe has them and map them.

    Args:
        folder: for their files.
        size: words of the vocabulary.
        length: words of a sentence.
        limit: of the articles.
    """
    every = articles(limit)
    cuts = [round(TRAINED * len(one)) for one in every]
    train = [one[:cut] for one, cut in zip(every, cuts, strict=True)] + news()
    held_out = [one[cut:] for one, cut in zip(every, cuts, strict=True)]
    vocabulary = Vocabulary.count((words_of(sentence) for one in train for sentence in one), size)
    # As many sentences of each, so that none is the more likely guess.
    topics = [one[:ENOUGH] for one in held_out if len(one) >= ENOUGH][:TOPICS]
    labelled = [(words_of(sentence), label) for label, one in enumerate(topics) for sentence in one]
    return Texts(
        _corpus(folder / "train", train, vocabulary, length),
        _corpus(folder / "held-out", held_out, vocabulary, length),
        Task([words for words, _ in labelled], np.array([label for _, label in labelled])),
        reviews(),
        vocabulary,
    )


def _corpus(folder: Path, documents: Iterable[list[str]], vocabulary: Vocabulary, length: int) -> Corpus:
    folder.mkdir()
    book = folder / "books.txt"
    book.write_text("\n\n".join("\n".join(sentences) for sentences in documents), encoding="utf-8")
    write(folder, [book], vocabulary, length, {})
    return Corpus(folder)
