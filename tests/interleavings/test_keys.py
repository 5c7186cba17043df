"""Interleavings of unique keys."""

from __future__ import annotations

from tests.interleavings.keys import KEYS
from tests.interleavings.suite import Interleavings


class TestKeys(Interleavings):
    """Every order of their steps."""

    scenarios = KEYS
