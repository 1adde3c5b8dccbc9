"""The parts of the reproduction, in the order of the page."""

from __future__ import annotations

from .asymptotics.part import ASYMPTOTICS
from .depth.part import DEPTH
from .encoders.part import ENCODERS
from .part import Part
from .sentences.part import SENTENCES

PARTS: tuple[Part, ...] = (ASYMPTOTICS, ENCODERS, DEPTH, SENTENCES)
