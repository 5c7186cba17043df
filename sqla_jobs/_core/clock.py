"""A monotonic clock that tests can replace; wall clocks are the database's alone."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic(self) -> float:
        """Return seconds since an arbitrary moment; it never goes back."""
        return time.monotonic()
