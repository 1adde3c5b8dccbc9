"""What the page says of the encoders: claims with their verdicts, and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..claim import Claim, verdict
from ..part import Summary
from ..statistics import Estimate
from .plan import DATA, TUNED_EPOCHS
from .summary import ACCURACIES, COLLAPSED, WIDE, change

LABELS = {"probe": "linear probe", "knn": "5-NN", "alignment": "alignment", "uniformity": "uniformity"}
CASES = tuple((data, accuracy) for data in DATA for accuracy in ACCURACIES)

# The margins, which were set before the encoders were trained.
STRONG = 0.5  # rank correlation
SPREADS = 2.0  # standard deviations over seeds
INSENSITIVE = 0.05  # of accuracy
RATIOS = (0.25, 4.0)


def claims(summary: Summary) -> list[Claim]:
    """The paper's statements on metrics and accuracy."""
    return [
        _agreement(summary),
        _both_matter(summary),
        _good_at_both(summary),
        _inverted_u(summary),
        _collapse(summary),
        _insensitive(summary),
        _one_alone(summary),
        _both_tuned(summary),
        _direct(summary),
    ]


def _estimate(summary: Summary, data: str, accuracy: str, name: str, among: str = "all") -> Estimate | None:
    found = summary["agreement"][data][accuracy][among][name]
    return None if found is None else Estimate(*found)


def _text(estimate: Estimate | None) -> str:
    return "–" if estimate is None else str(estimate)


def _above(estimate: Estimate | None, level: float) -> bool | None:
    """Whether a value is above a level; ``None`` if the interval has it, or there is none."""
    if estimate is None or estimate.low <= level <= estimate.high:
        return None
    return estimate.low > level


def _all(answers: Iterable[bool | None]) -> bool | None:
    """Whether all hold: not if one does not, undecided if one is."""
    found = list(answers)
    return False if False in found else None if None in found else True


def _listed(say: Callable[[str, str], str]) -> str:
    return "; ".join(f"{data}, {LABELS[accuracy]}: {say(data, accuracy)}" for data, accuracy in CASES)


def _encoders(summary: Summary) -> str:
    return " and ".join(f"{summary['counts'][data]['encoders']} on {data}" for data in DATA)


def _agreement(summary: Summary) -> Claim:
    found = {case: _estimate(summary, *case, "combination") for case in CASES}
    return Claim(
        "The two metrics agree with accuracy: encoders of low alignment and low uniformity are the accurate ones",
        "Section 5, Figure 5",
        "Spearman's rank correlation of accuracy with −(alignment + uniformity), weights 1 and 1, over "
        f"{_encoders(summary)} trained encoders; 1 is perfect agreement.",
        _listed(lambda *case: _text(found[case])) + ".",
        f"the 95 % bootstrap interval is above {STRONG} in all four cases (does not hold: below it in one).",
        verdict(_all(_above(one, STRONG) for one in found.values())),
    )


def _both_matter(summary: Summary) -> Claim:
    names = ("alignment given uniformity", "uniformity given alignment")
    found = {(*case, name): _estimate(summary, *case, name) for case in CASES for name in names}
    return Claim(
        "Each of the two counts: neither metric alone tells what both tell",
        "Section 5, Figure 5",
        "partial rank correlations of accuracy with either metric, negated, given the other.",
        _listed(lambda *case: ", ".join(f"{name.split()[0]} {_text(found[(*case, name)])}" for name in names)) + ".",
        "all intervals are above 0 (does not hold: one is below).",
        verdict(_all(_above(one, 0) for one in found.values())),
    )


def _good_at_both(summary: Summary) -> Claim:
    gains = {case: summary["halves"][case[0]][case[1]]["gain"] for case in CASES}
    found = {case: None if gain is None else Estimate(*(100 * value for value in gain)) for case, gain in gains.items()}

    thirds = " and ".join(f"{summary['halves'][data]['probe']['best_third']} on {data}" for data in DATA)

    def say(data: str, accuracy: str) -> str:
        groups = summary["halves"][data][accuracy]["groups"]
        means = ", ".join(f"{name} {_percent(one['mean'])} ({one['n']})" for name, one in groups.items())
        gain = found[data, accuracy]
        return means + ("" if gain is None else f"; gain {gain} points")

    return Claim(
        "Encoders that are good at both metrics are more accurate than those that are good at one only",
        "Section 5, Figure 5",
        "mean accuracy of the encoders in the better half of both metrics against those in the better half of one only "
        f"(their number in brackets). In the best third of both are {thirds}, since one is traded for the other.",
        _listed(say) + ".",
        "the interval of the gain over the better of the two groups is above 0 in all four cases (does not hold: below "
        "0 in one; undecided: fewer than five encoders in a group).",
        verdict(_all(_above(one, 0) for one in found.values())),
    )


def _margin(summary: Summary, data: str, *rows: Mapping[str, Any]) -> float:
    """The largest of the standard deviations over seeds and of the errors of one accuracy on the held-out rows."""
    errors = (math.sqrt(row["mean"] * (1 - row["mean"]) / summary["held_out"][data]) for row in rows)
    return max(*(row["std"] or 0.0 for row in rows), *errors)


def _peak(summary: Summary, data: str, accuracy: str) -> Mapping[str, Any]:
    return max(summary["ratio"][data], key=lambda row: row[accuracy]["mean"])


def _inverted_u(summary: Summary) -> Claim:
    def holds(data: str, accuracy: str) -> bool | None:
        rows, peak = summary["ratio"][data], _peak(summary, data, accuracy)
        if peak in (rows[0], rows[-1]):
            return False
        ends = [row[accuracy] for row in (rows[0], rows[-1])]
        clear = all(
            peak[accuracy]["mean"] - end["mean"] > SPREADS * _margin(summary, data, peak[accuracy], end) for end in ends
        )
        return True if clear else None

    def say(data: str, accuracy: str) -> str:
        rows, peak = summary["ratio"][data], _peak(summary, data, accuracy)
        return ", ".join(f"{_percent(row[accuracy])} at {row['value']:g}" for row in (rows[0], peak, rows[-1]))

    return Claim(
        "Over the ratio of the weights accuracy is an inverted U: both properties are necessary",
        "Section 5, Figure 7",
        "encoders of one recipe, weights of alignment : uniformity from 1:100 to 100:1, three seeds each.",
        _listed(say) + ".",
        f"the best ratio lies inside, and above either end by more than {SPREADS:g} × the largest of the standard "
        "deviations over seeds and the standard error of one accuracy (does not hold: it is an end; undecided: not by "
        "as much).",
        verdict(_all(holds(*case) for case in CASES)),
    )


def _collapse(summary: Summary) -> Claim:
    lasts = {data: summary["ratio"][data][-1]["uniformity"] for data in DATA}
    firsts = {
        data: next((row["value"] for row in summary["ratio"][data] if row["uniformity"]["mean"] > COLLAPSED), None)
        for data in DATA
    }

    def say(data: str) -> str:
        first = f"from {firsts[data]:g}:1 on" if firsts[data] is not None else "at no ratio"
        return f"{data}: exp(uniformity) {math.exp(lasts[data]['mean']):.3f} at the largest ratio, above 0.9 {first}"

    return Claim(
        "Where alignment outweighs uniformity by far, all inputs are mapped to one point: exp(uniformity) is 1",
        "Section 5, Figure 7",
        "the same encoders; a mean Gaussian potential of 1 is one point.",
        "; ".join(map(say, DATA)) + ".",
        "exp(uniformity) above 0.9 at the largest ratio on both data sets, in the mean over seeds.",
        verdict(all(lasts[data]["mean"] > COLLAPSED for data in DATA)),
    )


def _insensitive(summary: Summary) -> Claim:
    def loss(data: str, accuracy: str) -> float:
        near = [row[accuracy]["mean"] for row in summary["ratio"][data] if RATIOS[0] <= row["value"] <= RATIOS[1]]
        return float(_peak(summary, data, accuracy)[accuracy]["mean"] - min(near))

    losses = {case: loss(*case) for case in CASES}
    return Claim(
        "As long as the ratio is not too large, below 4 for instance, accuracy depends little on it",
        "Section 5, Figure 7",
        f"the same encoders: how far the worst ratio between {RATIOS[0]:g} and {RATIOS[1]:g} is below the best of all.",
        _listed(lambda *case: f"{100 * losses[case]:.1f} points") + ".",
        f"at most {100 * INSENSITIVE:g} points in all four cases.",
        verdict(all(one <= INSENSITIVE for one in losses.values())),
    )


def _change(summary: Summary, data: str, objective: str, measure: str) -> Estimate | None:
    return change(summary["tuned"][data][objective][measure])


def _moves(summary: Summary, objective: str, up: Sequence[str], down: Sequence[str]) -> bool | None:
    """Whether measures rise and fall over a fine-tuning, on both data sets."""
    rises = [_above(_change(summary, data, objective, name), 0) for data in DATA for name in up]
    falls = [_above(_change(summary, data, objective, name), 0) for data in DATA for name in down]
    return _all([*rises, *(None if rise is None else not rise for rise in falls)])


def _moved(summary: Summary, objective: str) -> str:
    def say(data: str) -> str:
        parts = []
        for name, label in LABELS.items():
            estimate, scale = _change(summary, data, objective, name), 100 if name in ACCURACIES else 1
            if estimate is not None:
                parts.append(f"{label} {Estimate(*(scale * value for value in estimate))}")
        return f"{data}: {', '.join(parts)}"

    return f"{TUNED[objective]}, {'; '.join(map(say, DATA))}"


# The objectives of the fine-tuning.
TUNED = {
    "align": "align only",
    "uniform": "uniform only",
    "both": "both",
    "contrastive": "contrastive at τ = 1/4",
}
TUNED_BY = (
    f"encoders trained by the contrastive loss at τ = 2.5, then fine-tuned for {TUNED_EPOCHS[-1]} epochs, four seeds; "
    "change from start to end with its 95 % interval (Student's t), accuracies in points."
)


def _one_alone(summary: Summary) -> Claim:
    worse = list(ACCURACIES)
    return Claim(
        "Fine-tuned for one property alone, an encoder gains in it, and loses in the other and in accuracy",
        "Section 5, Figure 8",
        TUNED_BY,
        f"{_moved(summary, 'align')}. {_moved(summary, 'uniform')}.",
        "all intervals lie on the side that the paper says, on both data sets and for both accuracies (does not hold: "
        "one lies on the other side).",
        verdict(
            _all(
                [
                    _moves(summary, "align", ["uniformity"], ["alignment", *worse]),
                    _moves(summary, "uniform", ["alignment"], ["uniformity", *worse]),
                ]
            )
        ),
    )


def _both_tuned(summary: Summary) -> Claim:
    return Claim(
        "Fine-tuned for both properties, an encoder becomes more accurate",
        "Section 5, Figure 8",
        TUNED_BY,
        f"{_moved(summary, 'both')}. For comparison, {_moved(summary, 'contrastive')}.",
        "the intervals of both accuracies are above 0 on both data sets (does not hold: one is below).",
        verdict(_moves(summary, "both", ACCURACIES, [])),
    )


def _direct(summary: Summary) -> Claim:
    best = {case: summary["best"][case[0]][case[1]] for case in CASES}

    def say(data: str, accuracy: str) -> str:
        direct, contrastive = (best[data, accuracy][family] for family in ("align_uniform", "contrastive"))
        ours, theirs = f"ratio {direct['value']:g}", f"τ = {contrastive['value']:g}"
        return f"{_percent(direct)} ({ours}) against {_percent(contrastive)} ({theirs})"

    def holds(data: str, accuracy: str) -> bool:
        direct, contrastive = (best[data, accuracy][family] for family in ("align_uniform", "contrastive"))
        return bool(direct["mean"] >= contrastive["mean"] - _margin(summary, data, direct, contrastive))

    return Claim(
        "Optimising the two metrics directly gives representations as good as the contrastive loss, or better",
        "Section 5, Table 1",
        "of nine ratios (t = 2) and of nine temperatures the best by cross-validation on training rows; its held-out "
        "accuracy, three seeds.",
        _listed(say) + ".",
        "not lower by more than the largest of the standard deviations over seeds and the standard error of one "
        "accuracy, in all four cases.",
        verdict(all(holds(*case) for case in CASES)),
    )


def _percent(value: Mapping[str, Any] | float | None) -> str:
    """A mean with its standard deviation, or a mean, in per cent."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return f"{100 * value['mean']:.1f}" + ("" if value["std"] is None else f" ± {100 * value['std']:.1f}") + " %"
    return f"{100 * value:.1f} %"


def blocks(summary: Summary) -> dict[str, str]:
    """The tables."""
    return {
        "encoders counts": _counts(summary),
        "encoders agreement": _agreement_table(summary),
        "encoders remarks": _remarks(summary),
        "encoders ratios": _ratio_table(summary),
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def _remarks(summary: Summary) -> str:
    """What the table says beyond the claims."""

    def which(holds: Callable[[str, str], bool]) -> str:
        return (
            ", ".join(f"{data} by {LABELS[accuracy]}" for data, accuracy in CASES if holds(data, accuracy)) or "no case"
        )

    def of(data: str, accuracy: str, name: str) -> Estimate:
        return _estimate(summary, data, accuracy, name) or Estimate(math.nan, math.nan, math.nan)

    wrong = which(lambda *case: of(*case, "alignment").high < 0)
    better = which(lambda *case: of(*case, "contrastive").low > of(*case, "combination").high)
    return (
        "What the table says besides: the encoders of *higher* alignment are the more accurate ones, the interval "
        f"below 0, in {wrong}. The held-out contrastive loss, for which both count, agrees with accuracy better "
        f"than the fixed combination of the two metrics, the intervals apart, in {better}."
    )


def _counts(summary: Summary) -> str:
    rows = []
    for data in DATA:
        counts = summary["counts"][data]
        of_sweep = [
            found
            for one, found in zip(summary["encoders"], summary["measures"][data], strict=True)
            if one["group"] == "sweep" and found is not None
        ]
        ranges = [f"{_percent(min(values))} to {_percent(max(values))}" for values in _values(of_sweep)]
        rows.append([data, *(str(counts[name]) for name in ("encoders", "diverged", "collapsed")), *ranges])
    return _table(["", "encoders", "diverged", "collapsed", *(LABELS[name] for name in ACCURACIES)], rows)


def _values(measures: Sequence[Mapping[str, float]]) -> list[list[float]]:
    return [[found[name] for found in measures] for name in ACCURACIES]


def _agreement_table(summary: Summary) -> str:
    weights = ", ".join(f"{summary['weights'][data][accuracy]:g}" for data, accuracy in CASES)
    names = {
        "alignment": "alignment",
        "uniformity": "uniformity",
        "contrastive": "contrastive loss, τ = 1/4",
        "combination": "**1·alignment + 1·uniformity**",
        "chosen": f"alignment + w·uniformity, w the best on the other data set: {weights}",
        "gain": "1·A + 1·U beyond the better metric",
        "alignment given uniformity": "alignment, given uniformity",
        "uniformity given alignment": "uniformity, given alignment",
        "explained by alignment": "R² of ranks: alignment",
        "explained by uniformity": "R² of ranks: uniformity",
        "explained by both": "R² of ranks: both",
    }
    rows = [[label, *(_text(_estimate(summary, *case, name)) for case in CASES)] for name, label in names.items()]
    wide = [_text(_estimate(summary, *case, "combination", "wide")) for case in CASES]
    of_wide = " and ".join(str(summary["counts"][data]["wide"]) for data in DATA)
    rows.append([f"1·A + 1·U, of {WIDE} and more dimensions ({of_wide} encoders)", *wide])
    return _table(["rank correlation of accuracy with", *(f"{data}, {LABELS[name]}" for data, name in CASES)], rows)


def _ratio_table(summary: Summary) -> str:
    rows = []
    for index, first in enumerate(summary["ratio"][DATA[0]]):
        row = [f"{first['value']:g}"]
        for data in DATA:
            of_data = summary["ratio"][data][index]
            row += [f"{of_data[name]['mean']:.3f}".replace("-", "−") for name in ("alignment", "uniformity")]
            row += [_percent(of_data[name]) for name in ACCURACIES]
        rows.append(row)
    names = ("alignment", "uniformity", *ACCURACIES)
    return _table(["alignment : uniformity", *(f"{data}, {LABELS[name]}" for data in DATA for name in names)], rows)
