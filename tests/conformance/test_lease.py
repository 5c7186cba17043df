"""Leases: the fence of a commit, renewals, and what became of one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState
from sqla_jobs._store.lease import Held, fence, renew_many, settled_state
from sqla_jobs._store.operate import request_cancel
from sqla_jobs._store.sweep import rescue
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    change,
    claim_one,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
AFTER = NOW + LEASE + SECOND


def running(session: Session, **columns: Any) -> int:
    """Make a running job whose token is 1."""
    return make_job(session, state="running", **columns)


def fenced(session: Session, job: int, token: int = 1, **options: Any) -> Held | None:
    """Fence one job a second after its claim."""
    options = {"lease": LEASE, "now": NOW + SECOND, **options}
    return fence(session, TABLES, job, token, **options)


def test_fence_renews_the_lease_and_saves(session: Session) -> None:
    """One statement renews, and saves checkpoint, progress and extra attempts."""
    job = running(session, max_attempts=3, checkpoint={"page": 1})

    with sent(session) as statements:
        held = fenced(
            session, job, checkpoint='{"page": 2}', progress="[1, 9]", extra_attempts=2
        )

    assert held == Held(NOW + SECOND + LEASE, cancel_requested=False, reason=None)
    assert len(statements) == 1
    row = row_of(session, job)
    assert row["leased_until"] == NOW + SECOND + LEASE
    assert (row["checkpoint"], row["progress"]) == ({"page": 2}, [1, 9])
    assert (row["max_attempts"], row["lease_token"]) == (5, 1)


def test_fence_keeps_what_is_not_given(session: Session) -> None:
    """Without new values checkpoint, progress and attempts stay."""
    job = running(session, checkpoint={"page": 1}, progress=7)

    fenced(session, job)

    row = row_of(session, job)
    assert (row["checkpoint"], row["progress"], row["max_attempts"]) == (
        {"page": 1},
        7,
        10,
    )


@pytest.mark.parametrize(
    ("own", "at_least", "expected"),
    [
        (None, None, LEASE),
        (timedelta(hours=1), None, timedelta(hours=1)),
        (timedelta(hours=1), timedelta(hours=2), timedelta(hours=2)),
        (None, timedelta(minutes=5), timedelta(minutes=5)),
    ],
)
def test_fence_takes_the_longer_lease(
    session: Session,
    own: timedelta | None,
    at_least: timedelta | None,
    expected: timedelta,
) -> None:
    """The job's own lease beats the caller's default, an explicit one beats both."""
    job = running(session, lease=own)

    held = fenced(session, job, at_least=at_least)

    assert held is not None
    assert held.leased_until == NOW + SECOND + expected


def test_renewal_never_shortens(session: Session) -> None:
    """A lease that was made longer stays so under shorter renewals of both kinds."""
    job = running(session, leased_until=NOW + timedelta(hours=1))

    held = fenced(session, job)
    renew_many(session, TABLES, [(job, 1)], lease=LEASE, now=NOW)

    assert held is not None
    assert held.leased_until == NOW + timedelta(hours=1)
    assert row_of(session, job)["leased_until"] == NOW + timedelta(hours=1)


@pytest.mark.parametrize(
    "columns",
    [
        {"lease_token": 2},
        {"state": "available"},
        {"state": "retryable"},
        {"state": "completed"},
    ],
)
def test_lost_job_is_not_renewed(session: Session, columns: dict[str, Any]) -> None:
    """Another token or any state but running is lost; nothing is written."""
    job = running(session)
    change(session, job, **columns)
    before = row_of(session, job)

    held = fenced(session, job, checkpoint="{}", extra_attempts=1)
    renewed = renew_many(session, TABLES, [(job, 1)], lease=LEASE, now=AFTER)

    assert held is None
    assert renewed.lost == {(job, 1)}
    assert row_of(session, job) == before


def test_deleted_job_is_lost(session: Session) -> None:
    """A row that is gone is not held."""
    job = running(session)
    session.execute(delete(TABLES.table).where(TABLES.table.c.id == job))

    assert fenced(session, job) is None
    assert renew_many(session, TABLES, [(job, 1)], lease=LEASE).lost == {(job, 1)}
    assert settled_state(session, TABLES, job, 1) is None


def test_expired_lease_is_held_until_its_rescue(session: Session) -> None:
    """Time alone takes nothing: an expired lease can be renewed, a rescued one not."""
    job = running(session)

    assert fenced(session, job, now=AFTER) is not None
    renewed = renew_many(session, TABLES, [(job, 1)], lease=LEASE, now=AFTER)
    assert renewed.held == {job}

    assert rescue(session, Job, now=AFTER + LEASE * 2) != []
    assert fenced(session, job, now=AFTER) is None


def test_renewed_lease_outlives_its_first_expiry(session: Session) -> None:
    """A job that beats is never rescued, however long it runs."""
    job = running(session)

    for beat in range(1, 20):
        now = NOW + LEASE * beat / 3
        renew_many(session, TABLES, [(job, 1)], lease=LEASE, now=now)
        assert rescue(session, Job, now=now) == []

    assert row_of(session, job)["lease_token"] == 1


def test_renewal_of_many_is_one_statement(session: Session) -> None:
    """Any number of leases is renewed in one statement, with progress and cancels."""
    jobs = [running(session) for _ in range(30)]
    request_cancel(session, Job, jobs[:2])
    progress = ["[1, 2]"] + [None] * 29

    with sent(session) as statements:
        renewed = renew_many(
            session,
            TABLES,
            [(job, 1) for job in jobs],
            lease=LEASE,
            progress=progress,
            now=NOW + SECOND,
        )

    assert len(statements) == 1
    assert renewed.held == set(jobs)
    assert renewed.cancelled == set(jobs[:2])
    assert renewed.lost == frozenset()
    assert row_of(session, jobs[0])["progress"] == [1, 2]
    assert row_of(session, jobs[1])["progress"] is None
    assert {row_of(session, job)["leased_until"] for job in jobs} == {
        NOW + SECOND + LEASE
    }


def test_renewal_goes_by_the_lease_of_each_job(session: Session) -> None:
    """A job with a lease of its own is renewed by that."""
    job = running(session, lease=timedelta(hours=1))

    renew_many(session, TABLES, [(job, 1)], lease=LEASE, now=NOW)

    assert row_of(session, job)["leased_until"] == NOW + timedelta(hours=1)


def test_missing_rows_cost_one_statement_more(session: Session) -> None:
    """Lost leases are told from locked ones by one second statement; others renew."""
    held, lost = running(session), running(session, lease_token=2)

    with sent(session) as statements:
        renewed = renew_many(
            session, TABLES, [(lost, 1), (held, 1)], lease=LEASE, now=NOW + SECOND
        )

    assert len(statements) == 2
    assert renewed.held == {held}
    assert renewed.lost == {(lost, 1)}
    assert row_of(session, held)["leased_until"] == NOW + SECOND + LEASE


@pytest.mark.parametrize("old_first", [True, False])
def test_two_attempts_of_one_job_are_told_apart(
    session: Session, old_first: bool
) -> None:
    """A stale attempt beside the new one of the same job is lost, alone."""
    job = running(session, lease_token=2)
    pairs = [(job, 1), (job, 2)]

    renewed = renew_many(
        session, TABLES, pairs if old_first else pairs[::-1], lease=LEASE, now=NOW
    )

    assert renewed.is_lost(job, 1)
    assert not renewed.is_lost(job, 2)


def test_renewal_does_not_wait_for_a_writer(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A row that its holder is writing counts as held, without waiting for it."""
    busy, free = elsewhere(running), elsewhere(running)
    with sessions() as holder:
        fenced(holder, busy, checkpoint='{"page": 1}')

        renewed = elsewhere(
            renew_many, TABLES, [(busy, 1), (free, 1)], lease=LEASE, now=AFTER
        )

        assert renewed.held == {busy, free}
        assert renewed.lost == frozenset()


def test_fence_locks_the_row_until_the_commit(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Between fence and commit nobody takes the job, long after its lease."""
    job = elsewhere(running)
    with sessions() as holder:
        fenced(holder, job, checkpoint='{"page": 1}')

        assert elsewhere(rescue, Job, now=AFTER + timedelta(days=1)) == []

        holder.commit()
    assert elsewhere(rescue, Job, now=NOW + LEASE) == []
    assert elsewhere(row_of, job)["checkpoint"] == {"page": 1}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, JobState.RUNNING),
        ({"state": "completed"}, JobState.COMPLETED),
        ({"state": "retryable"}, JobState.RETRYABLE),
        ({"lease_token": 2}, None),
    ],
)
def test_settled_state_answers_an_unanswered_commit(
    session: Session, columns: dict[str, Any], expected: JobState | None
) -> None:
    """The state of the attempt's own claim, or None when another one followed."""
    job = running(session)
    change(session, job, **columns)

    assert settled_state(session, TABLES, job, 1) == expected


def test_token_only_rises(session: Session) -> None:
    """Claim and rescue raise the token, nothing else changes it, nothing lowers it."""
    job = make_job(session)
    claim_one(session, job)
    assert row_of(session, job)["lease_token"] == 1
    rescue(session, Job, now=AFTER)
    assert row_of(session, job)["lease_token"] == 2
    claim_one(session, job)
    assert row_of(session, job)["lease_token"] == 3
    fenced(session, job, 3)
    request_cancel(session, Job, [job])

    assert row_of(session, job)["lease_token"] == 3
