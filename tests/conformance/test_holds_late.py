"""Holds that end: what a late owner gets, expiry, and who wins of several."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    HoldExpired,
    JobState,
    JobValueError,
    abort_hold,
    confirm_hold,
    extend_hold,
    request_cancel,
)
from sqla_jobs._store import holds, wake
from sqla_jobs._store.holds import expire_holds
from sqla_jobs._store.sweep import Staged, stage
from sqla_jobs.models import job_tables
from tests.conformance.enqueue_kit import Ear
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    at_once,
    freed_when_awaited,
    make_job,
    row_of,
)

TABLES = job_tables(Job)
HOUR = timedelta(hours=1)
UNKNOWN = 999_999_999
OTHERS = sorted(set(JobState) - {JobState.HELD})
VERBS: dict[str, Callable[..., None]] = {
    "confirmed": confirm_hold,
    "extended": partial(extend_hold, for_=HOUR),
    "aborted": abort_hold,
}
IN_TIME = ["confirmed", "extended"]


def held(session: Session, **columns: Any) -> int:
    """Insert a job that is held for an hour from `NOW`, and return its id."""
    values = {"state": "held", "held_until": NOW + HOUR, **columns}
    return make_job(session, **values)


def states(session: Session) -> list[str]:
    """Return the states of all jobs, by id."""
    return list(session.scalars(select(Job.state).order_by(Job.id)))


@pytest.fixture
def ear(job_engine: Engine) -> Any:
    """Yield what hears the wake-ups."""
    wake.forget_recent()
    ear = Ear(job_engine, Job)
    yield ear
    ear.close()
    wake.forget_recent()


# Too late


@pytest.mark.parametrize("verb", IN_TIME)
@pytest.mark.parametrize("late", [timedelta(0), SECOND])
def test_hold_that_is_over_is_neither_confirmed_nor_extended(
    session: Session, verb: str, late: timedelta
) -> None:
    """The time decides, not whether a sweep has seen it already."""
    job = held(session)
    before = row_of(session, job)

    with pytest.raises(HoldExpired, match=rf"job {job} cannot be {verb}: .*expired at"):
        VERBS[verb](session, Job, job, now=NOW + HOUR + late)

    assert row_of(session, job) == before
    VERBS[verb](session, Job, job, now=NOW + HOUR - timedelta(microseconds=1))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", OTHERS)
def test_job_that_is_not_held_is_left_alone(
    session: Session, verb: str, state: JobState
) -> None:
    """The error names the job, its state and the reason; nothing is changed."""
    job = make_job(session, state=state, reason="hold expired")
    before = row_of(session, job)

    with pytest.raises(HoldExpired) as caught:
        VERBS[verb](session, Job, job, now=NOW)

    error = caught.value
    assert str(error) == f"job {job} cannot be {verb}: it is {state}: hold expired"
    assert (error.job_id, error.state, error.reason) == (job, state, "hold expired")
    assert row_of(session, job) == before


@pytest.mark.parametrize("verb", VERBS)
def test_unknown_job_is_an_error(session: Session, verb: str) -> None:
    """A reservation that was deleted, or never was, is not confirmed in silence."""
    with pytest.raises(HoldExpired, match="there is no such job") as caught:
        VERBS[verb](session, Job, UNKNOWN)

    assert (caught.value.job_id, caught.value.state) == (UNKNOWN, None)


@pytest.mark.parametrize(
    ("verb", "bad"),
    [
        *product(VERBS, ["available", "cancelled", "unknown"]),
        *product(IN_TIME, ["over"]),
    ],
)
def test_all_or_none(session: Session, verb: str, bad: str) -> None:
    """One that is not held any more keeps the others as they are."""
    jobs = [held(session, held_until=NOW + DAY) for _ in range(2)]
    if bad == "over":
        jobs.append(held(session, held_until=NOW))
    elif bad == "unknown":
        jobs.append(UNKNOWN)
    else:
        jobs.append(make_job(session, state=bad))
    before = states(session)

    message = f"job {jobs[2]} cannot be .*; none of the 3 jobs was"
    with pytest.raises(HoldExpired, match=message):
        VERBS[verb](session, Job, jobs, now=NOW)

    assert states(session) == before
    VERBS[verb](session, Job, jobs[:2], now=NOW)


def test_several_that_are_late_are_counted(session: Session) -> None:
    """The first is named; the error is the same in another process."""
    jobs = [held(session, held_until=NOW) for _ in range(3)]
    message = f"job {jobs[0]} cannot be confirmed, nor 2 more: its hold expired"
    with pytest.raises(HoldExpired, match=message) as caught:
        confirm_hold(session, Job, jobs, now=NOW)

    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), vars(copy)) == (str(caught.value), vars(caught.value))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("ids", [None, [None], ["1"], [True], [1.5]])
def test_bad_ids_are_refused(session: Session, verb: str, ids: Any) -> None:
    """A job that is not flushed has no id; the error says so."""
    with pytest.raises(JobValueError, match=r"_hold\(\) needs ids, got .*flush"):
        VERBS[verb](session, Job, ids)


# Expiry


def test_expired_hold_is_cancelled(session: Session) -> None:
    """Those whose time is over end with that reason; others are not touched."""
    over, ahead = held(session), held(session, held_until=NOW + HOUR + SECOND)
    other = make_job(session, held_until=NOW)

    assert expire_holds(session, TABLES, now=NOW) == 0
    assert expire_holds(session, TABLES, now=NOW + HOUR) == 1

    row = row_of(session, over)
    assert (row["state"], row["reason"]) == ("cancelled", "hold expired")
    assert row["finished_at"] == NOW + HOUR
    assert row_of(session, ahead)["state"] == "held"
    assert row_of(session, other)["state"] == "available"
    with pytest.raises(HoldExpired, match="it is cancelled: hold expired"):
        confirm_hold(session, Job, over, now=NOW)


def test_sweep_knows_the_next_expiry(session: Session) -> None:
    """Staging tells when the next hold is over, and whether one is."""
    held(session)
    assert stage(session, Job, now=NOW) == Staged(0, 3600.0)

    held(session, held_until=NOW)
    assert stage(session, Job, now=NOW) == Staged(0, 3600.0, holds_due=True)
    assert stage(session, Job, now=NOW + DAY) == Staged(0, None, holds_due=True)


def test_expiry_is_in_batches(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of expired holds is no long transaction; the oldest go first."""
    monkeypatch.setattr(holds, "BATCH", 2)
    for number in range(3):
        held(session, held_until=NOW - number * SECOND)

    assert expire_holds(session, TABLES, now=NOW) == 2
    assert states(session) == ["held", "cancelled", "cancelled"]
    assert expire_holds(session, TABLES, now=NOW) == 1


@pytest.mark.parametrize(("ordered", "woken"), [(True, 1), (False, 0)])
def test_expiry_wakes_runners_for_the_next_in_order(
    elsewhere: Elsewhere, ear: Ear, ordered: bool, woken: int
) -> None:
    """Only in an ordered channel is there anybody who waited for it."""
    elsewhere(held, ordered=ordered)

    assert elsewhere(expire_holds, TABLES, now=NOW + HOUR) == 1

    assert ear.heard() == woken


def test_cancel_request_ends_a_held_job(session: Session) -> None:
    """An operator need not wait for the expiry; the owner learns of it."""
    job = held(session)

    assert request_cancel(session, Job, [job], now=NOW).cancelled == (job,)

    with pytest.raises(HoldExpired, match="it is cancelled: cancelled on request"):
        confirm_hold(session, Job, job, now=NOW)


# Races


def test_expiry_leaves_what_is_being_confirmed(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Who confirmed in time has won, whenever the commit comes."""
    job = elsewhere(held)
    with sessions() as owner:
        confirm_hold(owner, Job, job, now=NOW)
        assert elsewhere(expire_holds, TABLES, now=NOW + DAY) == 0
        # Nothing to come back for at once: the row would be locked again.
        staged = elsewhere(stage, Job, now=NOW + DAY)
        assert (staged.holds_due, staged.next_due) == (True, None)
        owner.commit()

    assert elsewhere(row_of, job)["state"] == "available"


@pytest.mark.parametrize("verb", VERBS)
def test_owner_that_is_late_waits_and_learns_of_it(
    sessions: sessionmaker[Session], elsewhere: Elsewhere, verb: str
) -> None:
    """It sees what the expiry has made of the row, not what was there before."""
    job = elsewhere(held)
    with sessions() as owner, sessions() as sweeper:
        expire_holds(sweeper, TABLES, now=NOW + HOUR)
        with (
            freed_when_awaited(owner, sweeper),
            pytest.raises(HoldExpired, match="it is cancelled: hold expired"),
        ):
            VERBS[verb](owner, Job, job, now=NOW)
        owner.commit()

    assert elsewhere(row_of, job)["state"] == "cancelled"


def test_owner_that_waits_for_nothing_wins(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """An expiry that is rolled back has not happened."""
    job = elsewhere(held)
    with sessions() as owner, sessions() as sweeper:
        expire_holds(sweeper, TABLES, now=NOW + HOUR)
        with freed_when_awaited(owner, sweeper, lambda session: session.rollback()):
            confirm_hold(owner, Job, job, now=NOW)
        owner.commit()

    assert elsewhere(row_of, job)["state"] == "available"


@pytest.mark.parametrize("first", VERBS)
def test_second_owner_sees_what_the_first_has_done(
    sessions: sessionmaker[Session], elsewhere: Elsewhere, first: str
) -> None:
    """Of two that confirm, or confirm and abort, one has done it and one raises."""
    job = elsewhere(held)
    with sessions() as one, sessions() as other:
        VERBS[first](one, Job, job, now=NOW)
        with freed_when_awaited(other, one):
            if first == "extended":
                confirm_hold(other, Job, job, now=NOW)
            else:
                with pytest.raises(HoldExpired):
                    confirm_hold(other, Job, job, now=NOW)


def test_confirm_races_expiry_and_abort(elsewhere: Elsewhere) -> None:
    """In many rounds exactly one wins, the others raise, and no job is stuck."""
    seen = set[str]()
    for number in range(100):
        rand = random.Random(number)
        jobs = [elsewhere(held) for _ in range(2)]

        def attempt(verb: Callable[..., None], jobs: list[int]) -> bool:
            try:
                elsewhere(verb, Job, jobs, now=NOW)
            except HoldExpired:
                return False
            return True

        def expire() -> bool:
            return elsewhere(expire_holds, TABLES, now=NOW + DAY) > 0

        racers: list[Callable[[], bool]] = [
            partial(attempt, confirm_hold, jobs),
            partial(attempt, abort_hold, jobs[::-1]),
            expire,
        ]
        order = rand.sample(range(3), 3)
        answers = at_once([racers[place] for place in order])
        won = {place for place, answer in zip(order, answers, strict=True) if answer}
        found = {elsewhere(row_of, job)["state"] for job in jobs}
        reasons = {elsewhere(row_of, job)["reason"] for job in jobs}
        if 0 in won:
            assert (won, found) == ({0}, {"available"})
        elif 1 in won:
            assert (won, reasons) == ({1}, {"hold aborted"})
        else:
            # Skipping locked rows, it may have left them to a verb that then raised.
            elsewhere(expire_holds, TABLES, now=NOW + DAY)
            reasons = {elsewhere(row_of, job)["reason"] for job in jobs}
            assert reasons == {"hold expired"}
        seen |= {str(won)}

    assert len(seen) > 1
