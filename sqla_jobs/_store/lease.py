"""Hold a lease: the fence of every commit, the renewal of many, what became of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Integer,
    Interval,
    Select,
    Text,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import Where, built_once, execute, is_running
from sqla_jobs.models import JobTables


@dataclass(frozen=True, slots=True)
class Held:
    """The answer of the fence: the lease is held, and renewed."""

    leased_until: datetime
    cancel_requested: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Renewed:
    """
    The answer of a renewal: what is still held, what a cancel asks to end, and the
    (job id, token) pairs that are lost; a job may be held by another of the pairs.
    """

    held: frozenset[int]
    cancelled: frozenset[int]
    lost: frozenset[tuple[int, int]]

    def is_lost(self, job_id: int, token: int) -> bool:
        """Return whether this lease is lost."""
        return (job_id, token) in self.lost


def fence(  # noqa: PLR0913 - one keyword per column
    session: Where,
    tables: JobTables,
    job_id: int,
    token: int,
    *,
    lease: timedelta,
    at_least: timedelta | None = None,
    checkpoint: str | None = None,
    progress: str | None = None,
    extra_attempts: int = 0,
    within: timedelta | None = None,
    now: datetime | None = None,
) -> Held | None:
    """
    Renew one held lease and save its checkpoint; None if it is no longer held.

    Takes the row lock that makes the caller's commit safe: from here to the commit
    nobody can rescue or settle the job. Does not commit.

    Args:
        lease: Length from the start of this statement, unless the job sets its own.
        at_least: Length that also beats the job's own; a renewal never shortens.
        checkpoint: JSON text to save; None keeps the saved one.
        progress: JSON text to save; None keeps the saved one.
        extra_attempts: Raises ``max_attempts``, 0 or more.
        within: How long after this statement the COMMIT may come, which follows at
            once: then the server ends the transaction, and with it the lock. Default
            None: for ever.
    """
    params = {
        "job": job_id,
        "token": token,
        "lease": lease,
        "at_least": at_least,
        "checkpoint": checkpoint,
        "progress": progress,
        "extra": extra_attempts,
        "now": now,
        **commit_limit(within),
    }
    build = _fencing if within is None else _fencing_commit
    row = execute(session, tables, build, params).first()
    return None if row is None else Held(row[0], row[1] is not None, row[2])


@built_once
def _fencing(tables: JobTables, dialect: JobDialect) -> Executable:
    return _fence(tables, dialect)


@built_once
def _fencing_commit(tables: JobTables, dialect: JobDialect) -> Executable:
    return _fence(tables, dialect, dialect.limit_commit(bind("within", Text())))


def commit_limit(within: timedelta | None) -> dict[str, str]:
    """Return the parameter of a statement that limits the COMMIT after it."""
    if within is None:
        return {}
    return {"within": str(max(1, within // timedelta(milliseconds=1)))}


def _fence(
    tables: JobTables, dialect: JobDialect, *extra: ColumnElement[Any]
) -> Executable:
    job = tables.table.c
    checkpoint = dialect.json(bind("checkpoint", Text()))
    progress = dialect.json(bind("progress", Text()))
    lease = func.coalesce(
        bind("at_least", Interval()),
        job.lease,
        bind("lease", Interval()),
    )
    return (
        update(tables.table)
        .where(
            job.id == bind("job", BigInteger()),
            job.lease_token == bind("token", BigInteger()),
            is_running(job.state),
        )
        .values(
            leased_until=func.greatest(job.leased_until, dialect.now() + lease),
            checkpoint=func.coalesce(checkpoint, job.checkpoint),
            progress=func.coalesce(progress, job.progress),
            max_attempts=job.max_attempts + bind("extra", Integer()),
        )
        .returning(job.leased_until, job.cancel_requested_at, job.reason, *extra)
    )


def renew_many(
    session: Session,
    tables: JobTables,
    held: Sequence[tuple[int, int]],
    *,
    lease: timedelta,
    at_least: timedelta | None = None,
    progress: Sequence[str | None] | None = None,
    now: datetime | None = None,
) -> Renewed:
    """
    Renew the leases of (job id, token) pairs in one statement; does not commit.

    *lease* is the length for jobs that set none, *at_least* one that beats theirs.

    Never waits: a row that is locked, as by a checkpoint that is not committed yet, is
    only looked at (a second statement, when rows are missing). It counts as held while
    its committed version is ours: a locked row cannot be rescued.
    """
    pairs = sorted(held)
    by_id = dict(zip(held, progress or [None] * len(held), strict=True))
    params = {
        "job_id": [job for job, _ in pairs],
        "token": [token for _, token in pairs],
        "progress": [by_id[pair] for pair in pairs],
        "lease": lease,
        "at_least": at_least,
        "now": now,
    }
    rows = execute(session, tables, _renewing, params).all()
    found = frozenset((job, token) for job, token, _ in rows)
    missing = frozenset(pairs) - found
    kept = found | still_held(session, tables, sorted(missing)) if missing else found
    return Renewed(
        held=frozenset(job for job, _ in kept),
        cancelled=frozenset(job for job, _, cancel in rows if cancel is not None),
        lost=missing - kept,
    )


@built_once
def _renewing(tables: JobTables, dialect: JobDialect) -> Executable:
    columns: dict[str, TypeEngine[Any]] = {
        "job_id": BigInteger(),
        "token": BigInteger(),
        "progress": Text(),
    }
    given = dialect.rows("given", columns)
    job = tables.table.c
    locked = dialect.lock(
        select(job.id, given.c.progress)
        .where(
            job.id == given.c.job_id,
            job.lease_token == given.c.token,
            is_running(job.state),
        )
        .order_by(job.id),
        skip=True,
        of=tables.table,
    ).cte("locked")
    lease = func.coalesce(
        bind("at_least", Interval()),
        job.lease,
        bind("lease", Interval()),
    )
    return (
        update(tables.table)
        .where(job.id == locked.c.id)
        .values(
            leased_until=func.greatest(job.leased_until, dialect.now() + lease),
            progress=func.coalesce(dialect.json(locked.c.progress), job.progress),
        )
        .returning(job.id, job.lease_token, job.cancel_requested_at)
    )


def still_held(
    session: Session, tables: JobTables, pairs: Sequence[tuple[int, int]]
) -> frozenset[tuple[int, int]]:
    """Return those (job id, token) pairs that hold their job; locks nothing."""
    return _look(session, tables, pairs, _looking)


def lock_held(
    session: Where, tables: JobTables, pairs: Sequence[tuple[int, int]]
) -> frozenset[tuple[int, int]]:
    """
    Return those (job id, token) pairs that hold their job, and lock its row.

    Until the transaction ends nobody can renew, rescue or settle these jobs. Waits for
    whoever is writing them.
    """
    return _look(session, tables, pairs, _locking)


def _look(
    session: Where, tables: JobTables, pairs: Sequence[tuple[int, int]], build: Any
) -> frozenset[tuple[int, int]]:
    params = {"job_id": [j for j, _ in pairs], "token": [t for _, t in pairs]}
    rows = execute(session, tables, build, params)
    return frozenset((row[0], row[1]) for row in rows)


@built_once
def _locking(tables: JobTables, dialect: JobDialect) -> Executable:
    rows = _looking(tables, dialect).order_by(tables.table.c.id)
    locked = dialect.lock(rows, skip=False, of=tables.table)
    return locked.add_columns(*dialect.watch_client())


@built_once
def _looking(tables: JobTables, dialect: JobDialect) -> Select[*tuple[Any, ...]]:
    given = dialect.rows("given", {"job_id": BigInteger(), "token": BigInteger()})
    job = tables.table.c
    return select(job.id, job.lease_token).where(
        job.id == given.c.job_id,
        job.lease_token == given.c.token,
        is_running(job.state),
    )


def settled_state(
    session: Session, tables: JobTables, job_id: int, token: int
) -> JobState | None:
    """
    Return the state of the job if its last claim is still *token*'s, else None.

    Resolves a COMMIT that got no answer: `running` means that it did not happen.
    """
    row = execute(session, tables, _resolving, {"job": job_id, "token": token}).first()
    return None if row is None else JobState(row[0])


@built_once
def _resolving(tables: JobTables, _dialect: JobDialect) -> Executable:
    job = tables.table.c
    return select(job.state).where(
        job.id == bind("job", BigInteger()),
        job.lease_token == bind("token", BigInteger()),
    )
