"""Staging: what is due becomes available, and when the next job is."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState, JobValueError
from sqla_jobs._store.claim import claim
from sqla_jobs._store.sweep import Staged, stage
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    at_once,
    change,
    fill,
    make_job,
    row_of,
    sent,
)


@pytest.mark.parametrize("state", ["scheduled", "retryable"])
def test_due_job_becomes_available(session: Session, state: str) -> None:
    """At its time, not before, a waiting job is made available and keeps the rest."""
    job = make_job(session, state=state, run_at=NOW, lane=1, attempt=2, snoozes=3)
    before = row_of(session, job)

    assert stage(session, Job, now=NOW - SECOND) == Staged(0, 1.0)
    assert stage(session, Job, now=NOW) == Staged(1, None)

    assert row_of(session, job) == {**before, "state": "available"}


@pytest.mark.parametrize(
    "state", [s for s in JobState if s not in ("scheduled", "retryable")]
)
def test_other_states_are_left_alone(session: Session, state: JobState) -> None:
    """A job that does not wait is neither staged nor waited for."""
    make_job(session, state=state, run_at=NOW - DAY)

    assert stage(session, Job, now=NOW) == Staged(0, None)


def test_next_due_is_the_nearest_of_all(session: Session) -> None:
    """The answer says how long to sleep, in seconds, with fractions."""
    make_job(session, state="scheduled", run_at=NOW)
    make_job(session, state="scheduled", run_at=NOW + DAY)
    make_job(session, state="retryable", run_at=NOW + timedelta(seconds=2.5))

    assert stage(session, Job, now=NOW) == Staged(1, 2.5)


def test_full_batch_asks_to_come_back(session: Session) -> None:
    """When the limit was reached more may be due now; the oldest went first."""
    late = make_job(session, state="scheduled", run_at=NOW - SECOND)
    later = make_job(session, state="retryable", run_at=NOW - 2 * SECOND)
    make_job(session, state="retryable", run_at=NOW + DAY)
    for setting in ("indexscan", "bitmapscan"):  # whose order is the wanted one
        session.execute(text(f"SET LOCAL enable_{setting} = off"))

    assert stage(session, Job, limit=1, now=NOW) == Staged(1, 0.0)
    assert row_of(session, later)["state"] == "available"
    assert row_of(session, late)["state"] == "scheduled"
    assert stage(session, Job, limit=2, now=NOW) == Staged(1, DAY.total_seconds())


def test_stage_goes_by_the_clock_of_the_database(session: Session) -> None:
    """Without ``now`` what is due on the server is staged."""
    past, future = (
        make_job(session, state="scheduled", run_at=at)
        for at in (NOW - 100 * 365 * DAY, NOW + 100 * 365 * DAY)
    )

    assert stage(session, Job).count == 1

    assert row_of(session, past)["state"] == "available"
    assert row_of(session, future)["state"] == "scheduled"


def test_stage_refuses_a_bad_limit(session: Session) -> None:
    """The error says what is wrong with the limit."""
    with pytest.raises(JobValueError, match="limit must be 1 to 10000, got 0"):
        stage(session, Job, limit=0)


def test_stage_is_one_statement(session: Session) -> None:
    """Any number of jobs is staged, and the next time found, in one statement."""
    fill(session, 300, state="scheduled")

    with sent(session) as statements:
        assert stage(session, Job, now=NOW).count == 300

    assert len(statements) == 1


def test_stage_skips_what_somebody_is_writing(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A locked row waits for the next turn; the others do not wait for it."""
    busy, free = (elsewhere(make_job, state="scheduled", run_at=NOW) for _ in range(2))
    with sessions() as writer:
        change(writer, busy, priority=1)

        assert elsewhere(stage, Job, now=NOW).count == 1

    assert elsewhere(row_of, free)["state"] == "available"


def test_runners_stage_each_job_once(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """What several stage at once is available once, and is claimed once."""
    elsewhere(fill, 300, state="retryable")

    def work() -> int:
        count = 0
        while staged := elsewhere(stage, Job, limit=9, now=NOW).count:
            count += staged
        return count

    assert sum(at_once([work] * 4)) == 300
    assert len(elsewhere(claim, Job, limit=400, now=NOW)) == 300
