"""The claim about a single negative."""

from __future__ import annotations

from ...claim import Claim, verdict
from ...part import Summary
from .margins import BELOW, ROUNDING
from .text import number


def single(summary: Summary) -> Claim:
    """Whether the uniform distribution is the minimiser there too."""
    gains, relative, misaligned, negative = [], [], [], 0
    for found in summary["single"].values():
        # Aligned features, so that it is a perfectly aligned encoder which is compared.
        values = [run["aligned_value"] for run in found["runs"]] + list(found["polygons"].values())
        gains.append(found["uniform"] - min(values))
        relative.append(gains[-1] / found["uniform"])
        misaligned += [run["alignment"] for run in found["runs"]]
        negative += min(found["spectrum"]) < -ROUNDING
    settings = len(gains)
    lower = [gain for gain in gains if gain > BELOW]
    circles = {name: found for name, found in summary["single"].items() if found["polygons"]}
    shown = max(circles, key=lambda name: 1 - min(circles[name]["polygons"].values()) / circles[name]["uniform"])
    corners, uniform = circles[shown]["polygons"], circles[shown]["uniform"]
    least = min(corners, key=corners.get)
    others = [
        value - found["uniform"] for found in summary["single"].values() for value in found["alternatives"].values()
    ]
    return Claim(
        "With a single negative, M = 1, perfectly aligned and uniform encoders are the exact minimisers of the "
        "contrastive loss.",
        "Theorem 2 (Appendix A)",
        "both sides of pairs of points minimised for the exact loss, the negative any of them, beside the value of "
        "aligned uniform features by quadrature; regular polygons; the signs of the loss's coefficients in "
        "Gegenbauer polynomials",
        f"in {len(lower)} of {settings} settings (D, τ) aligned features were found with a smaller loss than uniform "
        f"ones, by up to {number(100 * max(relative), '.2f')} %. On the circle at τ = {shown.split('tau')[1]} the "
        f"corners of a regular {least}-gon have {number(corners[least], '.6f')}, the uniform distribution "
        f"{number(uniform, '.6f')}. In {negative} of {settings} settings some coefficient is negative, so that the "
        f"uniform distribution is no minimiser. Alignment is reached: at most {number(max(misaligned), '.1e')}",
        f"no aligned features with a loss smaller by more than {number(BELOW, '.0e')}, all alternatives larger",
        verdict(not lower and min(others) > 0),
    )
