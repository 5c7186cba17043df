"""Interleavings of queues with limits."""

from __future__ import annotations

from tests.interleavings.limits import LIMITS
from tests.interleavings.suite import Interleavings


class TestLimits(Interleavings):
    """Every order of their steps."""

    scenarios = LIMITS
