"""Interleavings of held jobs."""

from __future__ import annotations

from tests.interleavings.holds import HOLDS
from tests.interleavings.suite import Interleavings


class TestHolds(Interleavings):
    """Every order of their steps."""

    scenarios = HOLDS
