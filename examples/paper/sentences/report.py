"""What the page says of the sentences: verdicts and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..claim import Claim, verdict
from ..statistics import bootstrap, spearman, spread

UNTRAINED, BOTH, CONTRASTIVE = "untrained", "alignment + uniformity", "contrastive"
MEASURES = {
    "alignment": "alignment",
    "uniformity": "uniformity",
    "retrieval": "neighbour among 10 nearest (%)",
    "topic": "topic (%)",
    "sentiment": "sentiment (%)",
}
SHARES = ("retrieval", "topic", "sentiment")
# A difference counts if it is more than so many standard errors, of the seeds and of the sentences together.
ERRORS = 2.0

Summary = Mapping[str, Any]
Encoder = Mapping[str, Any]


def blocks(summary: Summary) -> dict[str, str]:
    """The table, and the figure with its caption."""
    return {"table sentences": _table(summary), "figure sentences": _caption(summary)}


def claims(summary: Summary) -> list[Claim]:
    """What the paper says of sentences, and of its metrics."""
    counts = {"topic": summary["corpus"]["topic sentences"], "sentiment": summary["corpus"]["sentiment sentences"]}
    return [
        _comparison(
            summary,
            "sentiment",
            counts,
            (CONTRASTIVE, BOTH),
            statement="On sentences the best contrastive loss does better than alignment + uniformity: sentiment",
            source="Table 4: MR 77.51 to 73.76 %, CR 83.86 to 80.95 %",
        ),
        _comparison(
            summary,
            "topic",
            counts,
            (CONTRASTIVE, BOTH),
            statement="On sentences the best contrastive loss does better than alignment + uniformity: here of topics",
            source="Table 4; topics are ours",
        ),
        _comparison(
            summary,
            "topic",
            counts,
            (BOTH, UNTRAINED),
            statement="Alignment + uniformity alone make features of sentences that are of use",
            source="Section 5, Table 4",
        ),
        _agreement(summary),
    ]


def by_objective(summary: Summary, family: str | None = None) -> dict[str, list[Encoder]]:
    """The encoders of each objective, of a family or of all."""
    found: dict[str, list[Encoder]] = {}
    for encoder in summary["encoders"]:
        if family in (None, encoder["family"]):
            found.setdefault(encoder["objective"], []).append(encoder)
    return found


def combined(encoders: Sequence[Encoder]) -> NDArray[np.float64]:
    """Alignment and uniformity in one number: the sum of both, each standardised over the encoders."""
    metrics = np.array([[encoder["alignment"], encoder["uniformity"]] for encoder in encoders])
    standardised: NDArray[np.float64] = ((metrics - metrics.mean(axis=0)) / metrics.std(axis=0)).sum(axis=1)
    return standardised


def _comparison(
    summary: Summary,
    measure: str,
    counts: Mapping[str, int],
    families: tuple[str, str],
    *,
    statement: str,
    source: str,
) -> Claim:
    better, other = (_best(summary, family, measure) for family in families)
    gain = better[1]["mean"] - other[1]["mean"]
    errors = [_variance(found, counts[measure]) for _, found in (better, other)]
    margin = ERRORS * sum(errors) ** 0.5
    tested = (
        f"the accuracy of logistic regression on {_of(measure, summary)}, the best objective of either kind by its "
        f"mean over {better[1]['n']} seeds"
    )
    result = f"{_named(better)} against {_named(other)}: {100 * gain:+.1f} points".replace("-", "−")
    decides = (
        f"a difference of more than {100 * margin:.1f} points, two standard errors of seeds and of {counts[measure]} "
        "sentences; a smaller one is undecided"
    )
    return Claim(statement, source, tested, result, decides, verdict(gain > 0 if abs(gain) > margin else None))


def _best(summary: Summary, family: str, measure: str) -> tuple[str, dict[str, Any]]:
    """The objective of the family with the best mean, and its spread."""
    found = {
        objective: spread([encoder[measure] for encoder in encoders])
        for objective, encoders in by_objective(summary, family).items()
    }
    return max(found.items(), key=lambda one: one[1]["mean"])


def _variance(found: Mapping[str, Any], sentences: int) -> float:
    """Squared standard error of a mean accuracy: of the seeds, and of the sentences as if drawn anew each time."""
    mean, deviation = found["mean"], found["std"] or 0.0
    return float(deviation**2 / found["n"] + mean * (1 - mean) / sentences)


def _of(measure: str, summary: Summary) -> str:
    corpus = summary["corpus"]
    if measure == "sentiment":
        return f"{corpus['sentiment sentences']} sentences of film reviews in 2 classes"
    return f"{corpus['topic sentences']} held-out sentences of {corpus['topics']} articles, which article"


def _named(found: tuple[str, Mapping[str, Any]]) -> str:
    objective, values = found
    return f"{objective} {_percent(values)}"


def _percent(values: Mapping[str, Any]) -> str:
    deviation = f" ± {100 * values['std']:.1f}" if values["std"] is not None else ""
    return f"{100 * values['mean']:.1f}{deviation} %"


def _agreement(summary: Summary) -> Claim:
    trained = [encoder for encoder in summary["encoders"] if encoder["family"] != UNTRAINED]
    found = bootstrap(spearman, combined(trained), [encoder["topic"] for encoder in trained])
    holds = True if found.high < 0 else False if found.low > 0 else None
    single = ", ".join(
        f"{spearman([one[metric] for one in trained], [one['topic'] for one in trained]):+.2f} for {metric} alone"
        for metric in ("alignment", "uniformity")
    ).replace("-", "−")
    return Claim(
        "Encoders with low alignment and low uniformity together do better",
        "Section 5, Figure 9(b)",
        f"Spearman's correlation over the {len(trained)} trained encoders, of the sum of both metrics, each "
        "standardised, with the accuracy on topics",
        f"{found}; {single}",
        "the 95 % bootstrap interval is below 0; above 0 it does not hold",
        verdict(holds),
    )


def _table(summary: Summary) -> str:
    rows = [f"| objective | {' | '.join(MEASURES.values())} |", "| --- " + "| ---: " * len(MEASURES) + "|"]
    for objective, encoders in by_objective(summary).items():
        cells = []
        for measure in MEASURES:
            found = spread([encoder[measure] for encoder in encoders])
            factor, digits = (100, 1) if measure in SHARES else (1, 2)
            deviation = f" ± {factor * found['std']:.{digits}f}" if found["std"] is not None else ""
            cells.append(f"{factor * found['mean']:.{digits}f}{deviation}".replace("-", "−"))
        rows.append(f"| {objective} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _caption(summary: Summary) -> str:
    corpus = summary["corpus"]
    encoders = len(summary["encoders"])
    return (
        "![Alignment and uniformity of the sentence encoders, coloured by accuracy](images/paper/sentences.svg)\n\n"
        f"{encoders} encoders, a mark each: {corpus['sentences']:,} sentences trained on, metrics on neighbours "
        "among held-out ones. The colour is the accuracy on topics, of which guessing has "
        f"{100 / corpus['topics']:.0f} %."
    )
