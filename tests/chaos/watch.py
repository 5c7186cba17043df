"""What the referee looks at while the bank runs: waits, sums, and outages."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from tests.chaos.app import OPENING

EVERY = 0.5
LIVE = text(
    "SELECT id, state, lease_token, ordered, channel, run_at <= clock_timestamp(),"
    " coalesce(leased_until < clock_timestamp(), false)"
    " FROM jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
    " ORDER BY id"
)
SUMS = text(
    "SELECT a.id, a.balance, CAST(:opening AS bigint)"
    " + coalesce((SELECT sum(amount) FROM postings WHERE account_id = a.id), 0)"
    " AS posted FROM accounts a"
)
DONE = text("SELECT count(*) FROM jobs WHERE state IN ('completed', 'cancelled')")


@dataclass
class Seen:
    """What was seen."""

    live: int = 0
    done: int = 0
    longest: float = 0.0
    sums: list[str] = field(default_factory=list)
    waits: dict[tuple[int, str, int], float] = field(default_factory=dict)
    """Seconds of each wait above `KEPT`, by job, what, and token."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    slow: list[float] = field(default_factory=list)
    """How many times longer than on an idle machine a bit of work took."""


KEPT = 2.0
WORK = 0.003  # seconds of CPU time


class Watch(threading.Thread):
    """Looks at all live jobs again and again; not while the server is away."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.engine, self.seen = engine, Seen()
        self._since: dict[tuple[int, str, int], float] = {}
        self._ended = threading.Event()
        self._looks = 0
        self.error: BaseException | None = None

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Look until stopped."""
        away: float | None = None
        while not self._ended.wait(EVERY):
            self.seen.slow.append(slowness())
            now = time.monotonic()
            try:
                self._look()
            except DBAPIError:
                away = now if away is None else away
                self._since.clear()
            except BaseException as exc:  # noqa: BLE001 - the referee reports it
                self.error = exc
                return
            else:
                if away is not None:
                    self.seen.outages.append((away, time.monotonic()))
                    away = None

    def _look(self) -> None:
        with self.engine.connect() as connection:
            rows = connection.execute(LIVE).all()
            now = time.monotonic()
            if self._looks % 4 == 0:
                self._add_up(connection.execute(SUMS, {"opening": OPENING}).all())
                self.seen.done = connection.scalar(DONE) or 0
        self._looks += 1
        self.seen.live = len(rows)
        waiting = dict.fromkeys(waits(rows), now)
        self._since = {key: self._since.get(key, now) for key in waiting}
        for key, since in self._since.items():
            seconds = now - since
            self.seen.longest = max(self.seen.longest, seconds)
            if seconds > KEPT:
                self.seen.waits[key] = seconds

    def _add_up(self, rows: Any) -> None:
        for account, balance, posted in rows:
            if balance != posted:
                text_ = f"account {account} has {balance}, posted {posted}"
                self.seen.sums.append(text_)


def slowness() -> float:
    """Return how much longer than its CPU time a bit of work takes, 1 or more."""
    start, wall = time.thread_time(), time.perf_counter()
    while (worked := time.thread_time() - start) < WORK:
        pass
    return max(1.0, (time.perf_counter() - wall) / worked)


def waits(rows: Any) -> list[tuple[int, str, int]]:
    """Return the jobs that could go on and do not; of a channel only the head can."""
    found, channels = [], set()
    for job, state, token, ordered, channel, due, expired in rows:
        if ordered:
            if channel in channels:
                continue
            channels.add(channel)
        if state == "running" and expired:
            found.append((job, "held by an expired lease", token))
        elif state == "available":
            found.append((job, "available", token))
        elif state in ("scheduled", "retryable") and due:
            found.append((job, f"{state} and due", token))
    return found
