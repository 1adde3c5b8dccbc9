"""The parts of the reproduction, in the order of the page."""

from __future__ import annotations

from .encoders.part import ENCODERS
from .part import Part

PARTS: tuple[Part, ...] = (ENCODERS,)
