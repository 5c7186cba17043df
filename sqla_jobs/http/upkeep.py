"""What runners do for their tables, for a service that has none: sweeps and chores."""

from __future__ import annotations

from sqlalchemy.orm import Session

from sqla_jobs._core.clock import SystemClock
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.idempotency import purge_idempotency
from sqla_jobs._store.retention import apply_retention
from sqla_jobs._store.sweep import rescue, stage
from sqla_jobs.http.gate import Gate
from sqla_jobs.models import JobTables
from sqla_jobs.runner.upkeep import log_rescued

SWEEP_SECONDS = 1.0
CHORES_SECONDS = 60.0
BATCH = 1_000


class Upkeep:
    """
    Takes back expired leases, stages due jobs, and deletes what is old enough.

    Those who ask for jobs do it, before they get theirs, so it needs no thread: a
    mounted application has no start. At most once a second in each process.
    """

    def __init__(
        self, gate: Gate, tables: JobTables, *, clock: SystemClock | None = None
    ) -> None:
        self._gate, self._tables = gate, tables
        self._clock = clock or SystemClock()
        self._swept_at = self._cleaned_at = float("-inf")

    async def run_if_due(self) -> None:
        """Sweep if the last time is a second ago, do the chores after a minute."""
        now = self._clock.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            # Before the wait, so that others who ask meanwhile do not do it too.
            self._swept_at = now
            await self._gate.run(self._sweep)
        if now - self._cleaned_at >= CHORES_SECONDS:
            self._cleaned_at = now
            if await self._gate.run(self._clean) >= BATCH:
                self._cleaned_at = float("-inf")

    def _sweep(self, session: Session) -> None:
        log_rescued(rescue(session, self._tables.root))
        if stage(session, self._tables.root).holds_due:
            expire_holds(session, self._tables)

    def _clean(self, session: Session) -> int:
        """Delete what is old; return how much at least, BATCH if more may be left."""
        return max(
            apply_retention(session, self._tables, limit=BATCH),
            purge_idempotency(session, self._tables, limit=BATCH),
        )
