"""Enqueue one job and know what became of it: inserted, or found to be there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from sqla_jobs._core.options import DEFAULTS, problem_of
from sqla_jobs._store.enqueue import check_session
from sqla_jobs._store.idempotency import (
    WINDOW,
    IdempotencyKey,
    check_key,
    claim_key,
    remember_job,
)
from sqla_jobs._store.times import tested_clock
from sqla_jobs._store.unique import key_of
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobMixin, JobTables, job_tables
from sqla_jobs.models.unique import policy_of


@dataclass(frozen=True, slots=True)
class Enqueued:
    """
    What `enqueue` did.

    Args:
        job_id: The new job, or the one that is there already.
        created: Whether it is the new one.
        job: The given instance if it is new, else the one that is there: None if its
            row is gone, or if the policy is "skip", which does not read it.
    """

    job_id: int
    created: bool
    job: Any | None


def enqueue(
    session: Session,
    job: JobMixin,
    *,
    on_conflict: str | None = None,
    idempotency_key: str | None = None,
    window: timedelta = WINDOW,
    now: datetime | None = None,
) -> Enqueued:
    """
    Add a new *job*, flush, and tell its id, or that of the one in its place.

    With an *idempotency_key*, the first call in a queue enqueues, and each later one
    answers with the first one's job until *window* is over, also if that job is final
    or deleted by then; the next one enqueues again. Another transaction with the same
    key waits until the first one ends, and enqueues if that is rolled back. Does not
    commit.

    Args:
        session: With an AsyncSession: ``await session.run_sync(enqueue, job, ...)``.
        job: Not yet flushed.
        on_conflict: What happens when a live job has its unique key: ``"raise"``,
            ``"skip"``, ``"replace"`` or ``"return"``; default the job's own.
        idempotency_key: Up to 200 bytes.
        window: How long the key stands for its job, by the database's clock, above 0.
            Default 24 hours.

    Raises:
        DuplicateJob: If a live job has its unique key and the policy is to raise.
        JobValueError: If a value cannot be used, or *on_conflict* has no key.
        MissingTables: If the job tables are not there.
    """
    check_session(session, "enqueue")
    _check(job, on_conflict)
    tables = job_tables(job)
    if on_conflict is not None:
        job._on_conflict = on_conflict
    if idempotency_key is None:
        return _add(session, tables, job)
    check_key(idempotency_key, window)
    queue = vars(job).get("queue", DEFAULTS.queue)
    key = IdempotencyKey(queue, idempotency_key, window)
    now = tested_clock(session, tables) if now is None else now
    first = claim_key(session, tables, key, now=now)
    if first is not None:
        if job in session:
            session.expunge(job)
        return Enqueued(first, created=False, job=_get(session, tables, first))
    made = _add(session, tables, job)
    remember_job(session, tables, key, made.job_id)
    return made


def _check(job: Any, on_conflict: str | None) -> None:
    if not isinstance(job, JobMixin):
        raise JobValueError(f"enqueue() needs an instance of a job class, got {job!r}")
    if inspect(job).has_identity:
        raise JobValueError(f"{job!r} is enqueued already; make a new one")
    if on_conflict is None:
        return
    if problem := problem_of("on_conflict", on_conflict):
        raise JobValueError(f"enqueue(on_conflict={on_conflict!r}) {problem}")
    if key_of(job) is None:
        raise JobValueError(
            f"enqueue(on_conflict={on_conflict!r}) needs a job with a unique_key, or"
            " unique= on its class"
        )


def _add(session: Session, tables: JobTables, job: Any) -> Enqueued:
    session.add(job)
    session.flush()
    other = job.duplicate_of
    if other is None:
        (job_id,) = inspect(job).identity
        return Enqueued(job_id, created=True, job=job)
    wanted = policy_of(job) == "return"
    found = _get(session, tables, other) if wanted else None
    return Enqueued(other, created=False, job=found)


def _get(session: Session, tables: JobTables, job_id: int) -> Any | None:
    return session.get(tables.root, job_id)
