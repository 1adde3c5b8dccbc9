"""The parts of the reproduction, in the order of the page."""

from __future__ import annotations

from .depth.part import DEPTH
from .part import Part

PARTS: tuple[Part, ...] = (DEPTH,)
