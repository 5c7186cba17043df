"""Two threads beside the jobs: one renews leases, one interrupts what ran too long."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqla_jobs._store.lease import Renewed, renew_many
from sqla_jobs.models import JobTables
from sqla_jobs.runner.attempt import Attempt, Interruption
from sqla_jobs.runner.control import Control, Limits, Outage

if TYPE_CHECKING:
    from sqla_jobs.runner.acontrol import AsyncControl

log = logging.getLogger("sqla_jobs")
RENEW_AT = 1 / 3  # of the lease
SELF_FENCE_AT = 0.9  # of the lease: before anybody may rescue the job
PROGRESS_SECONDS = 1.0
Attempts = Callable[[], Sequence[Attempt]]
Interrupt = Callable[[Attempt, Interruption], None]


class Heartbeat(threading.Thread):
    """
    Renews the leases of all attempts older than a third of their lease.

    On a connection of its own, and for async engines on an event loop of its own: a
    handler that blocks the loop or empties the pool must not cost the lease.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        tables: JobTables,
        *,
        attempts: Attempts,
        interrupt: Interrupt,
        limits: Limits,
    ) -> None:
        super().__init__(name=f"{name}-heartbeat", daemon=True)
        self.engine, self.tables, self.limits = engine, tables, limits
        self.attempts, self.interrupt = attempts, interrupt
        self.outage = Outage(self.name)
        self.tick = max(0.1, min(PROGRESS_SECONDS, limits.lease.total_seconds() / 12))
        self.renewals = 0
        self._stop_event = threading.Event()

    def stop(self) -> None:
        """End the thread."""
        self._stop_event.set()
        if self.is_alive():
            self.join(timeout=5)

    def run(self) -> None:
        """Renew until stopped."""
        if self.engine.dialect.is_async:
            with asyncio.Runner() as loop:
                loop.run(self._run_async())
        else:
            control = Control(self.engine, self.limits)
            while not self._stop_event.wait(self.tick):
                for work, group in self.due():
                    self._note(group, partial(control.run, work))
            control.close()

    async def _run_async(self) -> None:
        from sqla_jobs.runner.acontrol import AsyncControl

        control = AsyncControl(self.engine, self.limits)
        while not self._stop_event.wait(self.tick):
            for work, group in self.due():
                await self._anote(group, control, work)
        await control.close()

    def due(self) -> list[tuple[Callable[[Session], Renewed], list[Attempt]]]:
        """Return the renewals to send now: one statement per length of lease."""
        now = time.monotonic()
        due = [a for a in self.attempts() if self._is_due(a, now)]
        due.sort(key=lambda attempt: attempt.lease)
        out: list[tuple[Callable[[Session], Renewed], list[Attempt]]] = []
        for lease, found in groupby(due, key=lambda attempt: attempt.lease):
            group = list(found)
            pairs = [(a.job_id, a.token) for a in group]
            progress = [a.unsaved_progress for a in group]
            work = partial(_renewing, self.tables, pairs, progress, lease)
            out.append((work, group))
            for attempt, sent in zip(group, progress, strict=True):
                attempt.progress_sent = sent
        return out

    @staticmethod
    def _is_due(attempt: Attempt, now: float) -> bool:
        if attempt.ended or attempt.interruption is not None:
            return False
        age = now - attempt.renewed_at
        if attempt.unsaved_progress is not None and age >= PROGRESS_SECONDS:
            return True
        return age >= attempt.lease.total_seconds() * RENEW_AT

    def _note(self, group: list[Attempt], send: Callable[[], Renewed]) -> None:
        sent = time.monotonic()
        try:
            renewed = send()
        except Exception as exc:  # noqa: BLE001 - the self-fence ends what is not renewed
            self.outage.failed(exc)
        else:
            self._renewed(group, renewed, sent)

    async def _anote(
        self,
        group: list[Attempt],
        control: AsyncControl,
        work: Callable[[Session], Renewed],
    ) -> None:
        sent = time.monotonic()
        try:
            renewed = await control.run(work)
        except Exception as exc:  # noqa: BLE001 - the self-fence ends what is not renewed
            self.outage.failed(exc)
        else:
            self._renewed(group, renewed, sent)

    def _renewed(self, group: list[Attempt], renewed: Renewed, sent: float) -> None:
        self.outage.worked()
        self.renewals += 1
        for attempt in group:
            if renewed.is_lost(attempt.job_id, attempt.token):
                self.interrupt(attempt, Interruption.LOST)
                continue
            attempt.renewed(sent)
            if attempt.progress_sent is not None:
                attempt.progress_saved = attempt.progress_sent
            if attempt.job_id in renewed.cancelled:
                self.interrupt(attempt, Interruption.CANCELLED)


def _renewing(
    tables: JobTables,
    pairs: list[tuple[int, int]],
    progress: list[str | None],
    lease: timedelta,
    session: Session,
) -> Renewed:
    return renew_many(session, tables, pairs, lease=lease, progress=progress)


class Watchdog(threading.Thread):
    """
    Interrupts attempts at their timeout, and before a lease runs out unrenewed.

    It needs no database, so it goes on when the server answers no more; *hang_up* is
    called at least every second, to end connections that wait for it in vain.
    """

    def __init__(
        self,
        name: str,
        *,
        attempts: Attempts,
        interrupt: Interrupt,
        hang_up: Callable[[float], None],
    ) -> None:
        super().__init__(name=f"{name}-watchdog", daemon=True)
        self.attempts, self.interrupt = attempts, interrupt
        self.hang_up = hang_up
        self._woken = threading.Event()
        self._stopped = False
        self._next = float("inf")

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._woken.set()
        if self.is_alive():
            self.join(timeout=5)

    def expect(self, attempt: Attempt) -> None:
        """Note a new attempt: wake up if its end is nearer than the next look."""
        if _end_of(attempt)[0] < self._next:
            self._woken.set()

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopped:
            wait = self.look(time.monotonic())
            self._woken.wait(wait)
            self._woken.clear()

    def look(self, now: float) -> float:
        """Interrupt what is due at *now*; return the seconds until the next look."""
        self.hang_up(now)
        nearest = now + 1.0
        for attempt in self.attempts():
            if attempt.ended or attempt.interruption is not None:
                continue
            end, why = _end_of(attempt)
            if end <= now:
                self.interrupt(attempt, why)
            else:
                nearest = min(nearest, end)
        self._next = nearest
        return max(0.0, nearest - now)


def _end_of(attempt: Attempt) -> tuple[float, Interruption]:
    margin = attempt.lease.total_seconds() * (1 - SELF_FENCE_AT)
    fence = attempt.held_until - margin
    if attempt.ends_at is not None and attempt.ends_at < fence:
        return attempt.ends_at, Interruption.TIMEOUT
    return fence, Interruption.LOST
