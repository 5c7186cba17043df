"""Outcomes waiting to be written, gathered into batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from sqla_jobs._core.settle import Settlement
from sqla_jobs.runner.attempt import Attempt

BATCH = 500
AGAIN = 0.05  # seconds until an outcome whose row was locked is tried again
LINGER = 0.005  # seconds a first outcome waits for company while jobs are running


class Outgoing(NamedTuple):
    """A settlement to write; *refused* if it replaces one that no row could hold."""

    attempt: Attempt
    settlement: Settlement
    refused: bool = False


class Outbox:
    """A thread-safe queue of settlements."""

    def __init__(self) -> None:
        self._items: deque[Outgoing] = deque()
        self._later: list[Outgoing] = []
        self._later_at = 0.0
        self._filled = threading.Condition()
        self.closed = False
        self._hurry = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Outgoing, *, hurry: bool) -> None:
        """Add an outcome; *hurry* when nothing else runs that could join it."""
        with self._filled:
            self._items.append(item)
            self._hurry = self._hurry or hurry or len(self._items) >= BATCH
            if len(self._items) == 1 or self._hurry:
                self._filled.notify_all()

    def put_back(self, items: Sequence[Outgoing]) -> None:
        """Offer *items* again in a moment: somebody else is writing their rows."""
        with self._filled:
            self._later.extend(items)
            self._later_at = time.monotonic() + AGAIN

    def close(self) -> None:
        """Let `gather` return None once everything is taken."""
        with self._filled:
            self.closed = True
            self._filled.notify_all()

    def drop(self) -> None:
        """Give up what was put back: nobody waits for it any more."""
        with self._filled:
            self._later.clear()
            self._filled.notify_all()

    def take(self) -> list[Outgoing]:
        """Return a batch of what is there, without waiting."""
        with self._filled:
            return self._take()

    def gather(self) -> list[Outgoing] | None:
        """Wait for outcomes, linger for more, and return a batch; None when closed."""
        with self._filled:
            while not self._ready():
                if self.closed and not self._later:
                    return None
                self._filled.wait(self._wait() if self._later else None)
            until = time.monotonic() + LINGER
            while not (self._hurry or self.closed):
                left = until - time.monotonic()
                if left <= 0 or not self._filled.wait(left):
                    break
            return self._take()

    def _ready(self) -> bool:
        if self._later and self._wait() <= 0:
            self._items.extend(self._later)
            self._later.clear()
        return bool(self._items)

    def _wait(self) -> float:
        return self._later_at - time.monotonic()

    def _take(self) -> list[Outgoing]:
        self._ready()
        count = min(BATCH, len(self._items))
        batch = [self._items.popleft() for _ in range(count)]
        self._hurry = len(self._items) >= BATCH
        return batch
