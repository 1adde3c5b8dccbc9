"""``python -m examples.paper bookcorpus``: the paper's sentences of BookCorpus.

The paper's (Appendix B.3): 400 sentences in a row are a batch, its neighbouring sentences the positive pairs; two
encoders f and g as those of Quick-Thought vectors (Logeswaran & Lee, ICLR 2018), bidirectional GRUs with embeddings
of 620 dimensions trained from scratch, features of 1200 dimensions and unit length; Adam at 5e-4, gradients clipped
at norm 0.5, one pass; 50,000 sentences held out; logistic regression on MR and CR, its l2 strength among 1, 1/2, …
1/256 by ten folds. The losses are in `loss`.

Quick-Thought's, which the paper mostly follows: the 50,000 most frequent words, sentences cut at 30 words, an
embedding for each encoder, f and g side by side as the feature of a sentence, and each tenth of MR and CR tested once.

Ours, since neither says or it depends on the copy of the books: the end of a book ends its neighbours too; batches are
in random order; words by a regular expression.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from examples.digits.config import OptionError

from ...objective import Objective, metrics
from .. import options as shared
from ..checkpoint import Checkpoint
from ..published import show
from ..session import Session, session, unwrapped
from . import probe
from .corpus import VOCABULARY, Corpus, prepared
from .encoder import QuickThought
from .text import Vocabulary
from .train import Settings, stages_of, train_stage

# The published best without a contrastive loss, of MR and of CR; τ is that of the best contrastive one of MR.
BEST = Objective(align_weight=0.9, uniform_weight=0.1, t=5, temperature=0.075)
HELD_OUT = 50_000
# What a run has to go on with; the data follows from what is in the folder.
RECIPE = (*Objective._fields, "vocabulary", "length", "embedding", "dim", "batch",
          "epochs", "lr", "clip", "seed", "steps")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = shared.command_line(
        "bookcorpus",
        "Sentences of BookCorpus: recurrent encoders trained on neighbouring sentences, judged by logistic regression\n"
        "on MR and CR. DIR has the books as *.txt, a sentence a line, an empty line or the end of a file after each\n"
        "book, and SentEval's files MR/rt-polarity.pos, MR/rt-polarity.neg, CR/custrev.pos, CR/custrev.neg.\n\n"
        "Started again it goes on. Does it work? Two steps, after the words of all books were counted:\n"
        "    --data DIR --out trial --steps 2 --folds 2\n\n"
        "By default the published best of alignment + uniformity, 0.9 and 0.1 with t = 5. The best contrastive one\n"
        "of MR; with '--temperature 0.05' that of CR:\n"
        "    --data DIR --out c --align-weight 0 --uniform-weight 0 --contrastive-weight 1",
        out="bookcorpus-out",
    )
    shared.add_loss(command, BEST)
    for name, number, what in (
        ("vocabulary", 50_000, "most frequent words that have an embedding"),
        ("length", 30, "words at which a sentence is cut off"),
        ("embedding", 620, "dimension of a word's embedding"),
        ("dim", 1200, "dimension of the feature of each encoder"),
        ("batch", 400, "sentences of a step, of all processes"),
        ("epochs", 1, "passes over the books"),
        ("folds", 10, "of MR and CR, each tested once; the others' folds choose the strength"),
    ):
        command.add_argument(f"--{name}", type=int, default=number, help=f"{what} (%(default)s)")
    command.add_argument("--lr", type=float, default=5e-4, help="Adam's rate (%(default)s)")
    command.add_argument("--clip", type=float, default=0.5, help="norm at which gradients are clipped (%(default)s)")
    return command


def main(words: list[str]) -> int:
    """Do what the command line says.

    Returns:
        0; argparse ends the process with 2 for what cannot work.
    """
    return shared.guarded(parser(), work, words)


def work(options: argparse.Namespace) -> None:
    """Prepare the books, train, judge, show.

    Raises:
        OptionError: an option cannot work or data is missing; before any long work.
    """
    check(options)
    tasks = {name: probe.read_task(options.data, name) for name in probe.TASKS}
    for name, task in tasks.items():
        if options.folds > (most := probe.most_folds(task.labels)):
            raise OptionError(
                "folds", options.folds, f"must be at most {most}, by the sentences of the classes of {name}"
            )
    out = shared.folder_for_results(options)
    with session(options.device) as here:
        here.share("batch", options.batch)
        corpus = prepared(options.data, out / "corpus", options.vocabulary, options.length, here)
        trained = train_sentences(corpus, options.batch)
        about = corpus.about
        here.say(
            f"{about['sentences']} sentences, {about['books']} books, {about['words']} words, "
            f"{100 * about['unknown'] / max(about['words'], 1):.1f} % of them not among the {options.vocabulary}"
        )
        model = trained_model(options, corpus, trained // options.batch, here)
        vocabulary = Vocabulary.read(corpus.folder / VOCABULARY)
        found: dict[str, float] = {}
        for name, task in tasks.items():
            features = probe.encode(model, task.sentences, vocabulary, options.length)
            own = probe.fold_accuracies(features, task.labels, options.folds, first=here.rank, step=here.ranks)
            found[f"{name} (%)"] = 100 * here.mean(sum(own)) * here.ranks / options.folds
        found |= metrics(*probe.neighbour_features(model, corpus, trained, len(corpus)))
        if here.is_first:
            show("bookcorpus", found, out, recipe(options), tried=options.steps is not None)


def check(options: argparse.Namespace) -> None:
    """Refuse options that cannot work, and data that is not there."""
    shared.objective_of(options)
    shared.at_least(options, 1, "vocabulary", "length", "embedding", "epochs")
    shared.at_least(options, 2, "dim", "batch", "folds")
    if options.dim % 2:
        raise OptionError("dim", options.dim, "must be even, for the GRU's two directions")
    shared.positive(options, "lr", "clip")
    files = [file for task in probe.TASKS.values() for file in task]
    if missing := [file for file in files if not (options.data / file).is_file()]:
        reason = f"must have the books and, from SentEval, {', '.join(files)}; there is no {missing[0]}"
        raise OptionError("data", options.data, reason)


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """The options that a run has to go on with."""
    return {name.replace("_", "-"): getattr(options, name) for name in RECIPE}


def train_sentences(corpus: Corpus, batch: int) -> int:
    """The first so many sentences are trained on, the others held out.

    Raises:
        OptionError: there are too few of either.
    """
    trained = len(corpus) - min(HELD_OUT, max(4, len(corpus) // 10))
    if trained < batch:
        raise OptionError("batch", batch, f"must be at most {max(0, trained)}, the sentences that are trained on")
    if corpus.follows(trained, len(corpus)).sum() < 2:
        raise OptionError(
            "data", corpus.folder.parent, f"must have two neighbours among its last {len(corpus) - trained} sentences"
        )
    return trained


def trained_model(options: argparse.Namespace, corpus: Corpus, batches: int, here: Session) -> QuickThought:
    """Train on the first so many batches, or go on with it; the model in evaluation mode."""
    known = len(Vocabulary.read(corpus.folder / VOCABULARY))
    parallel = here.parallel(QuickThought(known, options.embedding, options.dim, options.seed))
    optimizer = torch.optim.Adam(parallel.parameters(), lr=options.lr, fused=True)
    model = unwrapped(parallel)
    asked = recipe(options) | {
        "data": f"{corpus.about['sentences']} sentences, vocabulary {corpus.about['vocabulary']}"
    }
    checkpoint = Checkpoint(options.out / "checkpoint.pt", asked, {"model": model, "optimizer": optimizer})
    settings = Settings(
        shared.objective_of(options), options.batch, options.clip, options.seed, options.steps, options.workers
    )
    stages = 1 if options.steps else options.epochs * stages_of(batches)
    for stage in range(checkpoint.load(here), stages):
        loss = train_stage(parallel, optimizer, corpus, batches, stage, settings, here)
        checkpoint.save(stage + 1, here)
        here.say(f"stage {stage + 1} of {stages}: loss {loss:.4f}")
    assert isinstance(model, QuickThought)
    return model.eval()
