"""Times that count from an enqueue, by the database's clock or by that of a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ClauseElement, Connection, Executable, select
from sqlalchemy.orm import Session

from sqla_jobs._dialects import JobDialect
from sqla_jobs._store.base import Where, built_once, connection_of, execute
from sqla_jobs.errors import JobValueError
from sqla_jobs.models import JobTables, job_tables

CLOCK = "sqla_jobs.clock"  # in Session.info: the clock of a test


def read_clock(session: Where, tables: JobTables) -> datetime:
    """Return the database's clock, or what the clock of a test says instead."""
    now = tested_clock(session, tables)
    if now is None:
        now = execute(session, tables, _clock, {}).scalar_one()
    return now


def tested_clock(session: Where, tables: JobTables) -> datetime | None:
    """Return what the clock of a test says, None where there is none."""
    clock = session.info.get(CLOCK) if isinstance(session, Session) else None
    if clock is None:
        return None
    now: datetime = clock.tell(connection_of(session, tables), tables)
    return now


@built_once
def _clock(tables: JobTables, dialect: JobDialect) -> Executable:
    return select(dialect.clock())


def set_times(session: Where, jobs: Iterable[Any]) -> None:
    """
    Set what ``delay`` and ``hold_for`` of new *jobs* mean now, in one statement.

    Raises:
        JobValueError: If a job is held whose time has passed, or held for ever.
    """
    clocks: dict[Connection, datetime] = {}
    for job in jobs:
        row = vars(job)
        if job._delay is None and job._hold_for is None:
            _refuse_endless(job, row)
            continue
        tables = job_tables(job)
        connection = connection_of(session, tables)
        if connection not in clocks:
            clocks[connection] = read_clock(session, tables)
        now = clocks[connection]
        made = times(row, now, delay=job._delay, hold_for=job._hold_for)
        for name, value in made.items():
            setattr(job, name, value)


def times(
    row: Mapping[str, Any],
    now: datetime,
    *,
    delay: timedelta | None,
    hold_for: timedelta | None,
) -> dict[str, datetime]:
    """
    Return the columns that follow from what counts from *now*.

    Raises:
        JobValueError: If *row* is to be held although its ``run_at`` has passed.
    """
    made = {}
    if delay is not None:
        made["run_at"] = now + delay
    if hold_for is not None:
        made["held_until"] = now + hold_for
        run_at = made.get("run_at", row.get("run_at"))
        if run_at is not None and not isinstance(run_at, ClauseElement):
            _refuse_past(run_at, now)
    return made


def _refuse_past(run_at: datetime, now: datetime) -> None:
    if run_at < now:
        raise JobValueError(
            f"hold_for with run_at={run_at}, which has passed: it is {now} by the"
            " database's clock; leave run_at out to run the job once it is confirmed"
        )


def _refuse_endless(job: Any, row: Mapping[str, Any]) -> None:
    if row.get("state") == "held" and row.get("held_until") is None:
        raise JobValueError(
            f"{type(job).__name__}.state = 'held' would hold the job for ever; use"
            " hold_for=timedelta(...)"
        )
