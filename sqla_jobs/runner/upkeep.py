"""What every runner does for all of them: sweeps, chores, and a sign of life."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.orm import Session

from sqla_jobs._core.limits import Features
from sqla_jobs._core.plan import Plan
from sqla_jobs._core.states import JobState
from sqla_jobs._core.subscriptions import label
from sqla_jobs._store.holds import BATCH as HOLDS
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.idempotency import purge_idempotency
from sqla_jobs._store.retention import apply_retention
from sqla_jobs._store.runners import RunnerInfo, unknown_kinds, upsert_runner
from sqla_jobs._store.sweep import Rescued, Staged, features_of, rescue, stage
from sqla_jobs.handlers import Handler
from sqla_jobs.models import JobTables
from sqla_jobs.runner.options import Options

log = logging.getLogger("sqla_jobs")
CHORES_SECONDS = 60.0  # between looks for old and for unknown jobs
RETENTION_BATCH = 5_000  # old jobs deleted per sweep, until none is left


@dataclass(frozen=True)
class Swept:
    """What one sweep found, and how many jobs it moved."""

    rescued: list[Rescued]
    staged: Staged
    moved: int
    next_due: float | None
    features: Features
    signed: bool = False  # whether it wrote the runner's sign of life


class Upkeep:
    """The part of a runner that looks after the tables; of a `RunnerBase`."""

    id: UUID
    tables: JobTables
    options: Options
    handlers: dict[str, Handler]
    _lock: threading.Lock
    _plan: Plan
    _features: Features
    _chores_at = _seen_at = float("-inf")
    _unknown: tuple[str, ...] = ()

    def _sweep_work(self, session: Session) -> Swept:
        """Take back and stage; two statements that need no transaction around them."""
        root = self.tables.root
        rescued = rescue(session, root, max_crashes=self.options.max_crashes)
        staged = stage(session, root)
        moved = staged.count + len(rescued)
        features = Features(staged.has_ordered)
        return Swept(rescued, staged, moved, staged.next_due, features)

    def _sweeps_more(self, found: Swept) -> bool:
        """Whether there is work for `_sweep_more_work`, as there hardly ever is."""
        staged = found.staged
        return staged.holds_due or staged.has_queues or self._sign_is_due()

    def _sweep_more_work(self, session: Session, *, found: Swept) -> Swept:
        """Expire holds, read the managed queues, give a sign of life."""
        tables, moved, next_due = self.tables, found.moved, found.next_due
        if found.staged.holds_due:
            expired = expire_holds(session, tables)
            moved += expired
            if expired == HOLDS:
                next_due = 0.0
        features = features_of(session, tables, found.staged)
        if signed := self._sign_is_due():
            upsert_runner(session, tables, self._info())
        return replace(
            found, moved=moved, next_due=next_due, features=features, signed=signed
        )

    def _sign_is_due(self) -> bool:
        return time.monotonic() - self._seen_at > self._seen_every()

    def _seen_every(self) -> float:
        # However long the lease: explain() takes who is silent for a minute for dead.
        return min(self.options.lease.total_seconds() / 3, 20.0)

    def _swept(self, found: Swept) -> None:
        now = time.monotonic()
        if found.signed:
            self._seen_at = now
        log_rescued(found.rescued)
        # Ordered jobs that come back need no sweep to be seen.
        ordered = found.features.ordered or self._features.ordered
        self._features = replace(found.features, ordered=ordered)
        with self._lock:
            self._plan.swept(now, moved=found.moved, next_due=found.next_due)

    def _chores_due(self) -> bool:
        return time.monotonic() - self._chores_at > CHORES_SECONDS

    def _chores_work(self, session: Session) -> tuple[bool, list[str]]:
        """Delete what is old; return whether more is left, and the unknown kinds."""
        deleted = apply_retention(session, self.tables, limit=RETENTION_BATCH)
        keys = purge_idempotency(session, self.tables, limit=RETENTION_BATCH)
        deleted = max(deleted, keys)
        unknown = unknown_kinds(session, self.tables, list(self.tables.kinds))
        return deleted >= RETENTION_BATCH, unknown

    def _chores_done(self, answer: tuple[bool, list[str]]) -> None:
        more, unknown = answer
        if not more:
            self._chores_at = time.monotonic()
        if unknown and tuple(unknown) != self._unknown:
            log.warning(
                "%s: jobs of kinds nobody here maps stay untouched: %s",
                self.options.name,
                ", ".join(map(repr, unknown)),
            )
        self._unknown = tuple(unknown)

    def _info(self) -> RunnerInfo:
        slots = self.options.slots
        queues = slots.queues
        if queues is None and slots.names is not None:
            queues = dict.fromkeys(slots.names, slots.most)
        return RunnerInfo(
            id=self.id,
            name=self.options.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=None if queues is None else {label(q): n for q, n in queues.items()},
            kinds=sorted(self.handlers),
        )


def log_rescued(jobs: Iterable[Rescued]) -> None:
    """Log jobs that were taken back; those discarded as errors."""
    for job in jobs:
        log.log(
            logging.ERROR if job.state is JobState.DISCARDED else logging.WARNING,
            "job %s (%s) rescued, its lease expired; now %s: attempt %s, crash %s",
            job.job_id, job.kind, job.state, job.attempt, job.crashes,
            extra={"job_id": job.job_id, "kind": job.kind, "attempt": job.attempt},
        )  # fmt: skip
