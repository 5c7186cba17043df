"""Settling: what an attempt's end makes of its row, under the token of its claim."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState
from sqla_jobs._core.settle import Settlement
from sqla_jobs._core.states import FINAL, SETTLE_RULES
from sqla_jobs._store.operate import request_cancel
from sqla_jobs._store.settle import settle
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    NOW,
    SECOND,
    Elsewhere,
    Job,
    attempts_of,
    change,
    freed_when_awaited,
    make_job,
    row_of,
    sent,
)

TABLES = job_tables(Job)
LATER = NOW + 10 * SECOND


def settle_one(
    session: Session, job: int, action: str, *, token: int = 1, **values: Any
) -> JobState | None:
    """Settle one attempt; return its new state, or None if it was not held."""
    row = Settlement(job, token, action, **values)
    return settle(session, TABLES, [row], now=LATER).get(job)


CONDITIONS: dict[str | None, dict[str, Any]] = {
    None: {},
    "cancel_requested": {"cancel_requested_at": NOW, "reason": "asked to"},
    "exhausted": {"attempt": 10, "max_attempts": 10},
}
BOTH = CONDITIONS["cancel_requested"] | CONDITIONS["exhausted"]
SETTLING = [rule for rule in SETTLE_RULES if rule[0] != "rescue"]


@pytest.mark.parametrize(("action", "condition", "expected"), SETTLING)
def test_settle_obeys_each_rule(
    session: Session, action: str, condition: str | None, expected: JobState
) -> None:
    """Each rule of the table is what the statement does to a row."""
    job = make_job(session, state="running", **CONDITIONS[condition])

    assert settle_one(session, job, action, delay=5.0) == expected

    row = row_of(session, job)
    assert row["state"] == expected
    assert row["leased_until"] is None
    assert row["lease_token"] == 1
    assert row["finished_at"] == (LATER if expected in FINAL else None)


@pytest.mark.parametrize("action", sorted({rule[0] for rule in SETTLING}))
@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (BOTH, {"cancel_requested", "exhausted", None}),
        (CONDITIONS["cancel_requested"], {"cancel_requested", None}),
        (CONDITIONS["exhausted"], {"exhausted", None}),
        ({}, {None}),
    ],
    ids=["both", "cancel_requested", "exhausted", "neither"],
)
def test_settle_takes_the_first_rule_that_holds(
    session: Session, action: str, row: dict[str, Any], holds: set[str | None]
) -> None:
    """Any action on any row ends as the first matching rule of the table says."""
    expected = next(s for a, c, s in SETTLE_RULES if a == action and c in holds)

    job = make_job(session, state="running", **row)

    assert settle_one(session, job, action) == expected


def test_complete_keeps_result_and_checkpoint(session: Session) -> None:
    """A completion stores its result; without a new checkpoint the saved one stays."""
    kept = make_job(session, state="running", checkpoint={"page": 1})
    new = make_job(session, state="running", checkpoint={"page": 1})

    settle_one(session, kept, "complete", result='{"sum": 2}')
    settle_one(session, new, "complete", checkpoint='{"page": 2}')

    assert row_of(session, kept)["result"] == {"sum": 2}
    assert row_of(session, kept)["checkpoint"] == {"page": 1}
    assert row_of(session, new)["result"] is None
    assert row_of(session, new)["checkpoint"] == {"page": 2}


def test_retry_waits_from_the_failure(session: Session) -> None:
    """The delay counts from the settle, not from the claim or the end of the lease."""
    job = make_job(session, state="running", leased_until=NOW + timedelta(days=1))

    settle_one(session, job, "retry", delay=1.5)

    row = row_of(session, job)
    assert row["run_at"] == LATER + timedelta(seconds=1.5)
    assert (row["attempt"], row["lane"], row["snoozes"]) == (1, 1, 0)


@pytest.mark.parametrize("action", ["retry", "snooze"])
def test_exact_time_is_kept(session: Session, action: str) -> None:
    """A job told to run at a time is due then, to the microsecond, even in the past."""
    job = make_job(session, state="running")
    at = datetime.fromisoformat("2049-12-31T23:59:59.123456-09:30")

    settle_one(session, job, action, at=at)

    assert row_of(session, job)["run_at"] == at


def test_snooze_gives_the_attempt_back(session: Session) -> None:
    """A snooze counts as such, not as an attempt, and keeps the lane."""
    job = make_job(session, state="running", attempt=4, max_attempts=4, lane=2)

    assert settle_one(session, job, "snooze", delay=9.0) == JobState.SCHEDULED

    row = row_of(session, job)
    assert (row["attempt"], row["snoozes"], row["lane"]) == (3, 1, 2)
    assert row["run_at"] == LATER + 9 * SECOND


def test_release_gives_the_attempt_back(session: Session) -> None:
    """A job handed back is available at its old place, as if it had not been tried."""
    job = make_job(session, state="running", attempt=10, max_attempts=10, lane=1)

    assert settle_one(session, job, "release") == JobState.AVAILABLE

    row = row_of(session, job)
    assert (row["attempt"], row["snoozes"], row["lane"]) == (9, 0, 1)
    assert row["run_at"] == NOW


def test_last_failure_says_so(session: Session) -> None:
    """A job whose attempts are used up is discarded with that reason and its error."""
    job = make_job(session, state="running", attempt=10, max_attempts=10)

    settle_one(session, job, "retry", delay=1.0, error="ValueError: no")

    row = row_of(session, job)
    assert (row["state"], row["reason"]) == ("discarded", "attempts used up")
    assert row["last_error"] == "ValueError: no"


def test_reason_is_of_the_present_state(session: Session) -> None:
    """A reason that an earlier attempt gave does not explain what came after."""
    fine, spent, asked, back = (
        make_job(session, state="running", **{"reason": "rate limited", **row})
        for row in ({}, {"attempt": 10}, CONDITIONS["cancel_requested"], {})
    )

    settle_one(session, fine, "complete")
    settle_one(session, spent, "retry", error="ValueError: no")
    settle_one(session, asked, "retry", reason="rate limited again")
    settle_one(session, back, "release")

    assert row_of(session, fine)["reason"] is None
    assert row_of(session, spent)["reason"] == "attempts used up"
    assert row_of(session, asked)["reason"] == "asked to"
    assert row_of(session, back)["reason"] is None


def test_only_attempts_that_did_not_complete_are_logged(session: Session) -> None:
    """Failures, cancels and discards cost a row each; the good way costs none."""
    jobs = {
        action: make_job(session, state="running", attempt=3, lease_token=8)
        for action in ("complete", "snooze", "release", "retry", "cancel", "discard")
    }

    for action, job in jobs.items():
        why = {"retry": {"error": "E: x", "traceback": "tb"}}
        values = why.get(action, {"reason": "r"})
        assert settle_one(session, job, action, token=8, **values) is not None

    logged = {action: attempts_of(session, job) for action, job in jobs.items()}
    assert [a for a, rows in logged.items() if rows] == ["retry", "cancel", "discard"]
    (failed,) = logged["retry"]
    assert (failed["lease_token"], failed["number"]) == (8, 3)
    assert (failed["started_at"], failed["finished_at"]) == (NOW, LATER)
    assert (failed["outcome"], failed["error"]) == ("retry", "E: x")
    assert failed["traceback"] == "tb"
    assert [row["error"] for row in logged["cancel"]] == ["r"]


def test_each_attempt_has_a_log_row(session: Session) -> None:
    """The key is job and token, so that attempts given back do not collide."""
    job = make_job(session, state="running")
    settle_one(session, job, "retry", error="first")
    for token in (2, 3):
        change(session, job, state="running", lease_token=token, attempt=2)
        settle_one(session, job, "retry", token=token, error=f"token {token}")

    found = attempts_of(session, job)

    assert [row["lease_token"] for row in found] == [1, 2, 3]
    assert [row["number"] for row in found] == [1, 2, 2]


def test_batch_is_one_statement(session: Session) -> None:
    """Outcomes of every kind and number are settled, and logged, in one statement."""
    actions = [rule[0] for rule in SETTLING] * 5
    rows = [
        Settlement(make_job(session, state="running"), 1, action, delay=1.0)
        for action in actions
    ]

    with sent(session) as statements:
        states = settle(session, TABLES, rows, now=LATER)

    assert len(states) == len(rows)
    assert len(statements) == 1


def test_empty_batch_is_no_statement(session: Session) -> None:
    """Nothing to settle sends nothing."""
    with sent(session) as statements:
        assert settle(session, TABLES, []) == {}

    assert statements == []


def test_lost_row_leaves_the_others(session: Session) -> None:
    """A lost or deleted row of a batch is missing in the answer; the others settle."""
    held, lost, settled, deleted = (
        make_job(session, state="running", lease_token=5) for _ in range(4)
    )
    change(session, lost, lease_token=6)
    change(session, settled, state="completed")
    session.execute(TABLES.table.delete().where(TABLES.table.c.id == deleted))
    before = row_of(session, lost), row_of(session, settled)

    rows = [
        Settlement(job, 5, "retry", error="x") for job in (deleted, settled, lost, held)
    ]
    states = settle(session, TABLES, rows, now=LATER)

    assert states == {held: JobState.RETRYABLE}
    assert (row_of(session, lost), row_of(session, settled)) == before
    assert attempts_of(session, lost) == attempts_of(session, settled) == []


@pytest.mark.parametrize("old_first", [True, False])
def test_old_and_new_token_in_one_batch(session: Session, old_first: bool) -> None:
    """Of one job's two attempts in a batch only the one that holds it is written."""
    job = make_job(session, state="running", lease_token=2, attempt=2)
    rows = [
        Settlement(job, 1, "retry", delay=1.0, error="old"),
        Settlement(job, 2, "discard", reason="new"),
    ]

    states = settle(session, TABLES, rows if old_first else rows[::-1], now=LATER)

    assert states == {job: JobState.DISCARDED}
    (logged,) = attempts_of(session, job)
    assert (logged["lease_token"], logged["error"]) == (2, "new")


def test_one_attempt_twice_in_one_batch(session: Session) -> None:
    """The first of two outcomes of one attempt is written, the batch is not refused."""
    job, mate = (make_job(session, state="running") for _ in range(2))
    rows = [
        Settlement(job, 1, "retry", error="first"),
        Settlement(job, 1, "discard", reason="second"),
        Settlement(mate, 1, "complete"),
    ]

    states = settle(session, TABLES, rows, now=LATER)

    assert states == {job: JobState.RETRYABLE, mate: JobState.COMPLETED}
    assert [row["error"] for row in attempts_of(session, job)] == ["first"]


@pytest.mark.parametrize("action", ["retry", "snooze", "complete", "discard"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in a batch"])
def test_attempt_that_was_settled_is_not_settled_again(
    session: Session, action: str, beside: bool
) -> None:
    """Its token still matches; what was written first counts, and stays."""
    job = make_job(session, state="running")
    settle_one(session, job, action, delay=5.0)
    before = row_of(session, job)
    rows = [Settlement(job, 1, "complete", result='"late"')]
    if beside:
        other = make_job(session, state="running")
        rows.append(Settlement(other, 1, "complete"))

    assert job not in settle(session, TABLES, rows, now=LATER)

    assert row_of(session, job) == before


def test_expired_lease_is_still_held(session: Session) -> None:
    """Until somebody rescues it, a job settles long after its lease."""
    job = make_job(session, state="running", leased_until=NOW - timedelta(days=9))

    assert settle_one(session, job, "complete") == JobState.COMPLETED


def test_settle_waits_for_a_locked_row_or_not(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """With ``wait=False`` a row that somebody is writing is missing in the answer."""
    busy, free = (elsewhere(make_job, state="running") for _ in range(2))
    rows = [Settlement(job, 1, "complete") for job in (busy, free)]
    with sessions() as holder, sessions() as other:
        change(holder, busy, progress=1)

        assert settle(other, TABLES, rows, wait=False) == {free: JobState.COMPLETED}
        other.rollback()
        other.execute(text("SET LOCAL lock_timeout = 50"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            settle(other, TABLES, rows)


def test_cancel_in_time_decides(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A cancel that commits while the settle waits for the row is honoured."""
    job = elsewhere(make_job, state="running")
    with sessions() as canceller, sessions() as holder:
        request_cancel(canceller, Job, [job])

        with freed_when_awaited(holder, canceller):
            states = settle(holder, TABLES, [Settlement(job, 1, "retry", delay=1.0)])

    assert states == {job: JobState.CANCELLED}


def test_settle_and_cancel_lock_in_one_order(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A batch does not deadlock with an operator's, whatever the plan and the heap."""
    first, second = (elsewhere(make_job, state="running") for _ in range(2))
    elsewhere(change, first, progress=1)  # now behind the second one in the heap
    rows = [Settlement(job, 1, "complete") for job in (second, first)]
    with sessions() as canceller, sessions() as settler:
        for setting in ("nestloop", "mergejoin", "indexscan", "bitmapscan"):
            settler.execute(text(f"SET LOCAL enable_{setting} = off"))
        request_cancel(canceller, Job, [first])

        with freed_when_awaited(
            settler, canceller, lambda session: request_cancel(session, Job, [second])
        ):
            states = settle(settler, TABLES, rows)

    assert states == dict.fromkeys((first, second), JobState.COMPLETED)
