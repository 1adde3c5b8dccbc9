"""The parts of the reproduction, in the order of the page."""

from __future__ import annotations

from . import asymptotics, sentences
from .depth.part import DEPTH
from .encoders.part import ENCODERS
from .part import Part

PARTS: tuple[Part, ...] = (asymptotics.PART, ENCODERS, DEPTH, sentences.PART)
