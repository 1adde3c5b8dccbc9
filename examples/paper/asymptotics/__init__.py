"""The paper's theory: the limit of the contrastive loss and its rate, minimisers, and what its terms estimate."""

from __future__ import annotations

from ..part import Part
from .figures import figures
from .plan import jobs, summarize
from .report import blocks, claims

PART = Part("asymptotics", jobs, summarize, claims, blocks, figures)
