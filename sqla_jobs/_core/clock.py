"""The only module that reads the time; everything else is given it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a runner measures its own waits and deadlines with."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; it never goes back."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; it never goes back."""
        return time.monotonic()


def utcnow() -> datetime:
    """Return this machine's time, aware; for ids and logs, never for leases."""
    return datetime.now(UTC)
