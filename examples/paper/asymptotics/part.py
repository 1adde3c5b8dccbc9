"""The part of the reproduction."""

from __future__ import annotations

from ..part import Part
from .figures import figures
from .plan import jobs, summarize
from .report import blocks, claims

ASYMPTOTICS = Part("asymptotics", jobs, summarize, claims, blocks, figures)
