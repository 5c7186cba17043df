"""Interleavings of a job's claims, leases and outcomes."""

from __future__ import annotations

from tests.interleavings.leases import LEASES
from tests.interleavings.suite import Interleavings


class TestLeases(Interleavings):
    """Every order of their steps."""

    scenarios = LEASES
