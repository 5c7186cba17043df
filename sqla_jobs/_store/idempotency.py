"""Idempotency keys: for a while, a repeated enqueue answers with its first job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Executable,
    Integer,
    Interval,
    Text,
    case,
    delete,
    func,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from sqla_jobs._core.backoff import duration_problem
from sqla_jobs._core.options import problem_of
from sqla_jobs._dialects import JobDialect, bind
from sqla_jobs._store.base import built_once, execute
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables

WINDOW = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, which stands for one job of its queue until *window* is over."""

    queue: str
    key: str
    window: timedelta = WINDOW


def check_key(key: Any, window: Any) -> None:
    """
    Check a key and its window.

    Raises:
        JobValueError: If *key* is no text of 1 to 200 bytes, or *window* no duration.
    """
    if problem := problem_of("unique_key", key):
        raise JobValueError(f"idempotency_key={key!r} {problem}")
    problem = duration_problem(window) or (None if window else "must be above zero")
    if problem:
        raise JobValueError(f"window={window!r} {problem}")


def claim_key(
    session: Session,
    tables: JobTables,
    key: IdempotencyKey,
    *,
    now: datetime | None = None,
) -> int | None:
    """
    Return the job that *key* stands for, None if it is now to stand for a new one.

    Waits for a transaction that has the key and has not ended; does not commit.
    """
    params = {"queue": key.queue, "key": key.key, "window": key.window, "now": now}
    found: int | None = execute(session, tables, _claiming, params).scalar_one()
    return found


@built_once
def _claiming(tables: JobTables, dialect: JobDialect) -> Executable:
    entry = tables.idempotency.c
    until = dialect.now() + bind("window", Interval())
    expired = entry.expires_at <= dialect.now()
    return dialect.upsert(
        tables.idempotency,
        {
            "queue": bind("queue", Text()),
            "key": bind("key", Text()),
            "expires_at": until,
        },
        key=("queue", "key"),
        # Without a job: the enqueue after it failed, so the window begins anew too.
        change={
            "job_id": case((~expired, entry.job_id)),
            "expires_at": case(
                (expired | entry.job_id.is_(null()), until), else_=entry.expires_at
            ),
        },
        returning=[entry.job_id],
    )


def remember_job(
    session: Session, tables: JobTables, key: IdempotencyKey, job_id: int
) -> None:
    """Let *key*, which `claim_key` has just claimed, stand for a job."""
    params = {"queue": key.queue, "key": key.key, "job_id": job_id}
    execute(session, tables, _remembering, params)


@built_once
def _remembering(tables: JobTables, _dialect: JobDialect) -> Executable:
    entry = tables.idempotency.c
    return (
        update(tables.idempotency)
        .where(
            entry.queue == bind("queue", Text()),
            entry.key == bind("key", Text()),
        )
        .values(job_id=bind("job_id", BigInteger()))
    )


def purge_idempotency(
    session: Session,
    tables: JobTables,
    *,
    limit: int = 1_000,
    now: datetime | None = None,
) -> int:
    """Delete at most *limit* expired keys, return how many; does not commit."""
    params = {"limit": limit, "now": now}
    return int(execute(session, tables, _purging, params).scalar_one())


@built_once
def _purging(tables: JobTables, dialect: JobDialect) -> Executable:
    entry = tables.idempotency.c
    old = dialect.lock(
        select(entry.queue, entry.key)
        .where(entry.expires_at <= dialect.now())
        .order_by(entry.expires_at)
        .limit(bind("limit", Integer())),
        skip=True,
        delete=True,
    ).cte("old")
    same = (entry.queue == old.c.queue) & (entry.key == old.c.key)
    gone = delete(tables.idempotency).where(same).returning(entry.key).cte("gone")
    return select(func.count()).select_from(gone)
