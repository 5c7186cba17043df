"""Retention: finished jobs go after the time that their class says."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState
from sqla_jobs._core.states import LIVE
from sqla_jobs._store.operate import requeue
from sqla_jobs._store.retention import apply_retention, retention_groups
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    Joined,
    Kept,
    Work,
    change,
    fill,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)


def left(session: Session) -> set[int]:
    """Return the ids of the jobs that are left."""
    return set(session.scalars(select(TABLES.table.c.id)))


def finished(session: Session, kind: str, state: str, age: timedelta) -> int:
    """Make a job that finished *age* ago."""
    return make_job(session, kind=kind, state=state, finished_at=NOW - age)


@pytest.mark.parametrize(
    ("kind", "state", "age"),
    [
        ("work", "completed", DAY),
        ("old_work", "completed", DAY),
        ("work", "cancelled", 7 * DAY),
        ("kept", "cancelled", 2 * DAY),
        ("kept", "discarded", 3 * DAY),
    ],
)
def test_finished_job_goes_after_its_time(
    session: Session, kind: str, state: str, age: timedelta
) -> None:
    """The class's retention counts from the end, to the second; aliases count too."""
    finished(session, kind, state, age)
    young = finished(session, kind, state, age - SECOND)

    assert apply_retention(session, TABLES, now=NOW) == 1

    assert left(session) == {young}


@pytest.mark.parametrize(
    ("kind", "state"),
    [("work", "discarded"), ("kept", "completed"), ("from_elsewhere", "completed")],
)
def test_job_without_retention_stays(session: Session, kind: str, state: str) -> None:
    """Dead letters stay by default, and kinds that no class here maps always."""
    job = finished(session, kind, state, 9_999 * DAY)

    assert apply_retention(session, TABLES, now=NOW) == 0

    assert left(session) == {job}


@pytest.mark.parametrize("state", sorted(LIVE))
def test_live_job_stays(session: Session, state: JobState) -> None:
    """A job that has not ended is never deleted, however old."""
    job = make_job(session, state=state, run_at=NOW - 9_999 * DAY)

    assert apply_retention(session, TABLES, now=NOW) == 0

    assert left(session) == {job}


def test_attempts_and_joined_rows_go_too(session: Session) -> None:
    """Nothing of a deleted job is left in any table."""
    job = Joined(note="x")
    session.add(job)
    session.flush()
    change(session, job.id, state="completed", finished_at=NOW - 2 * DAY)
    session.execute(
        insert(TABLES.attempts).values(
            job_id=job.id, lease_token=1, number=1, finished_at=NOW, outcome="retry"
        )
    )

    assert apply_retention(session, TABLES, now=NOW) == 1

    for table in (TABLES.table, TABLES.attempts, Joined.__table__):
        assert session.scalar(select(func.count()).select_from(table)) == 0


def test_oldest_go_first(session: Session) -> None:
    """A batch takes the oldest of each group, up to the limit."""
    young, old = (finished(session, "work", "completed", age * DAY) for age in (2, 3))
    for setting in ("indexscan", "bitmapscan"):  # whose order is the wanted one
        session.execute(text(f"SET LOCAL enable_{setting} = off"))

    assert apply_retention(session, TABLES, limit=1, now=NOW) == 1
    assert left(session) == {young}
    assert apply_retention(session, TABLES, limit=1, now=NOW) == 1
    assert old not in left(session)


def test_one_statement_per_state_and_age(session: Session) -> None:
    """The number of statements does not grow with kinds or jobs."""
    fill(session, 500, state="completed", finished_at=NOW - 2 * DAY)
    groups = retention_groups(TABLES)

    with sent(session) as statements:
        assert apply_retention(session, TABLES, now=NOW) == 500

    assert len(statements) == len(groups) == 4
    assert Work in TABLES.kinds.values()
    assert groups["cancelled", 2 * DAY] == [Kept.__mapper__.polymorphic_identity]


def test_requeued_job_is_spared(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that somebody is requeuing is skipped, and later alive."""
    job = elsewhere(finished, "work", "completed", 2 * DAY)
    with sessions() as operator:
        requeue(operator, Job, job, now=NOW)

        assert elsewhere(apply_retention, TABLES, now=NOW) == 0

        operator.commit()
    assert elsewhere(apply_retention, TABLES, now=NOW) == 0
    assert elsewhere(row_of, job)["state"] == "available"
