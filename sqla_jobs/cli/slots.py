"""When a supervisor starts a child again, and when it gives up: pure."""

from __future__ import annotations

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

QUICK_SECONDS = 10.0  # a child that ran for less did not really run
MAX_PAUSE = 30.0  # seconds between the end of a child and the next start
MAX_QUICK = 5  # ends in a row, of every child, until the supervisor gives up
LOAD_ERROR = 2  # the exit status of a command or a module that cannot be used


@dataclass
class Slot:
    """One child after the other. Times are monotonic seconds."""

    number: int
    process: Any = None  # a Popen while it runs
    start_at: float | None = None  # when the next is started
    ready_at: float | None = None  # when this one had loaded its runner
    kill_at: float = math.inf
    grace: float = 30.0
    replace: bool = False  # ends because another is to take its place
    quick: int = 0  # ends in a row that came too soon
    lasted: bool = False  # one of them ran for QUICK_SECONDS
    status: int = 0  # of the last one that ended

    def started(self, process: Any) -> None:
        """Note a new child."""
        self.process, self.start_at, self.ready_at = process, None, None
        self.kill_at, self.replace = math.inf, False

    def ended(self, now: float, status: int) -> float:
        """Note the end of the child; return the seconds until the next may start."""
        up = -1.0 if self.ready_at is None else now - self.ready_at
        self.process, self.status = None, status
        if up >= QUICK_SECONDS:
            self.lasted, self.quick = True, 0
            return 0.0
        self.quick += 1
        return min(2.0 ** (self.quick - 1), MAX_PAUSE)


def hopeless(slots: Sequence[Slot], now: float) -> bool:
    """
    Return whether it makes no sense to start children again.

    So it is if each has ended in error and none ever ran for `QUICK_SECONDS`, or if
    each ended too soon `MAX_QUICK` times in a row. A signal is no such error.
    """
    if all(slot.quick >= MAX_QUICK for slot in slots):
        return True
    lasted = any(
        slot.lasted
        or (slot.process and slot.ready_at and now - slot.ready_at >= QUICK_SECONDS)
        for slot in slots
    )
    return not lasted and all(slot.quick and slot.status > 0 for slot in slots)


def exit_status(status: int) -> int:
    """Return the exit status of a supervisor for that of a child it stopped."""
    if status == -signal.SIGTERM:
        return 0  # before it ran jobs, or their runner had its handlers
    return 1 if status < 0 else status


def ending(status: int) -> str:
    """Return how a child with this exit status ended, in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
