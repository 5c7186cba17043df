"""What only tests ask of the job tables; nothing here commits."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Executable, func, select, update
from sqlalchemy.orm import Session

from sqla_jobs._core.states import JobState
from sqla_jobs._dialects import JobDialect, bind, dialect_of
from sqla_jobs._store.base import (
    built_once,
    connection_of,
    literal_states,
    naming_missing_tables,
    prefixed,
    word,
)
from sqla_jobs._store.take import taking
from sqla_jobs.models import JobTables, job_tables

ABORTED = "25P02"
"""The SQLSTATE of any statement in a transaction that has failed."""


def claim_job(
    session: Session,
    tables: JobTables,
    job_id: int,
    *,
    lease: timedelta,
    runner_id: UUID,
    now: datetime | None = None,
) -> Any | None:
    """Lease the one job as a mapped instance; None if it is not available."""
    statement = _taking_one(tables, dialect_of(connection_of(session, tables)))
    params = {"job": job_id, "lease": lease, "runner": runner_id, "now": now}
    return session.scalars(statement, prefixed(params)).one_or_none()


@built_once
def _taking_one(tables: JobTables, dialect: JobDialect) -> Executable:
    job = tables.table.c
    return (
        taking(tables, dialect, tables.root)
        .where(
            job.id == bind("job", BigInteger()),
            job.state == word(JobState.AVAILABLE),
        )
        .returning(tables.root)
        .execution_options(synchronize_session=False, populate_existing=True)
    )


def make_available(
    session: Session, tables: JobTables, states: Iterable[JobState]
) -> int:
    """Make all jobs in *states* available, whatever their time; return how many."""
    job = tables.table.c
    statement = (
        update(tables.table)
        .where(job.state.in_(literal_states(states)))
        .values(state=JobState.AVAILABLE.value)
        .returning(job.id)
    )
    connection = connection_of(session, tables)
    with naming_missing_tables(tables):
        return len(connection.execute(statement).all())


def jobs_in(
    session: Session, job_class: type[Any], states: Iterable[JobState] | None
) -> list[Any]:
    """Return the jobs of a class by id, with fresh values; None means any state."""
    tables = job_tables(job_class)
    statement = select(job_class).order_by(tables.root.id)
    if states is not None:
        statement = statement.where(tables.root.state.in_(literal_states(states)))
    with naming_missing_tables(tables):
        found = session.scalars(statement, execution_options=_FRESH)
        return list(found.all())


_FRESH = {"populate_existing": True}


def kinds_in(
    session: Session, tables: JobTables, states: Iterable[JobState]
) -> dict[str, int]:
    """Return how many jobs there are of each kind."""
    job = tables.table.c
    statement = (
        select(job.kind, func.count())
        .where(job.state.in_(literal_states(states)))
        .group_by(job.kind)
        .order_by(job.kind)
    )
    rows = connection_of(session, tables).execute(statement)
    return {row[0]: row[1] for row in rows}


def is_aborted(exc: BaseException) -> bool:
    """Return whether *exc* says that the transaction had failed before."""
    return JobDialect.sqlstate(exc) == ABORTED
