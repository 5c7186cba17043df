"""How often each client may call: token buckets in this process, a bounded number."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

from sqla_jobs._core.clock import SystemClock
from sqla_jobs.errors import JobValueError

MAX_CLIENTS = 10_000
"""Clients remembered; whoever called the longest ago is forgotten first."""


class RateLimiter:
    """
    Lets each client make so many requests per minute, all at once if it likes.

    Args:
        per_minute: Requests, 1 or more.
        clock: For tests; default the system's.
    """

    def __init__(self, per_minute: int, *, clock: SystemClock | None = None) -> None:
        if type(per_minute) is not int or per_minute < 1:
            raise JobValueError(
                f"requests_per_minute must be 1 or more, got {per_minute!r}"
            )
        self._size, self._per_second = float(per_minute), per_minute / 60
        self._clock = clock or SystemClock()
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def seconds_to_wait(self, client: Hashable) -> int:
        """Take one request from the client's bucket; the seconds to wait if empty."""
        now = self._clock.monotonic()
        left, at = self._buckets.pop(client, (self._size, now))
        left = min(self._size, left + (now - at) * self._per_second)
        allowed = left >= 1
        self._buckets[client] = (left - allowed, now)
        while len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if allowed else math.ceil((1 - left) / self._per_second)
