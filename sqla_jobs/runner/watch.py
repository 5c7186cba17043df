"""Two threads beside the jobs: one renews leases, one interrupts what ran too long."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
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
from sqla_jobs.runner.control import Control, Limits, Outage, timed
from sqla_jobs.runner.execute import log_fields

if TYPE_CHECKING:
    from sqla_jobs.runner.acontrol import AsyncControl

log = logging.getLogger("sqla_jobs")
RENEW_AT = 1 / 3  # of the lease
SELF_FENCE_AT = 0.9  # of the lease: before anybody may rescue the job
PROGRESS_SECONDS = 1.0
BLOCKED_SECONDS = 5.0  # until a blocked event loop is reported
Attempts = Callable[[], Sequence[Attempt]]
Interrupt = Callable[[Attempt, Interruption], None]
Renewing = Callable[[Session], tuple[float, Renewed]]


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

    def due(self) -> list[tuple[Renewing, list[Attempt]]]:
        """Return the renewals to send now: one statement per length of lease."""
        now = time.monotonic()
        due = [a for a in self.attempts() if self._is_due(a, now)]
        due.sort(key=lambda attempt: attempt.lease)
        out: list[tuple[Renewing, list[Attempt]]] = []
        for lease, found in groupby(due, key=lambda attempt: attempt.lease):
            group = list(found)
            pairs = [(a.job_id, a.token) for a in group]
            progress = [a.unsaved_progress for a in group]
            work = partial(_renewing, self.tables, pairs, progress, lease)
            out.append((timed(work), group))
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

    def _note(
        self, group: list[Attempt], send: Callable[[], tuple[float, Renewed]]
    ) -> None:
        try:
            sent, renewed = send()
        except Exception as exc:  # noqa: BLE001 - the self-fence ends what is not renewed
            self.outage.failed(exc)
        else:
            self._renewed(group, renewed, sent)

    async def _anote(
        self, group: list[Attempt], control: AsyncControl, work: Renewing
    ) -> None:
        try:
            sent, renewed = await control.run(work)
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

    It needs no database, so it goes on when the server answers no more. What else
    needs somebody who never waits is done by *look_after*, at least every second.
    """

    def __init__(
        self,
        name: str,
        *,
        attempts: Attempts,
        interrupt: Interrupt,
        look_after: Callable[[float], None],
    ) -> None:
        super().__init__(name=f"{name}-watchdog", daemon=True)
        self.attempts, self.interrupt = attempts, interrupt
        self.look_after = look_after
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
        if _end_of(attempt, time.monotonic())[0] < self._next:
            self._woken.set()

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopped:
            wait = self.look(time.monotonic())
            self._woken.wait(wait)
            self._woken.clear()

    def look(self, now: float) -> float:
        """Interrupt what is due at *now*; return the seconds until the next look."""
        self.look_after(now)
        nearest = now + 1.0
        for attempt in self.attempts():
            if attempt.ended or attempt.interruption is not None:
                continue
            end, why = _end_of(attempt, now)
            if end <= now:
                self.interrupt(attempt, why)
            else:
                nearest = min(nearest, end)
            _warn_of_open_transaction(attempt, now)
        self._next = nearest
        return max(0.0, nearest - now)


def _warn_of_open_transaction(attempt: Attempt, now: float) -> None:
    session, since = attempt.session, attempt.begun_at
    if (
        session is None
        or since is None
        or now - since < attempt.lease.total_seconds() / 2
    ):
        return
    attempt.begun_at = None  # once for each transaction
    if session.in_transaction():
        log.warning(
            "job %s: the transaction of its session has been open for %.0f s, with all"
            " its locks; commit, as by ctx.checkpoint(), before work that takes long",
            attempt.job_id, now - since, extra=log_fields(attempt),
        )  # fmt: skip


class LoopWatch:
    """Tells which handler keeps an event loop from running anything else."""

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name, self.loop = name, loop
        self._thread = threading.get_ident()
        self._asked_at: float | None = None
        self._told = False

    def look(self, now: float) -> None:
        """Ask the loop for a sign of life; log where it is if it gives none."""
        if self.loop.is_closed():
            return
        if self._asked_at is None:
            self._asked_at, self._told = now, False
            self.loop.call_soon_threadsafe(self._answer)
        elif now - self._asked_at >= BLOCKED_SECONDS and not self._told:
            self._told = True
            frame = sys._current_frames().get(self._thread)
            where = "".join(traceback.format_stack(frame)) if frame else ""
            log.warning(
                "%s: the event loop has been blocked for %.0f s, and with it all other"
                " jobs; await what waits, asyncio.to_thread() what computes:\n%s",
                self.name, now - self._asked_at, where,
            )  # fmt: skip

    def _answer(self) -> None:
        self._asked_at = None


def _end_of(attempt: Attempt, now: float) -> tuple[float, Interruption]:
    margin = attempt.lease.total_seconds() * (1 - SELF_FENCE_AT)
    fence = attempt.held_until - margin
    ends_at = attempt.ends_at
    if ends_at is None and attempt.timeout is not None:
        ends_at = now + attempt.timeout.total_seconds()  # if it began now
    if ends_at is not None and ends_at < fence:
        return ends_at, Interruption.TIMEOUT
    return fence, Interruption.LOST
