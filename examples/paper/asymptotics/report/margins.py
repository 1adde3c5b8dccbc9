"""The margins of the verdicts."""

from __future__ import annotations

AT_LIMIT = 0.01  # nats, the deviation at the largest M
RATE = 0.05  # of an exponent: that near it counts as M^-1
DRAW_RATE = 0.03  # of the mean exponent of one draw
ROUNDING = 1e-9  # of values in float64 that were minimised
DESCENT = 1e-5  # of the limit, to which a descent that gains less than 1e-7 in ten iterations comes
BELOW = 1e-6  # by which a value is smaller than another for sure
HALF = 0.5  # of what independent uniform points exceed the limit by
IDENTITY = 1e-10
SELF_PAIRS = 1e-12
STANDARD_ERRORS = 3.0
