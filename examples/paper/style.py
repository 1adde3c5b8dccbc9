"""How the figures look: those of the demo, with text that stays text."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from examples.digits.picture import STYLE as DEMO

STYLE: dict[Any, Any] = {**DEMO, "svg.fonttype": "none"}
# Of the Okabe-Ito palette, which stays apart under the common colour-vision deficiencies.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def svg(figure: Figure) -> bytes:
    """A figure as a file that depends on the figure alone."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
