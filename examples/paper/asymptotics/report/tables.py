"""The tables of the page."""

from __future__ import annotations

from ...part import Summary
from ...statistics import spread
from .select import flows, kinds
from .text import number, span, table


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
    head = [
        "features",
        "τ",
        "limit",
        "M^−1 coefficient",
        "predicted",
        "exponent",
        "of an anchor's draw",
        "of a batch's",
    ]
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
                    ", ".join(
                        number(max(run[key] for run in some), ".0e") for key in ("first_moment", "second_moment")
                    ),
                    number(max(run["others"][0] for run in some), ".0e"),
                ]
            )
    return table(head, rows)


def _distributions_table(summary: Summary) -> str:
    dims = list(summary["distributions"])
    names = list(summary["distributions"][dims[0]]["rows"])
    head = ["distribution", "mean inner product", "mean squared distance"]
    head += [f"mean distance, D = {dim[1:]}" for dim in dims]
    head += [f"uniformity, D = {dim[1:]}" for dim in dims]
    rows = []
    for name in names:
        found = [summary["distributions"][dim]["rows"][name] for dim in dims]
        first = found[0]
        rows.append(
            [name, number(first["inner_product"], ".0f"), number(first["squared_distance"], ".0f")]
            + [number(row[key]) for key in ("distance", "uniformity") for row in found]
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
                f"{number(100 * gain, '.3f')} %" if gain > 0 else "not found",
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
                [f"{label}, D = {name[1:]}", number(some[0]["truth"])]
                + [_plus_minus(row["estimates"], ".3f") for row in some]
            )
    return table([f"{most} points of", "entropy", *(f"τ = {tau:g}" for tau in temperatures)], rows)


def _self_pairs_table(summary: Summary) -> str:
    head = ["", "B", "L₁ − limit", "predicted", "L₂ − limit", "std of L₁", "std of L₂", "rms of L₁", "rms of L₂"]
    rows = []
    for name, found in summary["self-pairs"].items():
        for row in found["rows"]:
            keys = [f"{which}_{key}" for key in ("std", "rms") for which in ("with_self", "distinct")]
            rows.append(
                [
                    f"D = {name[1:]}",
                    str(row["points"]),
                    number(row["with_self_bias"], ".4f"),
                    number(row["predicted_bias"], ".4f"),
                    f"{number(row['distinct_bias'], '.4f')} ± {number(row['distinct_bias_error'], '.4f')}",
                    *(number(row[key], ".5f") for key in keys),
                ]
            )
    return table(head, rows)
