"""Rescue: what becomes of a job whose holder went silent."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import JobState, JobValueError
from sqla_jobs._core.states import FINAL, SETTLE_RULES
from sqla_jobs._store.claim import claim
from sqla_jobs._store.sweep import Rescued, rescue
from sqla_jobs._store.verbs import checkpoint, complete, fail
from tests.conformance.factories import (
    LEASE,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    at_once,
    attempts_of,
    change,
    claim_one,
    fill,
    make_job,
    row_of,
    sent,
)

AFTER = NOW + LEASE + SECOND
CONDITIONS: dict[str | None, dict[str, Any]] = {
    None: {},
    "cancel_requested": {"cancel_requested_at": NOW, "reason": "asked to"},
    "exhausted": {"attempt": 10, "max_attempts": 10},
    "poison": {"crashes": 2},
}
RULES = [(c, state) for action, c, state in SETTLE_RULES if action == "rescue"]


@pytest.mark.parametrize(("condition", "expected"), RULES)
def test_rescue_obeys_each_rule(
    session: Session, condition: str | None, expected: JobState
) -> None:
    """Each rule of the table is what the sweep does to a row."""
    job = make_job(session, state="running", **CONDITIONS[condition])

    (found,) = rescue(session, Job, now=AFTER)

    row = row_of(session, job)
    assert row["state"] == found.state == expected
    assert row["leased_until"] is None
    assert row["finished_at"] == (AFTER if expected in FINAL else None)


def test_rescue_takes_the_first_rule_that_holds(session: Session) -> None:
    """Cancel wins over spent attempts and poison."""
    both = CONDITIONS["exhausted"] | CONDITIONS["poison"]
    make_job(session, state="running", **both | CONDITIONS["cancel_requested"])
    make_job(session, state="running", **both)

    found = rescue(session, Job, now=AFTER)

    assert sorted(job.state for job in found) == ["cancelled", "discarded"]


def test_rescued_job_is_told_and_marked(session: Session) -> None:
    """The row goes last in line with a new token; the answer says who had it."""
    runner = uuid4()
    job = make_job(
        session, state="running", runner_id=runner, queue="q", lease_token=4, attempt=2
    )

    (found,) = rescue(session, Job, now=AFTER)

    assert found == Rescued(job, "work", "q", JobState.AVAILABLE, 2, 1, runner)
    row = row_of(session, job)
    assert (row["lane"], row["crashes"], row["lease_token"]) == (2, 1, 5)
    assert (row["attempt"], row["run_at"]) == (2, NOW)
    assert "lease expired" in row["last_error"]
    (logged,) = attempts_of(session, job)
    assert (logged["lease_token"], logged["number"]) == (4, 2)
    assert (logged["outcome"], logged["runner_id"]) == ("crash", runner)
    assert (logged["started_at"], logged["finished_at"]) == (NOW, AFTER)


@pytest.mark.parametrize("state", [s for s in JobState if s != JobState.RUNNING])
def test_rescue_touches_only_running_jobs(session: Session, state: JobState) -> None:
    """No other state is rescued, even if a lease was left in the row."""
    make_job(session, state=state, leased_until=NOW)

    assert rescue(session, Job, now=AFTER) == []


def test_rescue_leaves_leases_alone_that_hold(session: Session) -> None:
    """Only leases past their end, and past ``expired_for``, are taken."""
    make_job(session, state="running")

    assert rescue(session, Job, now=NOW + LEASE) == []
    assert rescue(session, Job, expired_for=LEASE, now=AFTER) == []
    assert len(rescue(session, Job, expired_for=SECOND / 2, now=AFTER)) == 1


def test_rescue_can_be_limited_to_queues(session: Session) -> None:
    """Only the given queues are swept, and no more than the limit."""
    for name in ("a", "b", "b"):
        make_job(session, state="running", queue=name)

    assert [job.queue for job in rescue(session, Job, queues=["a"], now=AFTER)] == ["a"]
    assert rescue(session, Job, queues=[], now=AFTER) == []
    assert len(rescue(session, Job, limit=1, now=AFTER)) == 1
    assert len(rescue(session, Job, now=AFTER)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be 1 to 10000, got 0"),
        ({"max_crashes": 0}, "max_crashes must be 1 or more, got 0"),
        ({"queues": "mail"}, r"queues must be a list of names, .*\['mail'\]"),
    ],
)
def test_bad_value_is_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    """The error says what is wrong with the value."""
    with pytest.raises(JobValueError, match=message):
        rescue(session, Job, **options)


def test_rescue_is_one_statement(session: Session) -> None:
    """Any number of expired leases is taken back, and logged, in one statement."""
    fill(session, 200, state="running", leased_until=NOW, attempt=1)

    with sent(session) as statements:
        assert len(rescue(session, Job, now=AFTER)) == 200

    assert len(statements) == 1


def test_crash_before_the_first_heartbeat(session: Session) -> None:
    """A job whose holder died right after the claim comes back."""
    job = make_job(session)
    claim_one(session, job)

    rescue(session, Job, now=AFTER)

    again = claim_one(session, job, now=AFTER)
    assert (again.attempt, again.token) == (2, 3)


def test_crash_on_the_last_attempt_discards(session: Session) -> None:
    """The only attempt was spent at the claim, so the job ends with its reason."""
    job = make_job(session, max_attempts=1)
    claim_one(session, job)

    (found,) = rescue(session, Job, now=AFTER)

    assert found.state == JobState.DISCARDED
    assert row_of(session, job)["reason"] == "attempts used up"


def test_crash_loop_ends_as_poison(session: Session) -> None:
    """A job that kills its runners again and again is discarded at ``max_crashes``."""
    job = make_job(session, max_attempts=100)
    states, now = list[JobState](), NOW
    while found := claim(session, Job, now=now):
        assert found[0].job_id == job
        now += LEASE + SECOND
        states += [rescued.state for rescued in rescue(session, Job, now=now)]

    assert states == ["available", "available", "discarded"]
    row = row_of(session, job)
    assert (row["attempt"], row["crashes"]) == (3, 3)
    assert row["reason"] == "poison: 3 crashes"


def test_most_crashes_can_be_chosen(session: Session) -> None:
    """With ``max_crashes=1`` the first crash discards."""
    make_job(session, state="running")

    (found,) = rescue(session, Job, max_crashes=1, now=AFTER)

    assert found.state == JobState.DISCARDED


def test_crash_after_a_failure_keeps_the_count(session: Session) -> None:
    """Failures and crashes spend the same attempts."""
    job = make_job(session, max_attempts=3)
    fail(session, claim_one(session, job), "no", retry_at=NOW, now=NOW)
    change(session, job, state="available")
    claim_one(session, job)
    rescue(session, Job, now=AFTER)

    row = row_of(session, job)
    assert (row["attempt"], row["crashes"]) == (2, 1)
    assert claim_one(session, job, now=AFTER).attempt == 3
    assert rescue(session, Job, now=AFTER + LEASE * 2)[0].state == "discarded"


def test_checkpoint_on_the_last_attempt_is_not_immortal(session: Session) -> None:
    """Saving state does not buy attempts: a crash after it discards the job."""
    job = make_job(session, max_attempts=1)
    now = NOW
    held = claim_one(session, job)
    for page in range(5):
        now += SECOND
        checkpoint(session, held, {"page": page}, now=now)

    (found,) = rescue(session, Job, now=now + LEASE + SECOND)

    assert found.state == JobState.DISCARDED
    assert row_of(session, job)["checkpoint"] == {"page": 4}


def test_extra_attempts_survive_a_crash(session: Session) -> None:
    """A checkpoint that raised ``max_attempts`` lets the job come back once more."""
    job = make_job(session, max_attempts=1)
    checkpoint(session, claim_one(session, job), {"page": 1}, extra_attempts=1, now=NOW)

    rescue(session, Job, now=AFTER)

    again = claim_one(session, job, now=AFTER)
    assert (again.attempt, again.max_attempts, again.state) == (2, 2, {"page": 1})


def test_reason_of_an_earlier_attempt_does_not_hide_the_crash(session: Session) -> None:
    """What a retry said once is not why the job is poison now."""
    job = make_job(session, state="running", reason="rate limited", crashes=2)

    rescue(session, Job, now=AFTER)

    assert row_of(session, job)["reason"] == "poison: 3 crashes"


def test_uncommitted_checkpoint_is_not_stolen(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A holder that writes for longer than its lease keeps the job."""
    job = elsewhere(make_job)
    held = elsewhere(claim_one, job)
    with sessions() as holder:
        checkpoint(holder, held, {"page": 1}, now=NOW + SECOND)

        assert elsewhere(rescue, Job, now=AFTER + LEASE * 99) == []

        complete(holder, held, now=AFTER)
        holder.commit()
    assert elsewhere(row_of, job)["state"] == "completed"


def test_concurrent_sweeps_rescue_each_job_once(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Sweeps of several runners share the work and count each crash once."""
    elsewhere(fill, 300, state="running", leased_until=NOW, attempt=1, lease_token=1)

    def sweep() -> list[int]:
        mine: list[int] = []
        while found := elsewhere(rescue, Job, limit=7, now=AFTER):
            mine += [job.job_id for job in found]
        return mine

    everything = [job for found in at_once([sweep] * 4) for job in found]

    assert len(everything) == len(set(everything)) == 300
    with sessions() as session:
        rows = [row_of(session, job) for job in everything[:20]]
    assert {(row["crashes"], row["lease_token"]) for row in rows} == {(1, 2)}


def test_long_lease_counts_for_the_rescue(session: Session) -> None:
    """A job with a lease of its own is left alone for as long."""
    make_job(session, lease=timedelta(hours=1))
    claim_one(session)

    assert rescue(session, Job, now=AFTER) == []
    assert len(rescue(session, Job, now=NOW + timedelta(hours=1, seconds=1))) == 1
