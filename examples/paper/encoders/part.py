"""The part of the reproduction."""

from __future__ import annotations

from ..part import Part
from .figures import figures
from .plan import jobs
from .report import blocks, claims
from .summary import summarize

ENCODERS = Part("encoders", jobs, summarize, claims, blocks, figures)
