"""
What must be in the tables after each call, written from the documentation.

It imports nothing of the library: what it knows is in docs/reference/states.md,
what-happens-when.md, tables.md and the how-to pages on holds, order and unique keys.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

FINAL = ("completed", "cancelled", "discarded")
WAITING = ("scheduled", "retryable")
MAX_CRASHES = 3
SUSPECT = 2
HOUR = timedelta(hours=1)
KEPT = {"completed": HOUR, "cancelled": 2 * HOUR}
BACKOFFS: dict[str, Callable[[int], timedelta]] = {
    "alpha": lambda attempt: timedelta(seconds=10),
    "beta": lambda attempt: timedelta(seconds=2 ** (attempt - 1)),
}


class _Any:
    """Equal to whatever is there: nothing is promised about it."""

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "ANY"

    def __hash__(self) -> int:
        return 0


ANY: Any = _Any()


@dataclass(eq=False)
class Row:
    """One job as it must be."""

    id: int
    number: int
    kind: str
    max_attempts: int
    queue: str = "default"
    channel: str = ""
    priority: int = 0
    lane: int = 0
    state: str = "available"
    run_at: Any = None  # a time; the number of the transaction stands for the default
    attempt: int = 0
    snoozes: int = 0
    crashes: int = 0
    lease: timedelta | None = None
    leased_until: datetime | None = None
    checkpoint: Any = None
    result: Any = ANY
    unique_key: str | None = None
    fingerprint: str | None = None
    ordered: bool = False
    held_until: Any = ANY
    cancel_requested: Any = False
    reason: Any = ANY
    finished_at: datetime | None = None
    token: int = 0
    holder: int | None = None  # the number of the claim that holds it

    @property
    def live(self) -> bool:
        """Whether it may still lead to an attempt."""
        return self.state not in FINAL

    @property
    def place(self) -> tuple[Any, ...]:
        """Where it stands in its queue: smaller goes first."""
        dated = isinstance(self.run_at, datetime)
        return -self.priority, self.lane, dated, self.run_at, self.id

    def expected(self) -> dict[str, Any]:
        """Return the columns to compare."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        del found["holder"]
        if isinstance(self.run_at, int):
            del found["run_at"]
        return found

    def end(self, state: str, now: datetime, reason: Any = ANY) -> None:
        """Make it final."""
        self.leave()
        self.state, self.finished_at, self.reason = state, now, reason
        self.cancel_requested = self.held_until = ANY
        self.lane = self.run_at = ANY

    def leave(self) -> None:
        """Take it from its holder."""
        self.holder, self.leased_until = None, None

    def wait(self, state: str, run_at: Any) -> None:
        """Let it wait for its time."""
        self.leave()
        self.state, self.run_at, self.reason = state, run_at, ANY


@dataclass
class Queue:
    """What is set for a queue."""

    paused: bool = False
    fair: bool = False
    max_running: int | None = None
    max_running_per_channel: int | None = None
    on_discard: str = "skip"

    @property
    def managed(self) -> bool:
        """Whether one claim may stop short of what is there."""
        limits = (self.max_running, self.max_running_per_channel)
        return self.fair or limits != (None, None)


class Oracle:
    """All jobs, settings and keys, as the calls so far have left them."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.history: dict[int, list[tuple[int, str]]] = {}
        self.archived: set[int] = set()
        self.queues: dict[str, Queue] = {}
        self.keys: dict[tuple[str, str], tuple[int, datetime]] = {}
        self.claims: set[int] = set()
        self.effects = 0

    def copied(self) -> Oracle:
        """Return a copy, to come back to after a rollback."""
        return copy.deepcopy(self)

    def counts(self) -> Counter[tuple[str, str]]:
        """Return how many jobs there are by queue and state."""
        return Counter((row.queue, row.state) for row in self.rows.values())

    def queue(self, name: str) -> Queue:
        """Return the settings of a queue."""
        return self.queues.get(name, Queue())

    # Enqueue

    def live_with(self, **columns: Any) -> Row | None:
        """Return the live job with the lowest id that has these values."""
        rows = (self.rows[one] for one in sorted(self.rows))
        for row in rows:
            if row.live and all(getattr(row, k) == v for k, v in columns.items()):
                return row
        return None

    def duplicate_of(self, key: str | None) -> Row | None:
        """Return the live job that has the key."""
        return None if key is None else self.live_with(unique_key=key)

    def replace(self, row: Row, now: datetime) -> None:
        """Make place for a newer job with the same key."""
        row.end("cancelled", now, "replaced by a newer job")

    def add(self, row: Row) -> None:
        """Note a job that was enqueued."""
        self.rows[row.id], self.history[row.id] = row, []

    # What a holder may do

    def held_by(self, claim: int) -> Row | None:
        """Return the job that this claim holds."""
        held = (row for row in self.rows.values() if row.holder == claim)
        return next(held, None)

    def take(self, row: Row, claim: int, now: datetime, lease: timedelta) -> None:
        """Lease it."""
        row.state, row.holder, row.reason = "running", claim, ANY
        row.attempt, row.token = row.attempt + 1, row.token + 1
        row.leased_until = now + (row.lease or lease)
        self.claims.add(claim)

    def renew(self, row: Row, now: datetime, lease: timedelta) -> bool:
        """Hold it longer, never shorter; return whether it is asked to end."""
        assert row.leased_until is not None
        row.leased_until = max(row.leased_until, now + (row.lease or lease))
        return bool(row.cancel_requested)

    def complete(self, row: Row, now: datetime, result: Any) -> None:
        """End it well; this also beats a request to cancel."""
        row.end("completed", now)
        row.result = result

    def fail(self, row: Row, now: datetime, at: datetime | None) -> str:
        """Let it wait for its next attempt, if there is one; return the state."""
        self.log(row, "retry")
        if row.cancel_requested:
            row.end("cancelled", now, row.reason)
        elif row.attempt >= row.max_attempts:
            row.end("discarded", now, "attempts used up")
        else:
            row.wait("retryable", at or now + BACKOFFS[row.kind](row.attempt))
            row.lane = 1
        return row.state

    def snooze(self, row: Row, now: datetime, at: datetime) -> None:
        """Put it back until then; the attempt is given back."""
        row.attempt -= 1
        row.snoozes += 1
        if row.cancel_requested:
            row.end("cancelled", now, row.reason)
        else:
            row.wait("scheduled", at)

    def release(self, row: Row, now: datetime) -> None:
        """Hand it back at once; the attempt is given back."""
        row.attempt -= 1
        if row.cancel_requested:
            row.end("cancelled", now, row.reason)
        else:
            row.wait("available", row.run_at)

    def give_up(self, row: Row, now: datetime, state: str, reason: str) -> None:
        """End it as its holder says: cancelled or discarded."""
        self.log(row, {"cancelled": "cancel", "discarded": "discard"}[state])
        row.end(state, now, reason)

    def log(self, row: Row, outcome: str) -> None:
        """Note an attempt that did not complete."""
        self.history[row.id].append((row.attempt, outcome))

    # What anybody does

    def rescue(
        self, now: datetime, expired_for: timedelta, queues: Iterable[str] | None
    ) -> dict[int, str]:
        """Take back what has expired; return the states by id."""
        found = {}
        for row in self.rows.values():
            until = row.leased_until
            if until is None or until + expired_for >= now:
                continue
            if queues is None or row.queue in queues:
                self._rescue(row, now)
                found[row.id] = row.state
        return found

    def _rescue(self, row: Row, now: datetime) -> None:
        self.log(row, "crash")
        row.crashes, row.token = row.crashes + 1, row.token + 1
        if row.cancel_requested:
            row.end("cancelled", now, row.reason)
        elif row.crashes >= MAX_CRASHES:
            row.end("discarded", now, f"poison: {row.crashes} crashes")
        elif row.attempt >= row.max_attempts:
            row.end("discarded", now, "attempts used up")
        else:
            row.wait("available", row.run_at)
            row.lane = 2

    def stage(self, now: datetime) -> int:
        """Make due jobs available; return how many."""
        due = [
            row
            for row in self.rows.values()
            if row.state in WAITING and row.run_at <= now
        ]
        for row in due:
            row.state = "available"
        return len(due)

    def expire(self, now: datetime) -> int:
        """Cancel what was held too long; return how many."""
        over = [row for row in self.rows.values() if self._over(row, now)]
        for row in over:
            row.end("cancelled", now, "hold expired")
        return len(over)

    def _over(self, row: Row, now: datetime) -> bool:
        return row.state == "held" and row.held_until <= now

    def prune(self, now: datetime) -> int:
        """Drop or archive what has been final for long; return how many."""
        old = [
            row
            for row in self.rows.values()
            if row.state in KEPT
            and row.finished_at is not None
            and row.finished_at + KEPT[row.state] <= now
        ]
        for row in old:
            del self.rows[row.id]
            if row.kind == "beta":
                self.archived.add(row.id)
            else:
                del self.history[row.id]
        return len(old)

    # What the owner of a job does

    def held(self, ids: Iterable[int], now: datetime, verb: str) -> list[Row] | None:
        """Return the held jobs, None if the call must be refused."""
        found = [self.rows[one] for one in ids if one in self.rows]
        good = [
            row
            for row in found
            if row.state == "held" and (verb == "abort" or not self._over(row, now))
        ]
        return good if len(good) == len(set(ids)) else None

    def confirm(self, row: Row, now: datetime) -> None:
        """Let it run, when it is due."""
        later = isinstance(row.run_at, datetime) and row.run_at > now
        row.state, row.held_until = "scheduled" if later else "available", ANY

    def cancel(self, row: Row, now: datetime, reason: str) -> str:
        """Cancel it, or ask it to end; return where the result must list it."""
        if not row.live:
            return "unchanged"
        if row.state != "running":
            row.end("cancelled", now, reason)
            return "cancelled"
        row.cancel_requested, row.reason = True, reason
        return "requested"

    def requeue(self, row: Row | None, now: datetime, keep_state: bool) -> str:
        """Make it available again; return where the result must list it."""
        if row is None or row.live:
            return "unchanged"
        if self.duplicate_of(row.unique_key):
            return "duplicates"
        row.wait("available", now)
        row.attempt = row.crashes = row.lane = 0
        row.cancel_requested, row.finished_at, row.result = False, None, ANY
        row.snoozes = 0
        if not keep_state:
            row.checkpoint = None
        return "requeued"

    def purge(
        self,
        now: datetime,
        *,
        states: Iterable[str],
        older_than: timedelta,
        ids: Iterable[int] | None,
    ) -> int:
        """Delete jobs, never running ones; return how many."""
        gone = [
            row
            for row in self.rows.values()
            if row.state in states
            and (ids is None or row.id in ids)
            and self._age(row, now) >= older_than
        ]
        for row in gone:
            del self.rows[row.id], self.history[row.id]
        return len(gone)

    def _age(self, row: Row, now: datetime) -> timedelta:
        since = row.finished_at or row.run_at
        return now - since if isinstance(since, datetime) else timedelta.max
