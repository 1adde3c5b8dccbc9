"""The recipe on BookCorpus, on small generated books, and the part that runs it in small."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Ranks

import hyperkern
from examples.paper import statistics
from examples.paper.__main__ import main
from examples.paper.objective import Objective
from examples.paper.recipes import bookcorpus
from examples.paper.recipes.bookcorpus import corpus as corpus_module
from examples.paper.recipes.bookcorpus import probe, text, train
from examples.paper.recipes.bookcorpus.corpus import Corpus, pad, prepared, write
from examples.paper.recipes.bookcorpus.encoder import QuickThought
from examples.paper.recipes.bookcorpus.loss import Weights, loss_of
from examples.paper.recipes.bookcorpus.text import UNKNOWN, Vocabulary, words_of
from examples.paper.recipes.bookcorpus.train import Settings, Shares, stage_batches, stages_of, train_stage
from examples.paper.recipes.checkpoint import Checkpoint
from examples.paper.recipes.options import objective_of
from examples.paper.recipes.session import Session
from examples.paper.sentences import data as sentences_data
from examples.paper.sentences import report
from examples.paper.sentences.part import SENTENCES

ALONE = Session(torch.device("cpu"), 0, 1, None)
TASK_FILES = ("MR/rt-polarity.pos", "MR/rt-polarity.neg", "CR/custrev.pos", "CR/custrev.neg")
SMALL = ["--embedding", "4", "--dim", "4", "--batch", "8", "--folds", "2", "--workers", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals are a matter of other tests."""
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two books of 30 and 12 sentences, and 10 sentences of each class of MR and CR, those of a class alike."""
    folder = tmp_path / "data"
    for file in TASK_FILES:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        word = "good caf\xe9" if file.endswith("pos") else "bad"
        lines = [f"{word} w{i} film" for i in range(10)]
        (folder / file).write_bytes("\n".join(lines).encode("latin-1"))
    for name, sentences in (("a.txt", 30), ("more/b.txt", 12)):
        (folder / name).parent.mkdir(exist_ok=True)
        lines = [f"w{i % 7} w{i % 5} met {'good' if i % 2 else 'bad'} w{i % 3}." for i in range(sentences)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


def written(folder: Path, content: str, *, size: int = 100, length: int = 5) -> Corpus:
    """The corpus of one file."""
    book = folder / "book.txt"
    book.write_text(content, encoding="utf-8")
    write(folder, [book], Vocabulary.count(text.read_lines(book), size), length, {})
    return Corpus(folder)


def refused(words: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["bookcorpus", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err.split("error: ")[-1]


def test_words_are_lower_case_with_marks_of_their_own() -> None:
    assert words_of("  Don’t STOP, it's 3.5%!\n") == ["don’t", "stop", ",", "it's", "3", ".", "5", "%", "!"]
    assert words_of(" \t\u2003\n") == []


def test_words_of_any_script_are_the_same_however_they_are_encoded() -> None:
    assert words_of("Café МИР 東京") == ["café", "мир", "東京"]
    assert words_of("Cafe\u0301") == words_of("Caf\u00e9")


def test_the_vocabulary_has_the_most_frequent_words_and_equal_ones_by_the_alphabet() -> None:
    vocabulary = Vocabulary.count([["b", "a", "c"], ["c", "d"]], 2)
    assert vocabulary.words == ["c", "a"]
    assert len(vocabulary) == 4  # with padding and the unknown
    assert vocabulary.numbers(["a", "b", "c"]) == [3, UNKNOWN, 2]


def test_the_vocabulary_comes_back_from_its_file(tmp_path: Path) -> None:
    vocabulary = Vocabulary(["é", "東京", "\x1fx", "."])
    (tmp_path / "words").write_bytes(vocabulary.content())
    assert Vocabulary.read(tmp_path / "words").words == vocabulary.words


def test_rare_words_are_forgotten_where_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "COUNTED", 10)
    lines = [["often", "often", f"once{i}"] for i in range(100)]
    words = Vocabulary.count(lines, 50).words
    assert words[0] == "often"
    assert len(words) <= 11


def test_a_blank_line_and_the_end_of_a_file_end_a_book(tmp_path: Path) -> None:
    for name, content in (("1.txt", "\ufeffa b\nc\n\n   \nd"), ("2.txt", "e\nf\ng\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    books = [tmp_path / "1.txt", tmp_path / "2.txt"]
    vocabulary = Vocabulary(list("abcdefg"))
    write(tmp_path, books, vocabulary, 5, {})
    corpus = Corpus(tmp_path)
    assert (corpus.about["sentences"], corpus.about["books"], corpus.about["unknown"]) == (6, 3, 0)
    every = corpus.sentences(torch.arange(len(corpus)))
    assert every.words.tolist() == [[2, 3], [4, 0], [5, 0], [6, 0], [7, 0], [8, 0]]
    assert every.lengths.tolist() == [2, 1, 1, 1, 1, 1]
    assert corpus.follows(0, 6).tolist() == [True, False, False, True, True]
    assert corpus.follows(3, 5).tolist() == [True]


def test_sentences_are_cut_and_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = written(tmp_path, "a b c d e f\na\n" * 20)
    assert whole.sentences(torch.arange(2)).lengths.tolist() == [5, 1]
    monkeypatch.setattr(corpus_module, "_BUFFER", 3)
    (tmp_path / "pieces").mkdir()
    pieces = written(tmp_path / "pieces", "a b c d e f\na\n" * 20)
    every = torch.arange(40)
    assert torch.equal(whole.sentences(every).words, pieces.sentences(every).words)


@pytest.mark.parametrize(("size", "dtype"), [(2**16 - 2, "uint16"), (2**16 - 1, "int32")])
def test_numbers_of_any_vocabulary_fit(size: int, dtype: str, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(f"w{size - 1}\nw0\n")
    write(tmp_path, [book], Vocabulary([f"w{i}" for i in range(size)]), 3, {})
    corpus = Corpus(tmp_path)
    assert corpus.about["dtype"] == dtype
    assert corpus.sentences(torch.arange(2)).words.tolist() == [[size + 1], [2]]


def test_a_corpus_reaches_another_process_as_its_folder(tmp_path: Path) -> None:
    corpus = written(tmp_path, "a\nb\n" * 1000)
    sent = pickle.dumps(corpus)
    assert len(sent) < 500
    assert len(pickle.loads(sent)) == len(corpus)


def test_a_sentence_without_words_is_an_unknown_word() -> None:
    padded = pad([[5, 6], []])
    assert padded.words.tolist() == [[5, 6], [UNKNOWN, 0]]
    assert padded.lengths.tolist() == [2, 1]


def test_a_pass_has_every_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "STAGE", 64)
    assert stages_of(1000) == 16
    stages = [stage_batches(1000, 3, stage) for stage in range(32)]
    for first in (0, 16):
        assert torch.equal(torch.cat(stages[first : first + 16]).sort().values, torch.arange(1000))
    assert not torch.equal(stages[0], stages[16])


def test_padding_and_company_do_not_change_a_feature() -> None:
    model = QuickThought(20, 6, 8, seed=0)
    alone, beside = model.encode(pad([[3, 4]])), model.encode(pad([[3, 4], [5, 6, 7, 8], [9]]))
    assert alone.shape == (1, 16)
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    assert torch.allclose(beside.square().sum(dim=1), torch.full((3,), 2.0))
    assert not torch.allclose(beside[0], model.encode(pad([[4, 3]]))[0], atol=1e-4)  # order counts


def unit_features(number: int, *, seed: int) -> torch.Tensor:
    rows = torch.randn(number, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def beside(g: torch.Tensor) -> torch.Tensor:
    """As `Shares` gives a whole batch to g."""
    return torch.cat([g[:1], g, g[-1:]])


def test_within_a_book_the_losses_are_the_formulas_of_the_paper() -> None:
    number, t, alpha, temperature = 7, 3.0, 1.5, 0.25
    f, g = unit_features(number, seed=0), unit_features(number, seed=1)
    weights = Weights.of(torch.ones(number - 1, dtype=torch.bool))
    given = {"alpha": alpha, "t": t, "temperature": temperature}

    distance = [(f[i] - g[i + 1]).norm() ** alpha for i in range(number - 1)]
    middle = sum(distance[i - 1] + distance[i] for i in range(1, number - 1))
    align = (distance[0] + middle / 2 + distance[-1]) / number
    assert torch.allclose(loss_of(Objective(1, 0, 0, **given), f, beside(g), weights, None), align)

    uniform = sum((-t * torch.pdist(one).square()).exp().mean().log() for one in (f, g))
    assert torch.allclose(loss_of(Objective(0, 1, 0, **given), f, beside(g), weights, None), uniform)

    targets = torch.diag(torch.ones(number - 1), 1) + torch.diag(torch.ones(number - 1), -1)
    targets = (targets / targets.sum(dim=1, keepdim=True)).double()
    contrastive = torch.nn.functional.cross_entropy(f @ g.T / temperature, targets)
    assert torch.allclose(loss_of(Objective(0, 0, 1, **given), f, beside(g), weights, None), contrastive)

    every = loss_of(Objective(2, 0.5, 3, **given), 4 * f, 3 * beside(g), weights, None)  # of any length
    assert torch.allclose(every, 2 * align + 0.5 * uniform + 3 * contrastive)


def test_the_end_of_a_book_is_as_the_end_of_a_batch() -> None:
    follows = torch.tensor([True, False, False, True, True])  # books of 2, 1 and 3 sentences
    f, g = unit_features(6, seed=0), unit_features(6, seed=1)
    books = [Weights.of(torch.ones(number - 1, dtype=torch.bool)) for number in (2, 1, 3)]
    weights = Weights.of(follows)
    for whole, *parts in zip(weights, *books, strict=True):
        assert torch.equal(whole, torch.cat(parts))
    contrastive = Objective(0, 0, 1, temperature=0.5)
    logits = 2 * f @ g.T
    targets = torch.zeros(6, 6, dtype=torch.float64)
    for sentence, neighbours in ((0, [1]), (1, [0]), (3, [4]), (4, [3, 5]), (5, [4])):  # none of the third
        targets[sentence, neighbours] = 1 / len(neighbours)
    expected = torch.nn.functional.cross_entropy(logits, targets)
    assert torch.allclose(loss_of(contrastive, f, beside(g), weights, None), expected)


def test_the_defaults_are_the_published_best() -> None:
    options = bookcorpus.parser().parse_args(["--data", "books"])
    assert objective_of(options) == Objective(0.9, 0.1, 0, alpha=2, t=5, temperature=0.075)


def test_shares_are_a_batch_in_a_row_with_what_is_beside_them(tmp_path: Path) -> None:
    corpus = written(tmp_path, "a\nb\nc\n\nd\ne\nf\ng\nh\n")  # numbers from 2 on
    shares = [Shares(corpus, 6, Session(torch.device("cpu"), rank, 2, None))[2] for rank in (0, 1)]
    assert [share.x.words.flatten().tolist() for share in shares] == [[4, 5, 6], [7, 8, 9]]
    assert [share.y.words.flatten().tolist() for share in shares] == [[4, 4, 5, 6, 7], [6, 7, 8, 9, 9]]
    assert [share.weights.before.tolist() for share in shares] == [[0, 0, 0.5], [0.5, 0.5, 1]]
    assert [share.weights.after.tolist() for share in shares] == [[0, 1, 0.5], [0.5, 0.5, 0]]
    assert [share.weights.pair.tolist() for share in shares] == [[0, 1.5, 1], [1, 1.5, 0]]


@pytest.mark.parametrize("contrastive", [0, 1], ids=["alignment + uniformity", "contrastive"])
def test_training_pulls_neighbours_together(contrastive: int, tmp_path: Path) -> None:
    corpus = written(tmp_path, "\n\n".join(f"a{i}\nb{i}" for i in range(16)))
    model = QuickThought(34, 8, 8, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    objective = Objective(1 - contrastive, 1 - contrastive, contrastive, t=2, temperature=0.2)
    settings = Settings(objective, 32, 5.0, 0)
    losses = [train_stage(model, optimizer, corpus, 1, stage, settings, ALONE) for stage in range(60)]
    assert losses[-1] < losses[0] - 1
    x, y = probe.neighbour_features(model.eval(), corpus, 0, 32)
    nearest = (x @ y.T).argmax(dim=1)
    assert (nearest == torch.arange(16)).float().mean() > 0.8  # by chance 1 in 16


def test_the_probe_finds_classes_and_no_more_than_chance_where_there_are_none() -> None:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    apart = generator.normal(size=(120, 4)) + 5 * labels[:, None]
    assert np.mean(probe.fold_accuracies(apart, labels, 4)) > 0.95
    noise = probe.fold_accuracies(generator.normal(size=(120, 4)), labels, 4, strengths=(1.0,))
    assert 0.3 < np.mean(noise) < 0.7
    every = probe.fold_accuracies(apart - 4 * labels[:, None], labels, 4, strengths=(1.0,))
    shared = [probe.fold_accuracies(apart - 4 * labels[:, None], labels, 4, strengths=(1.0,), first=i, step=2)
              for i in (0, 1)]  # fmt: skip
    assert every == [shared[0][0], shared[1][0], shared[0][1], shared[1][1]]


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "checkpoint.pt", weights_only=True)["parts"]


def test_two_steps_give_a_result_beside_the_published_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["bookcorpus", "--data", str(data), "--out", str(tmp_path / "out"), "--steps", "2", *SMALL]) == 0
    said = capsys.readouterr().out
    assert "42 sentences, 2 books" in said
    assert "figures mean nothing" in said
    result = json.loads((tmp_path / "out" / "result.json").read_bytes())
    assert result["tried"] is True
    assert result["results"]["MR (%)"]["published"] == [77.51, 73.76]
    assert 0 <= result["results"]["CR (%)"]["here"] <= 100
    assert result["results"]["alignment"]["here"] > 0
    adam = state(tmp_path / "out")["optimizer"]["state"]
    assert {int(one["step"]) for one in adam.values()} == {2}


def test_an_interrupted_run_goes_on_bit_for_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bookcorpus", "--data", str(data), "--epochs", "3", *SMALL]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    save = Checkpoint.save

    def interrupted(self: Checkpoint, epochs: int, session: Session) -> None:
        save(self, epochs, session)
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", interrupted)
    assert main([*words, "--out", str(tmp_path / "parts")]) == 130
    calls = []
    monkeypatch.setattr(Checkpoint, "save", lambda *given: (calls.append(given[1]), save(*given)))
    assert main([*words, "--out", str(tmp_path / "parts")]) == 0
    assert calls == [2, 3]
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert all(torch.equal(whole["model"][name], parts["model"][name]) for name in whole["model"])
    results = [json.loads((tmp_path / out / "result.json").read_bytes()) for out in ("whole", "parts")]
    assert results[0] == results[1]


def test_a_run_goes_on_with_the_same_recipe_and_books_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--data", str(data), "--out", str(tmp_path / "out"), "--steps", "1", *SMALL]
    assert main(["bookcorpus", *given]) == 0
    assert "another vocabulary" in refused([*given, "--vocabulary", "5"], capsys)
    assert "another length" in refused([*given, "--length", "3"], capsys)
    assert "--lr" in refused([*given, "--lr", "0.1"], capsys)
    (data / "c.txt").write_text("one more\n")
    assert "another books" in refused(given, capsys)


def test_what_a_run_leaves_among_the_books_is_none(data: Path, capsys: pytest.CaptureFixture) -> None:
    for out in ("first", "second"):
        assert main(["bookcorpus", "--data", str(data), "--out", str(data / out), "--steps", "1", *SMALL]) == 0
        assert "42 sentences, 2 books" in capsys.readouterr().out


@pytest.mark.parametrize("missing", TASK_FILES)
def test_a_missing_file_is_named(missing: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (data / missing).unlink()
    said = refused(["--data", str(data), "--out", str(tmp_path / "out")], capsys)
    assert f"there is no {missing}" in said
    assert not (tmp_path / "out").exists()


def test_a_result_that_cannot_be_written_is_said_before_the_work(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out" / "result.json").mkdir(parents=True)
    assert "--out" in refused(["--data", str(data), "--out", str(tmp_path / "out"), *SMALL], capsys)
    assert not (tmp_path / "out" / "corpus").exists()


def test_books_without_neighbours_to_measure_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (data / "z.txt").write_text("one\n\n" * 40)
    assert "two neighbours" in refused(["--data", str(data), "--out", str(tmp_path / "out"), *SMALL], capsys)


def test_missing_books_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (data / "a.txt").unlink()
    (data / "more" / "b.txt").unlink()
    (data / "MR" / "readme.txt").write_text("no book")
    assert "*.txt" in refused(["--data", str(data), "--out", str(tmp_path / "out"), *SMALL], capsys)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dim", "7"], "--dim: must be even"),
        (["--temperature", "0"], "--temperature"),
        (["--align-weight", "-1"], "--align-weight"),
        (["--align-weight", "0", "--uniform-weight", "0"], "--align-weight"),
        (["--t", "nan"], "--t"),
        (["--vocabulary", "0"], "--vocabulary"),
        (["--batch", "39"], "--batch: must be at most 38"),
        (["--folds", "9"], "--folds: must be at most 8"),
    ],
    ids=["dim", "temperature", "negative", "no loss", "nan", "vocabulary", "batch", "folds"],
)
def test_options_that_cannot_work_are_named(
    words: list[str], named: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert named in refused(["--data", str(data), "--out", str(tmp_path / "out"), *SMALL, *words], capsys)


def on_a_rank(rank: int, folder: str, ranks: int) -> tuple[float, dict[str, torch.Tensor], int]:
    """Prepare the books and train for a stage of two steps, on so many processes."""
    here = Session(torch.device("cpu"), rank, ranks, hyperkern.Group() if ranks > 1 else None)
    corpus = prepared(Path(folder), Path(folder) / f"out{ranks}", 50, 10, here)
    parallel = here.parallel(QuickThought(52, 4, 6, seed=0))
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    objective = Objective(1, 1, 1, t=2, temperature=0.5)
    settings = Settings(objective, 12, 0.1, 0, steps=2)
    loss = train_stage(parallel, optimizer, corpus, 3, 0, settings, here)
    weights = {name.removeprefix("module."): value for name, value in parallel.state_dict().items()}
    return loss, weights, len(corpus)


def test_two_processes_train_as_one_does(data: Path, ranks: Ranks) -> None:
    alone = on_a_rank(0, str(data), 1)
    for loss, weights, sentences in ranks(2).run(on_a_rank, str(data), 2):
        assert sentences == alone[2] == 42
        assert loss == pytest.approx(alone[0], rel=1e-5)
        for name, value in alone[1].items():
            assert torch.allclose(weights[name], value, atol=1e-6), name


def test_paragraphs_become_sentences_and_headings_nothing() -> None:
    paragraph = (
        "It was '''so''' from the very start. \"Was it?\" asked Mr Brown, who had come late. It was! "
        "Then more words followed, as ever."
    )
    assert sentences_data.sentences_of(f"== Heading ==\n{paragraph}\nShort one.") == [
        "It was so from the very start.",
        '"Was it?" asked Mr Brown, who had come late.',
        "Then more words followed, as ever.",
    ]


def test_the_part_in_its_quickest_form() -> None:
    jobs = SENTENCES.jobs(True)
    results = {job.name: json.loads(json.dumps(job.run(), allow_nan=False)) for job in jobs}
    assert results[jobs[0].name] == jobs[0].run()  # the same again
    summary = SENTENCES.summarize(results)
    assert {encoder["family"] for encoder in summary["encoders"]} == {report.UNTRAINED, report.BOTH, report.CONTRASTIVE}
    assert all(0 <= encoder[share] <= 1 for encoder in summary["encoders"] for share in report.SHARES)
    assert len(SENTENCES.claims(summary)) == 4
    assert set(SENTENCES.blocks(summary)) == {"table sentences", "figure sentences"}
    assert set(SENTENCES.figures(summary)) == {"sentences"}


def made_up(**topic: float) -> dict[str, Any]:
    """Three encoders of each family, of which one has the accuracies that are given."""
    families = {"untrained": report.UNTRAINED, "both": report.BOTH, "contrastive": report.CONTRASTIVE}
    encoders = [
        {
            "objective": name,
            "family": family,
            "seed": seed,
            "alignment": 2 - topic[name] + 0.01 * seed,
            "uniformity": -topic[name],
            "retrieval": 0.1,
            "topic": topic[name] - 0.01 * seed,
            "sentiment": 0.5,
        }
        for name, family in families.items()
        for seed in range(3)
    ]
    corpus = {"topic sentences": 800, "sentiment sentences": 200, "topics": 20, "sentences": 9000}
    return {"encoders": encoders, "corpus": corpus}


@pytest.mark.parametrize(
    ("contrastive", "verdict"), [(0.7, "holds"), (0.5, "undecided"), (0.3, "does not hold")], ids=str
)
def test_verdicts_follow_the_figures(contrastive: float, verdict: str) -> None:
    sentiment, topics, useful, agreement = report.claims(made_up(untrained=0.2, both=0.49, contrastive=contrastive))
    assert sentiment.verdict == "undecided"
    assert topics.verdict == verdict
    assert f"{100 * (contrastive - 0.49):+.1f}".replace("-", "−") in topics.result
    assert useful.verdict == "holds"
    assert agreement.verdict == "holds"


def test_metrics_that_disagree_with_accuracy_are_said_to() -> None:
    summary = made_up(untrained=0.2, both=0.4, contrastive=0.6)
    for encoder in summary["encoders"]:
        encoder["alignment"], encoder["uniformity"] = encoder["topic"], encoder["topic"]
    assert report.claims(summary)[-1].verdict == "does not hold"


def test_the_margin_has_the_spread_of_the_seeds_in_it() -> None:
    summary = made_up(untrained=0.2, both=0.40, contrastive=0.48)
    assert report.claims(summary)[1].verdict == "holds"
    for encoder in summary["encoders"]:
        encoder["topic"] += 0.15 * (encoder["seed"] - 1)
    assert report.claims(summary)[1].verdict == "undecided"
