"""Interleavings of ordered channels."""

from __future__ import annotations

from tests.interleavings.channels import CHANNELS
from tests.interleavings.suite import Interleavings


class TestChannels(Interleavings):
    """Every order of their steps."""

    scenarios = CHANNELS
