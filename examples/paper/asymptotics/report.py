"""What was found, in claims and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..claim import Claim, verdict
from ..part import Summary
from ..statistics import spread
from .text import number, span, table

# The margins of the verdicts.
AT_LIMIT = 0.01  # nats, the deviation at the largest M
RATE = 0.05  # of an exponent: that near it counts as M^-1
DRAW_RATE = 0.03  # of the mean exponent of one draw
ROUNDING = 1e-9  # of values in float64 that were minimised
BELOW = 1e-6  # by which a value is smaller than another for sure
HALF = 0.5  # of what independent uniform points exceed the limit by
IDENTITY = 1e-10
SELF_PAIRS = 1e-12
STANDARD_ERRORS = 3.0


class Rate(NamedTuple):
    """A configuration of the loss against M."""

    features: str
    cell: Mapping[str, Any]


def rates(summary: Summary) -> Iterator[Rate]:
    """Every configuration, with what its features are of."""
    for name, found in summary["rate"].items():
        for cell in found["temperatures"]:
            yield Rate(name, cell)


def kinds(summary: Summary) -> dict[tuple[str, float], list[Mapping[str, Any]]]:
    """The configurations by features and temperature; encoders of several seeds stand together."""
    found: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for name, cell in rates(summary):
        kind, index = name.split("-")
        label = f"uniform, D = {index[1:]}" if kind == "uniform" else f"{kind} encoder"
        found.setdefault((label, cell["temperature"]), []).append(cell)
    return found


def flows(summary: Summary) -> Iterator[tuple[str, float, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Dimension and t in words, the limit, the result and its runs."""
    for name, found in summary["flow"].items():
        dim, t = name.split("-")
        yield f"D = {dim[1:]}, t = {t[1:]}", found["limit"], found, found["runs"]


def claims(summary: Summary) -> list[Claim]:
    """The paper's statements of Section 4 and its appendix, and two that its proof and its code make."""
    return [
        _limit(summary),
        _bound(summary),
        _draw(summary),
        _second_term(summary),
        _minimiser(summary),
        _convergence(summary),
        _zero_mean(summary),
        _single(summary),
        _entropy(summary),
        _self_pairs(summary),
    ]


def _features(summary: Summary) -> str:
    encoders = sum(not name.startswith("uniform") for name in summary["rate"])
    dims = " and ".join(name.split("-d")[1] for name in summary["rate"] if name.startswith("uniform"))
    return (
        f"{encoders} encoders of the digit images, trained and as initialised, where a negative is any view of the held-out "
        f"images, and uniform features (D = {dims}), at "
        f"τ = {', '.join(f'{tau:g}' for tau in sorted({cell['temperature'] for _, cell in rates(summary)}))}"
    )


def _limit(summary: Summary) -> Claim:
    cells = [cell for _, cell in rates(summary)]
    last = [abs(cell["deviations"][-1]) for cell in cells]
    falls = all(abs(cell["deviations"][-1]) < abs(cell["deviations"][-3]) for cell in cells)
    closed = [abs(cell["closed_form"] - cell["limit"]) for cell in cells if "closed_form" in cell]
    largest = len(cells[0]["deviations"]) - 1
    return Claim(
        "With M negatives the contrastive loss minus log M tends to −E[pos]/τ + E[log E exp(neg/τ)].",
        "Theorem 1, Eq. 2",
        f"the expectation over M = 1 … 2^{largest} independent negatives, computed without sampling for {_features(summary)}",
        f"at M = 2^{largest} the expectation is within {number(max(last), '.1e')} nats of its limit in all {len(cells)} "
        f"configurations, at M = 1 it is off by {span((cell['deviations'][0] for cell in cells), '.2f')}; for uniform features "
        f"the limit agrees with its closed form to {number(max(closed), '.0e')}",
        f"at the largest M at most {AT_LIMIT} nats, and less than at a quarter of it, in every configuration",
        verdict(max(last) <= AT_LIMIT and falls),
    )


def _bound(summary: Summary) -> Claim:
    cells = [cell for _, cell in rates(summary)]
    values = [cell["exponent"]["value"] for cell in cells]
    highest = max(cell["exponent"]["high"] for cell in cells)
    tight = max(abs(value + 1) for value in values)
    ratios = [cell["coefficient"] / cell["predicted_coefficient"] for cell in cells]
    rate = (
        "The rate of the expectation is M^−1, as the delta method has it: **the bound is not tight**."
        if tight <= RATE
        else f"The exponents differ from −1 by up to {number(tight, '.2f')}."
    )
    return Claim(
        "The deviation from that limit decays in O(M^−1/2).",
        "Theorem 1, result 3",
        "the exponent of M, fitted where the first-order terms are below 1/16, its interval by resampling images",
        f"exponents {span(values)}; the upper ends of the intervals are at most {number(highest)}. {rate} Its coefficient, "
        f"E[c − Var/2] with c the positive's and Var the variance of a negative's e^(s/τ) over its mean, predicts what is "
        f"found at the largest M to a factor of {span(ratios, '.4f')}",
        "the whole interval at or below −1/2 in every configuration: a bound from above",
        verdict(highest <= -0.5),
    )


def _draw(summary: Summary) -> Claim:
    cells = [cell for _, cell in rates(summary)]
    anchors = [cell["anchor_exponent"]["value"] for cell in cells]
    batches = [cell["batch_exponent"]["value"] for name, cell in rates(summary) if not name.startswith("uniform")]
    mean = spread(anchors)
    ratios = [cell["anchor_coefficient"] / cell["anchor_predicted_coefficient"] for cell in cells]
    return Claim(
        "M^−1/2 is the rate at which the mean over one draw of M negatives nears its expectation.",
        "Theorem 1, proof of result 3",
        "root mean square deviation of `info_nce` from its expectation over draws of the negatives, of an anchor and of a batch "
        "of all anchors with the same negatives",
        f"exponents of an anchor {span(anchors, '.2f')}, their mean {number(mean['mean'])}; of a batch {span(batches, '.2f')}; "
        f"an anchor's coefficient over the predicted √Var: {span(ratios, '.2f')}",
        f"the mean exponent of an anchor within {DRAW_RATE} of −1/2",
        verdict(abs(mean["mean"] + 0.5) <= DRAW_RATE),
    )


def _runs(summary: Summary, objective: str) -> list[tuple[float, Mapping[str, Any]]]:
    return [(limit, run) for _, limit, _, runs in flows(summary) for run in runs if run["objective"] == objective]


def _second_term(summary: Summary) -> Claim:
    runs = _runs(summary, "second term")
    excess = [run["second_term"] - limit for limit, run in runs]
    others = {(limit, run["points"]): run["second_term"] for limit, run in _runs(summary, "uniformity")}
    apart = [abs(run["second_term"] - others[limit, run["points"]]) for limit, run in runs]
    return Claim(
        "Perfectly uniform features minimise the second term of the limit, as they do L_uniform at t = 1/(2τ).",
        "Theorem 1, result 2; Section 4.2",
        "points on the sphere that minimise the second term itself, beside its value for the uniform distribution, and beside "
        "points that minimise uniformity",
        f"none of {len(runs)} minimisations ends below the uniform distribution's value: they exceed it by "
        f"{span(excess, '.1e')}; points that minimise uniformity have a second term at most {number(max(apart), '.1e')} away",
        f"no value more than {number(ROUNDING, '.0e')} below, and the two objectives at most {AT_LIMIT} apart",
        verdict(min(excess) >= -ROUNDING and max(apart) <= AT_LIMIT),
    )


def _minimiser(summary: Summary) -> Claim:
    runs = _runs(summary, "uniformity")
    excess = [run["with_self"] - limit for limit, run in runs]
    below = [run["distinct"] - limit for limit, run in runs]
    collapsed = [run for _, run in runs if run["start"] == "collapsed"]
    others = [
        row["uniformity"] - found["rows"]["uniform"]["uniformity"]
        for found in summary["distributions"].values()
        for name, row in found["rows"].items()
        if name != "uniform"
    ]
    return Claim(
        "The uniform distribution alone minimises the mean Gaussian potential.",
        "Proposition 1",
        "points that minimise `uniformity` by L-BFGS from independent uniform ones and from points within 10^−3 of one, for "
        "several t, D and N, as distributions (pairs of a point with itself count), and other distributions, beside "
        "`metrics.uniformity_limit`",
        f"all {len(runs)} minimisations end above the limit, by {span(excess, '.1e')}, the {len(collapsed)} from collapse among "
        f"them; other distributions are {span(others, '.2f')} above. The mean over distinct pairs alone, which is what the loss "
        f"of a batch is, goes below: by {span((-value for value in below), '.1e')}",
        f"no run more than {number(ROUNDING, '.0e')} below the limit, every other distribution above it by more than {AT_LIMIT}",
        verdict(min(excess) >= -ROUNDING and min(others) > AT_LIMIT),
    )


def _by_size(found: Mapping[str, Any], key: str) -> dict[int, float]:
    """The mean over the runs of uniformity by the number of points."""
    values: dict[int, list[float]] = {}
    for run in found["runs"]:
        if run["objective"] == "uniformity":
            values.setdefault(run["points"], []).append(run[key])
    return {points: sum(many) / len(many) for points, many in values.items()}


def _convergence(summary: Summary) -> Claim:
    falls, shares, moments = [], [], []
    for _, limit, found, runs in flows(summary):
        reached = [value - limit for value in _by_size(found, "with_self").values()]
        falls.append(all(after < before for before, after in zip(reached, reached[1:], strict=False)))
        shares.append(reached[-1] / (found["independent"][-1] - limit))
        moments += [max(run["first_moment"], run["second_moment"]) for run in runs if run["points"] == runs[-1]["points"]]
    return Claim(
        "Points that minimise the mean potential of their pairs tend to the uniform distribution as there are more of them.",
        "Proposition 2",
        "the excess of N minimising points over the limit, beside that of N independent uniform points; their first two moments",
        f"the excess falls with N in {sum(falls)} of {len(falls)} settings, and at the largest N is {span(shares, '.1e')} of "
        f"independent points'; the deviations of the first two moments are at most {number(max(moments), '.1e')} of theirs",
        f"falls in every setting, and at the largest N below {HALF} of independent points' in every setting",
        verdict(all(falls) and max(shares) < HALF),
    )


def _zero_mean(summary: Summary) -> Claim:
    zero = [
        (name, row, found["rows"]["uniform"])
        for found in summary["distributions"].values()
        for name, row in found["rows"].items()
        if name not in ("uniform", "one point")
    ]
    inner = max(abs(row["inner_product"]) for _, row, _ in zero)
    gaps = [row["uniformity"] - uniform["uniformity"] for _, row, uniform in zero]
    runs = [(found["limit"], run) for found in summary["descents"].values() for run in found["runs"]]
    after = {
        objective: [run["uniformity"] - limit for limit, run in runs if run["objective"] == objective]
        for objective in ("inner product", "uniformity")
    }
    return Claim(
        "Mean inner product and mean squared distance are optimal wherever the mean is zero, the Gaussian potential is not.",
        "Section 4.1.2; Appendix A",
        "two antipodal points, a great circle, simplex and cross-polytope exactly; points minimised for either from the same "
        "concentrated start",
        f"all have mean inner product 0 (to {number(inner, '.0e')}), as the uniform distribution has, and uniformity "
        f"{span(gaps, '.2f')} above it. Minimising the inner product stops {span(after['inner product'], '.3f')} above the limit "
        f"of uniformity, minimising uniformity {span(after['uniformity'], '.1e')} above",
        f"mean inner products below {number(IDENTITY, '.0e')}, uniformity more than {AT_LIMIT} above, in every case",
        verdict(inner < IDENTITY and min(gaps) > AT_LIMIT and min(after["inner product"]) > AT_LIMIT),
    )


def _single(summary: Summary) -> Claim:
    gains, relative, misaligned, negative = [], [], [], 0
    for found in summary["single"].values():
        # Aligned features, so that it is a perfectly aligned encoder which is compared.
        values = [run["aligned_value"] for run in found["runs"]] + list(found["polygons"].values())
        gains.append(found["uniform"] - min(values))
        relative.append(gains[-1] / found["uniform"])
        misaligned += [run["alignment"] for run in found["runs"]]
        negative += min(found["spectrum"]) < 0
    settings = len(gains)
    lower = [gain for gain in gains if gain > BELOW]
    best = max(relative)
    polygons = [
        (name, found["polygons"], found["uniform"]) for name, found in summary["single"].items() if found["polygons"]
    ]
    name, corners, uniform = polygons[min(1, len(polygons) - 1)]
    least = min(corners, key=corners.get)
    holds = not lower and min(
        value - found["uniform"] for found in summary["single"].values() for value in found["alternatives"].values()
    ) > 0
    return Claim(
        "With a single negative, M = 1, perfectly aligned and uniform encoders are the exact minimisers of the contrastive loss.",
        "Theorem 2 (Appendix A)",
        "both sides of pairs of points minimised for the exact loss, the negative any of them, beside the value of aligned uniform "
        "features by quadrature; regular polygons; the signs of the loss's coefficients in Gegenbauer polynomials",
        f"in {len(lower)} of {settings} settings (D, τ) aligned features were found with a smaller loss than uniform ones, by up to "
        f"{number(100 * best, '.2f')} %. On the circle at τ = {name.split('tau')[1]} the corners of a regular {least}-gon have "
        f"{number(corners[least], '.6f')}, the uniform distribution {number(uniform, '.6f')}. In {negative} of {settings} settings "
        f"some coefficient is negative, so that the uniform distribution is no minimiser. The step of the proof that fails is that "
        f"the derivative of log(1 + e^(−r/2τ)), r the squared distance, be completely monotone up to sign: its third derivative "
        f"changes sign. Alignment is reached (at most {number(max(misaligned), '.1e')})",
        f"no aligned features with a loss smaller by more than {number(BELOW, '.0e')}, all alternatives larger",
        verdict(holds),
    )


def _entropy(summary: Summary) -> Claim:
    gaps, ordered, errors = [], [], {}
    for found in summary["entropy"].values():
        rows = found["rows"]
        gaps += [row["largest_gap"] for row in rows]
        for tau in {row["temperature"] for row in rows}:
            for points in {row["points"] for row in rows}:
                some = [row for row in rows if row["temperature"] == tau and row["points"] == points]
                by_truth = sorted(some, key=lambda row: row["truth"])
                means = [sum(row["estimates"]) / len(row["estimates"]) for row in by_truth]
                ordered.append(means == sorted(means))
        for row in rows:
            errors.setdefault(row["temperature"], []).append(sum(row["estimates"]) / len(row["estimates"]) - row["truth"])
    told = "; ".join(f"τ = {tau:g}: {span(many, '.2f')}" for tau, many in sorted(errors.items()))
    return Claim(
        "The second term over N features is minus a resubstitution estimate of their entropy by a von Mises-Fisher kernel of "
        "concentration 1/τ, plus log Z.",
        "Section 4.2",
        "the identity with SciPy's density; the estimate on uniform and von Mises-Fisher samples, whose entropy is known",
        f"the identity is exact to {number(max(gaps), '.0e')}, and in {sum(ordered)} of {len(ordered)} settings the estimate puts "
        f"the distributions in the order of their entropies. As a value it is biased upward by the kernel's width and downward by "
        f"the pair of a point with itself; estimate minus truth, in nats: {told}",
        f"the identity to {number(IDENTITY, '.0e')}, and the order right in every setting",
        verdict(max(gaps) <= IDENTITY and all(ordered)),
    )


def _self_pairs(summary: Summary) -> Claim:
    rows = [row for found in summary["self-pairs"].values() for row in found["rows"]]
    gap = max(row["largest_gap"] for row in rows)
    # The mean potential is unbiased; its logarithm is lower by half the variance.
    away = [abs(row["distinct_bias"] + row["distinct_std"] ** 2 / 2) / row["distinct_bias_error"] for row in rows]
    own = [abs(row["with_self_bias"] - row["predicted_bias"]) for row in rows]
    return Claim(
        "The mean over the distinct pairs of a batch, as in the paper's code, estimates the expectation that defines L_uniform.",
        "Section 4.1.2, Figure 6",
        "batches of B independent uniform points, with the pairs of a point with itself (L₁) and without (L₂)",
        f"L₂ = log((B e^L₁ − 1)/(B − 1)) to {number(gap, '.0e')}, for a batch and for each point. L₂ is off by at most "
        f"{number(max(away), '.1f')} standard errors of {span((row['distinct_bias_error'] for row in rows), '.0e')} after the "
        f"logarithm's −variance/2. L₁ is larger, by {span((row['with_self_bias'] for row in rows), '.4f')} where "
        f"log(1 + (e^−U − 1)/B), U the limit, says the same to {number(max(own), '.4f')}",
        f"the relation to {number(SELF_PAIRS, '.0e')}, every bias of L₂ within {STANDARD_ERRORS:g} standard errors",
        verdict(gap <= SELF_PAIRS and max(away) <= STANDARD_ERRORS),
    )


def blocks(summary: Summary) -> dict[str, str]:
    """The tables of the page."""
    return {
        "asymptotics rates": _rates_table(summary),
        "asymptotics flow": _flow_table(summary),
        "asymptotics distributions": _distributions_table(summary),
        "asymptotics single": _single_table(summary),
        "asymptotics entropy": _entropy_table(summary),
        "asymptotics self-pairs": _self_pairs_table(summary),
    }


def _plus_minus(values: list[float], form: str) -> str:
    found = spread(values)
    deviation = f" ± {number(found['std'], form)}" if found["std"] is not None else ""
    return number(found["mean"], form) + deviation


def _rates_table(summary: Summary) -> str:
    head = ["features", "τ", "limit", "M^−1 coefficient", "predicted", "exponent", "of an anchor's draw", "of a batch's"]
    rows = []
    for (label, tau), cells in kinds(summary).items():
        batch = "" if label.startswith("uniform") else _plus_minus([c["batch_exponent"]["value"] for c in cells], ".2f")
        rows.append(
            [
                label,
                f"{tau:g}",
                _plus_minus([cell["limit"] for cell in cells], ".2f"),
                _plus_minus([cell["coefficient"] for cell in cells], ".2f"),
                _plus_minus([cell["predicted_coefficient"] for cell in cells], ".2f"),
                _plus_minus([cell["exponent"]["value"] for cell in cells], ".3f"),
                _plus_minus([cell["anchor_exponent"]["value"] for cell in cells], ".2f"),
                batch,
            ]
        )
    return table(head, rows)


def _flow_table(summary: Summary) -> str:
    head = ["", "limit", "N", "independent points", "reached", "excess", "distinct pairs", "moments 1, 2", "at t = 0.5"]
    rows = []
    for label, limit, found, runs in flows(summary):
        sizes = list(dict.fromkeys(run["points"] for run in runs))
        for size, independent in zip(sizes, found["independent"], strict=True):
            some = [run for run in runs if run["points"] == size and run["objective"] == "uniformity"]
            reached = [run["with_self"] for run in some]
            rows.append(
                [
                    label,
                    number(limit, ".4f"),
                    str(size),
                    number(independent, ".4f"),
                    number(sum(reached) / len(reached), ".4f"),
                    span([value - limit for value in reached], ".0e"),
                    number(sum(run["distinct"] for run in some) / len(some), ".4f"),
                    ", ".join(number(max(run[key] for run in some), ".0e") for key in ("first_moment", "second_moment")),
                    number(max(run["others"][0] for run in some), ".0e"),
                ]
            )
    return table(head, rows)


def _distributions_table(summary: Summary) -> str:
    dims = list(summary["distributions"])
    names = list(summary["distributions"][dims[0]]["rows"])
    head = ["distribution", "mean inner product", "mean squared distance"]
    head += [f"uniformity, D = {dim[1:]}" for dim in dims]
    rows = []
    for name in names:
        found = [summary["distributions"][dim]["rows"][name] for dim in dims]
        first = found[0]
        rows.append(
            [name, number(first["inner_product"], ".0f"), number(first["squared_distance"], ".0f")]
            + [number(row["uniformity"]) for row in found]
        )
    return table(head, rows)


def _single_table(summary: Summary) -> str:
    head = ["", "aligned, uniform", "found, aligned", "lower by", "best polygon", "first negative degree"]
    head += ["unaligned", "one point", "antipodal", "great circle"]
    rows = []
    for name, found in summary["single"].items():
        dim, tau = name.split("-tau")
        value = min(run["aligned_value"] for run in found["runs"])
        gain = (found["uniform"] - min([value, *found["polygons"].values()])) / found["uniform"]
        polygons = found["polygons"]
        best = min(polygons, key=polygons.get) if polygons else None
        degree = next((k for k, sign in enumerate(found["spectrum"], 1) if sign < 0), None)
        alternatives = [number(other, ".4f") for other in found["alternatives"].values()]
        rows.append(
            [
                f"D = {dim[1:]}, τ = {tau}",
                number(found["uniform"], ".6f"),
                number(value, ".6f"),
                f"{number(100 * gain, '.3f')} %",
                "" if best is None else f"{number(polygons[best], '.6f')} ({best})",
                "none" if degree is None else str(degree),
                *alternatives,
                *[""] * (4 - len(alternatives)),
            ]
        )
    return table(head, rows)


def _entropy_table(summary: Summary) -> str:
    first = next(iter(summary["entropy"].values()))["rows"]
    temperatures = list(dict.fromkeys(row["temperature"] for row in first))
    most = max(row["points"] for row in first)
    rows = []
    for name, found in summary["entropy"].items():
        for concentration in dict.fromkeys(row["concentration"] for row in found["rows"]):
            some = [r for r in found["rows"] if r["concentration"] == concentration and r["points"] == most]
            label = "uniform" if concentration == 0 else f"von Mises-Fisher, κ = {concentration:g}"
            rows.append(
                [f"{label}, D = {name[1:]}", number(some[0]["truth"])] + [_plus_minus(row["estimates"], ".3f") for row in some]
            )
    return table([f"{most} points of", "entropy", *(f"τ = {tau:g}" for tau in temperatures)], rows)


def _self_pairs_table(summary: Summary) -> str:
    head = ["", "B", "L₁ − limit", "predicted", "L₂ − limit", "std of L₁", "std of L₂", "rms of L₁", "rms of L₂"]
    rows = []
    for name, found in summary["self-pairs"].items():
        for row in found["rows"]:
            values = [number(row[f"{which}_{key}"], ".5f") for key in ("std", "rms") for which in ("with_self", "distinct")]
            rows.append(
                [
                    f"D = {name[1:]}",
                    str(row["points"]),
                    number(row["with_self_bias"], ".4f"),
                    number(row["predicted_bias"], ".4f"),
                    f"{number(row['distinct_bias'], '.4f')} ± {number(row['distinct_bias_error'], '.4f')}",
                    *values,
                ]
            )
    return table(head, rows)
