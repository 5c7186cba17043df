"""Two-phase enqueue: hold, confirm, extend, abort."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobState,
    JobValueError,
    MissingTables,
    abort_hold,
    confirm_hold,
    enqueue_many,
    enqueue_select,
    extend_hold,
)
from sqla_jobs._store import wake
from sqla_jobs._store.claim import claim
from sqla_jobs._store.sweep import stage
from sqla_jobs.models import job_tables
from tests.conformance.enqueue_kit import Ear
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    Joined,
    Work,
    make_job,
    row_of,
    sent,
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


# The enqueue


def test_held_job_has_its_time_from_the_flush(session: Session) -> None:
    """It is held until the database's clock at the flush, and the time given."""
    job = Work(hold_for=HOUR)
    session.add(job)
    session.flush()
    session.refresh(job)

    now = session.scalar(select(func.clock_timestamp()))
    assert job.state == "held"
    assert job.held_until is not None
    assert now is not None
    assert now + HOUR - 10 * SECOND < job.held_until <= now + HOUR


def test_held_job_is_not_claimed(
    sessions: sessionmaker[Session], ear: Ear, elsewhere: Elsewhere
) -> None:
    """Nobody runs it, and nobody is woken for it."""
    with sessions() as session:
        session.add(Work(hold_for=HOUR))
        session.commit()

    assert ear.heard() == 0
    assert elsewhere(claim, Job) == []


@pytest.mark.parametrize("delay_first", [True, False])
def test_delay_counts_as_ever(session: Session, delay_first: bool) -> None:
    """Delay and hold count from the same time, in one statement."""
    given: dict[str, Any] = {"delay": DAY, "hold_for": HOUR}
    names = sorted(given, reverse=not delay_first)
    jobs: list[Any] = [Work(**{name: given[name] for name in names}) for _ in range(3)]
    with sent(session) as statements:
        session.add_all(jobs)
        session.flush()

    assert [one.split()[0] for one in statements] == ["SELECT", "INSERT"]
    for job in jobs:
        assert job.state == "held"
        assert job.run_at - job.held_until == DAY - HOUR


@pytest.mark.parametrize("run_at_first", [True, False])
def test_run_at_may_be_ahead(session: Session, run_at_first: bool) -> None:
    """A time in the future is kept for when the job is confirmed."""
    given: dict[str, Any] = {"run_at": NOW, "hold_for": HOUR}
    names = sorted(given, reverse=run_at_first)
    job: Any = Work(**{name: given[name] for name in names})
    session.add(job)
    session.flush()

    assert (job.state, job.run_at) == ("held", NOW)
    confirm_hold(session, Job, job.id)
    assert row_of(session, job.id)["state"] == "scheduled"


def test_hold_with_a_time_in_the_past_is_refused(session: Session) -> None:
    """The flush says so by the database's clock; the transaction can go on."""
    session.add(good := Work(hold_for=HOUR))
    session.flush()
    bad = Work(hold_for=HOUR, run_at=datetime(2020, 1, 1, tzinfo=UTC))
    session.add(bad)
    with pytest.raises(JobValueError, match=r"hold_for with run_at=2020-.* has passed"):
        session.flush()

    session.expunge(bad)
    confirm_hold(session, Job, good.id)
    assert states(session) == ["available"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (timedelta(0), "must be above zero"),
        (-HOUR, "is negative"),
        (3600, "must be a timedelta"),
        (timedelta(days=4000), "is above 3660 days"),
    ],
)
def test_bad_hold_is_refused(session: Session, value: Any, message: str) -> None:
    """The constructor and `extend_hold` name the value and what is wrong."""
    with pytest.raises(JobValueError, match=rf"Work\(hold_for=.*\) {message}"):
        Work(hold_for=value)
    with pytest.raises(JobValueError, match=rf"extend_hold\(for_=.*\) {message}"):
        extend_hold(session, Job, 1, value)


def test_hold_without_an_end_is_refused(session: Session) -> None:
    """A job that would be held for ever is an error at the flush."""
    job = Work()
    job.state = "held"
    session.add(job)

    with pytest.raises(JobValueError, match="use hold_for"):
        session.flush()


def test_no_hold_costs_nothing(session: Session) -> None:
    """Without a hold no clock is read."""
    with sent(session) as statements:
        session.add_all([Work(hold_for=None), Work()])
        session.flush()

    assert [one.split()[0] for one in statements] == ["INSERT"]


@pytest.mark.parametrize("copy_threshold", [None, 1])
def test_bulk_holds_jobs(session: Session, copy_threshold: int | None) -> None:
    """The clock is read once per chunk, also for COPY and other tables."""
    with sent(session) as statements:
        row: dict[str, Any] = {"hold_for": HOUR, "run_at": NOW}
        enqueue_many(session, Work, [row] * 4, copy_threshold=copy_threshold, chunk=2)
    clocks = [one for one in statements if "statement_timestamp" in one]
    assert len(clocks) == 2
    enqueue_many(session, Joined, [{"hold_for": HOUR}, {}], copy_threshold=None)

    assert states(session).count("held") == 5
    confirm_hold(
        session, Job, session.scalars(select(Job.id).where(Job.state == "held"))
    )
    assert sorted(states(session)) == ["available"] * 2 + ["scheduled"] * 4
    past = {"hold_for": HOUR, "run_at": datetime(2020, 1, 1, tzinfo=UTC)}
    with pytest.raises(JobValueError, match=r"row 1: hold_for .* has passed"):
        enqueue_many(session, Work, [{}, past])


@pytest.mark.parametrize("value", [HOUR, func.make_interval(0, 0, 0, 0, 1)])
def test_query_refuses_holds(session: Session, value: Any) -> None:
    """The ids that a confirmation needs do not come back."""
    rows = select(func.generate_series(1, 3).table_valued("n"))
    with pytest.raises(JobValueError, match=r"takes no hold_for.*session.add_all"):
        enqueue_select(session, Work, rows, {"hold_for": value})


# Confirm, extend, abort


def test_confirmed_job_may_be_claimed(session: Session) -> None:
    """It is available, with its id and its time, as if it had never been held."""
    job = held(session, run_at=NOW - HOUR)
    before = row_of(session, job)

    confirm_hold(session, Job, job, now=NOW)

    assert row_of(session, job) == {**before, "state": "available", "held_until": None}
    assert [one.job_id for one in claim(session, Job, now=NOW)] == [job]


def test_confirmed_job_that_is_not_due_is_scheduled(session: Session) -> None:
    """It waits for its own time, and is staged then."""
    job = held(session, run_at=NOW + SECOND)

    confirm_hold(session, Job, [job], now=NOW)

    assert row_of(session, job)["state"] == "scheduled"
    assert stage(session, Job, now=NOW + SECOND).count == 1


def test_confirmation_wakes_runners_at_its_commit(
    sessions: sessionmaker[Session], ear: Ear, elsewhere: Elsewhere
) -> None:
    """Once, and not when it is rolled back."""
    jobs = [elsewhere(held) for _ in range(3)]
    with sessions() as session:
        confirm_hold(session, Job, jobs, now=NOW)
        session.rollback()
        assert ear.heard() == 0
        assert states(session) == ["held"] * 3

        confirm_hold(session, Job, jobs[:2], now=NOW)
        confirm_hold(session, Job, jobs[2:], now=NOW)
        assert ear.heard() == 0
        session.commit()
        assert ear.heard() == 1


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_are_one_statement(session: Session, verb: str) -> None:
    """However many ids there are, in whatever collection; none at all for no id."""
    jobs = [held(session) for _ in range(3)]
    with sent(session) as statements:
        VERBS[verb](session, Work, [], now=NOW)
        VERBS[verb](session, Work, (one for one in [*jobs, *jobs]), now=NOW)

    assert len(statements) == 1


def test_extended_hold_counts_from_now(session: Session) -> None:
    """The new time replaces the old one, also if it is shorter."""
    job = held(session)

    extend_hold(session, Job, job, 3 * HOUR, now=NOW)
    assert row_of(session, job)["held_until"] == NOW + 3 * HOUR
    extend_hold(session, Job, [job], SECOND, now=NOW + 2 * HOUR)

    assert row_of(session, job)["held_until"] == NOW + 2 * HOUR + SECOND
    assert row_of(session, job)["state"] == "held"


def test_aborted_job_is_cancelled(session: Session) -> None:
    """It has the reason, cleaned and cut, and the time."""
    first, second = held(session), held(session)

    abort_hold(session, Job, first, now=NOW)
    abort_hold(session, Job, [second], "no\0 stock" + "x" * 2000, now=NOW)

    row = row_of(session, first)
    assert (row["state"], row["reason"]) == ("cancelled", "hold aborted")
    assert row["finished_at"] == NOW
    assert len(row_of(session, second)["reason"].encode()) <= 1_000


def test_hold_that_is_over_can_be_aborted(session: Session) -> None:
    """It ends cancelled either way, with the reason of who came first."""
    job = held(session, held_until=NOW)

    abort_hold(session, Job, job, now=NOW)

    assert row_of(session, job)["reason"] == "hold aborted"


def test_aborted_job_frees_its_unique_key(session: Session) -> None:
    """A held job has its key; the next one can have it afterwards."""
    job = held(session, unique_key="k")

    abort_hold(session, Job, job, now=NOW)

    make_job(session, unique_key="k")


@pytest.mark.parametrize(("ordered", "woken"), [(True, 1), (False, 0)])
def test_abort_wakes_runners_for_the_next_in_order(
    elsewhere: Elsewhere, ear: Ear, ordered: bool, woken: int
) -> None:
    """Only in an ordered channel is there anybody who waited for it."""
    job = elsewhere(held, ordered=ordered)

    elsewhere(abort_hold, Job, job, now=NOW)

    assert ear.heard() == woken


# Sessions


def test_async_session_runs_the_verbs(
    dsn: str, sessions: sessionmaker[Session]
) -> None:
    """By run_sync; without it the error says so."""
    translated = sessions.kw["bind"].get_execution_options()["schema_translate_map"]

    async def main() -> str:
        engine = create_async_engine(dsn).execution_options(
            schema_translate_map=translated
        )
        async with AsyncSession(engine) as session:
            job = Work(hold_for=HOUR)
            session.add(job)
            await session.flush()
            await session.run_sync(extend_hold, Job, job.id, HOUR)
            await session.run_sync(confirm_hold, Job, [job.id])
            with pytest.raises(JobValueError, match=r"session.run_sync\(confirm_hold"):
                confirm_hold(session, Job, job.id)  # type: ignore[arg-type]
            await session.refresh(job)
            state = job.state
        await engine.dispose()
        return state

    assert asyncio.run(main()) == "available"


def test_missing_tables_are_named(dsn: str) -> None:
    """As everywhere, the error says how to create them."""
    engine = create_engine(dsn).execution_options(
        schema_translate_map={None: "nowhere"}
    )
    with Session(engine) as session, pytest.raises(MissingTables, match="jobs"):
        confirm_hold(session, Job, 1)
    engine.dispose()
