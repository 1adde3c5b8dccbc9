"""Claims of Theorem 1 about the limit."""

from __future__ import annotations

from ...claim import Claim, verdict
from ...part import Summary
from ...statistics import spread
from .margins import AT_LIMIT, DRAW_RATE, RATE
from .select import rates
from .text import number, span


def _features(summary: Summary) -> str:
    encoders = sum(not name.startswith("uniform") for name in summary["rate"])
    dims = " and ".join(name.split("-d")[1] for name in summary["rate"] if name.startswith("uniform"))
    return (
        f"{encoders} encoders of the digit images, trained and as initialised, where a negative is any view of the "
        f"held-out images, and uniform features (D = {dims}), at τ = "
        f"{', '.join(f'{tau:g}' for tau in sorted({cell['temperature'] for _, cell in rates(summary)}))}"
    )


def limit(summary: Summary) -> Claim:
    """There is one."""
    cells = [cell for _, cell in rates(summary)]
    last = [abs(cell["deviations"][-1]) for cell in cells]
    falls = all(abs(cell["deviations"][-1]) < abs(cell["deviations"][-3]) for cell in cells)
    closed = [abs(cell["closed_form"] - cell["limit"]) for cell in cells if "closed_form" in cell]
    largest = len(cells[0]["deviations"]) - 1
    return Claim(
        "With M negatives the contrastive loss minus log M tends to −E[pos]/τ + E[log E exp(neg/τ)].",
        "Theorem 1, Eq. 2",
        f"the expectation over M = 1 … 2^{largest} independent negatives, computed without sampling for "
        f"{_features(summary)}",
        f"at M = 2^{largest} the expectation is within {number(max(last), '.1e')} nats of its limit in all "
        f"{len(cells)} configurations, at M = 1 it is off by "
        f"{span((cell['deviations'][0] for cell in cells), '.2f')}; for uniform features the limit agrees with its "
        f"closed form to {number(max(closed), '.0e')}",
        f"at the largest M at most {AT_LIMIT} nats, and less than at a quarter of it, in every configuration",
        verdict(max(last) <= AT_LIMIT and falls),
    )


def bound(summary: Summary) -> Claim:
    """How fast it is reached."""
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
        "the exponent of M, fitted where the first-order terms are below 1/16, its interval by resampling images; "
        "for uniform features there is nothing to resample",
        f"exponents {span(values)}; the upper ends of the intervals are at most {number(highest)}. {rate} Its "
        "coefficient, E[c − Var/2] with c the positive's and Var the variance of a negative's e^(s/τ) over its "
        f"mean, predicts what is found at the largest M to a factor of {span(ratios, '.4f')}",
        "the whole interval at or below −1/2 in every configuration: a bound from above",
        verdict(highest <= -0.5),
    )


def draw(summary: Summary) -> Claim:
    """How fast one draw reaches it."""
    cells = [cell for _, cell in rates(summary)]
    anchors = [cell["anchor_exponent"]["value"] for cell in cells]
    batches = [cell["batch_exponent"]["value"] for name, cell in rates(summary) if not name.startswith("uniform")]
    mean = spread(anchors)
    ratios = [cell["anchor_coefficient"] / cell["anchor_predicted_coefficient"] for cell in cells]
    return Claim(
        "The error of one draw of M negatives, which bounds that deviation, is of order M^−1/2.",
        "Theorem 1, proof of result 3",
        "root mean square deviation of `info_nce` from its expectation over draws of the negatives, of an anchor "
        "and of a batch of all anchors with the same negatives",
        f"exponents of an anchor {span(anchors, '.2f')}, their mean {number(mean['mean'])}; of a batch "
        f"{span(batches, '.2f')}; an anchor's coefficient over the predicted √Var: {span(ratios, '.2f')}",
        f"the mean exponent of an anchor within {DRAW_RATE} of −1/2",
        verdict(abs(mean["mean"] + 0.5) <= DRAW_RATE),
    )
