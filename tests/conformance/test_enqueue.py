"""What `session.add` and commit do: one INSERT, one wake-up, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import DateTime, Engine, cast, create_engine, event, func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqla_jobs import JobValueError, PayloadError
from sqla_jobs._core.states import JobState
from sqla_jobs._store import wake
from tests.conformance.enqueue_kit import (
    Base,
    Bill,
    Ear,
    Invoice,
    Job,
    Other,
    Ping,
    Report,
    Send,
    Tick,
    executed,
    in_schema,
    schema_for,
)

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def schema(engine: Engine) -> Iterator[str]:
    """Yield the schema of this module's tables."""
    with schema_for(Base, engine) as name:
        yield name


@pytest.fixture
def db(engine: Engine, schema: str) -> Iterator[Engine]:
    """Yield an engine on empty tables; no wake-up is remembered."""
    own: Engine = in_schema(engine, schema)
    wake.forget_recent()
    yield own
    with own.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def session(db: Engine) -> Iterator[Session]:
    """Yield a session on empty tables."""
    with Session(db) as session:
        yield session


@pytest.fixture
def ear(db: Engine) -> Iterator[Ear]:
    """Yield what hears the wake-ups of `Job`."""
    ear = Ear(db)
    yield ear
    ear.close()


def count(session: Session) -> int:
    """Return how many jobs there are."""
    return session.scalar(select(func.count()).select_from(Job)) or 0


def test_commit_makes_the_job_and_wakes_runners_once(
    session: Session, ear: Ear
) -> None:
    """A committed job is there, and its runners hear of it once."""
    session.add(Send(subject="Hi"))
    session.commit()

    assert count(session) == 1
    assert ear.heard() == 1


def test_rollback_leaves_nothing(session: Session, ear: Ear) -> None:
    """A job that is rolled back never existed, and wakes nobody later."""
    session.add(Ping())
    session.flush()
    session.rollback()
    session.add(Invoice())
    session.commit()

    assert count(session) == 0
    assert ear.heard() == 0


def test_close_leaves_nothing(session: Session, ear: Ear) -> None:
    """Closing the session is a rollback too, although it fires no such event."""
    session.add(Ping())
    session.flush()
    session.close()
    session.add(Invoice())
    session.commit()

    assert count(session) == 0
    assert ear.heard() == 0


def test_savepoint_rollback_leaves_nothing(session: Session, ear: Ear) -> None:
    """A job of a rolled back savepoint never existed, also of one inside it."""
    with session.begin_nested() as savepoint:
        with session.begin_nested():
            session.add(Ping())
        savepoint.rollback()
    session.commit()

    assert count(session) == 0
    assert ear.heard() == 0


def test_savepoint_rollback_keeps_the_wake_up_of_others(
    session: Session, ear: Ear
) -> None:
    """Jobs outside the rolled back savepoint are committed and heard of."""
    session.add(Ping())
    session.flush()
    savepoint = session.begin_nested()
    session.add(Ping())
    session.flush()
    savepoint.rollback()
    session.commit()

    assert count(session) == 1
    assert ear.heard() == 1


def test_release_of_a_savepoint_sends_nothing(session: Session, db: Engine) -> None:
    """Only the end of the whole transaction notifies."""
    with executed(db) as seen:
        with session.begin_nested():
            session.add(Ping())
        assert seen == ["SAVEPOINT", "INSERT", "RELEASE"]
        session.commit()

    assert seen[3:] == ["NOTIFY"]


def test_commit_over_an_open_savepoint_wakes(db: Engine, ear: Ear) -> None:
    """A savepoint that the end of `session.begin()` releases does not hide the jobs."""
    with Session(db) as session, session.begin():
        session.begin_nested()
        session.add(Ping())

    assert ear.heard() == 1


def test_add_and_commit_is_one_insert_and_one_notification(
    session: Session, db: Engine
) -> None:
    """Nothing is read before, between or after."""
    with executed(db) as seen:
        session.add(Send(subject="Hi"))
        session.commit()

    assert seen == ["INSERT", "NOTIFY"]


def test_several_flushes_are_one_notification(session: Session, db: Engine) -> None:
    """A transaction notifies once, however often it was flushed."""
    with executed(db) as seen:
        for _ in range(3):
            session.add(Ping())
            session.flush()
        session.add(Ping())
        session.commit()

    assert seen.count("NOTIFY") == 1


def test_each_root_has_a_notification(session: Session, db: Engine, ear: Ear) -> None:
    """The runners of two job tables listen on two channels."""
    other = Ear(db, Other)
    session.add_all([Ping(), Tick(), Tick()])
    session.commit()

    assert (ear.heard(), other.heard()) == (1, 1)
    other.close()


def test_each_bind_has_a_notification(dsn: str, schema: str, db: Engine) -> None:
    """A session over two databases notifies each of its own jobs."""
    second = in_schema(create_engine(dsn), schema)
    with (
        executed(db) as first_seen,
        executed(second) as second_seen,
        Session(binds={Job: db, Other: second}) as session,
    ):
        session.add_all([Ping(), Tick()])
        session.commit()
    second.dispose()

    assert first_seen == second_seen == ["INSERT", "NOTIFY"]


def test_two_phase_commit_does_not_notify(db: Engine) -> None:
    """PostgreSQL refuses to prepare a transaction that has notified."""

    def stop(connection: Any, xid: Any) -> None:
        # By default a server allows no prepared transactions.
        raise LookupError("about to prepare")

    own = db.execution_options()
    event.listen(own, "prepare_twophase", stop)
    with executed(db) as seen, Session(own, twophase=True) as session:
        session.add(Ping())
        with pytest.raises(LookupError, match="about to prepare"):
            session.commit()

    assert seen == ["INSERT"]


def test_autocommit_notifies_after_the_insert(engine: Engine, db: Engine) -> None:
    """Where each statement commits itself, the job is there before its wake-up."""
    own = db.execution_options(isolation_level="AUTOCOMMIT")
    with executed(db) as seen, Session(own) as session:
        session.add(Ping())
        session.commit()

    assert seen == ["INSERT", "NOTIFY"]


def test_scheduled_jobs_do_not_wake(session: Session, db: Engine, ear: Ear) -> None:
    """Nobody needs to hear of a job that is due later."""
    session.add(Ping(run_at=datetime.now(UTC) + HOUR))
    session.add(Ping(delay=HOUR))
    session.commit()

    assert ear.heard() == 0


def test_a_job_of_a_flush_listener_wakes(session: Session, ear: Ear) -> None:
    """An application may add jobs in its own before_flush, which commit() runs."""

    def follow(session: Session, context: Any, instances: Any) -> None:
        if any(isinstance(obj, Invoice) for obj in session.new):
            session.add(Ping())

    event.listen(session, "before_flush", follow)
    session.add(Invoice())
    session.commit()

    assert ear.heard() == 1


def test_a_job_of_a_flush_listener_is_checked(session: Session, db: Engine) -> None:
    """Such a job is validated, and its delay counts from the database's clock."""

    def follow(session: Session, context: Any, instances: Any) -> None:
        if any(isinstance(obj, Invoice) for obj in session.new):
            session.add_all([Ping(), Ping(delay=HOUR), late])

    event.listen(session, "before_flush", follow)
    late = Ping()
    session.add(Invoice())
    session.commit()
    assert session.scalars(select(Job.state)).all().count("scheduled") == 1

    late = Ping()
    late.payload = {"x": b"bytes"}
    session.add(Invoice())
    with pytest.raises(PayloadError, match="is a bytes"):
        session.commit()


def test_other_listeners_see_what_is_pending(session: Session) -> None:
    """Our listeners do not flush before the application's before_commit listeners."""
    pending: list[Any] = []
    event.listen(session, "before_commit", lambda s: pending.extend(s.new))
    job = Ping()
    session.add(job)
    session.commit()

    assert pending == [job]


def test_sessions_without_jobs_are_left_alone(session: Session, db: Engine) -> None:
    """No statement is added, nothing is kept."""
    with executed(db) as seen:
        session.add(Invoice())
        session.commit()

    assert seen == ["INSERT"]
    assert not session.info


class FakeClock:
    """A clock that stands still until told."""

    now = 100.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Return the clock of the coalescing."""
    clock = FakeClock()
    monkeypatch.setattr(wake._recent, "_clock", clock)
    return clock


def test_a_committed_notification_stands_for_10_ms(
    session: Session, db: Engine, clock: FakeClock
) -> None:
    """Within 10 ms of the last one's commit no other is sent; then again."""
    session.add(Ping())
    session.commit()
    with executed(db) as seen:
        clock.now += 0.009
        session.add(Ping())
        session.commit()
        assert seen == ["INSERT"]

        clock.now += 0.002
        session.add(Ping())
        session.commit()

    assert seen == ["INSERT", "INSERT", "NOTIFY"]


def test_channels_are_coalesced_apart(
    session: Session, db: Engine, clock: FakeClock
) -> None:
    """A wake-up of one job table says nothing about another."""
    session.add(Ping())
    session.commit()
    with executed(db) as seen:
        session.add(Tick())
        session.commit()

    assert seen == ["INSERT", "NOTIFY"]


def test_a_notification_that_never_commits_suppresses_nothing(
    db: Engine, ear: Ear, clock: FakeClock
) -> None:
    """In somebody else's transaction it may yet be rolled back."""
    with db.connect() as connection, connection.begin() as outer:
        with executed(db) as seen, Session(connection) as session:
            session.add(Ping())
            session.commit()
        assert "NOTIFY" in seen
        outer.rollback()
    assert ear.heard() == 0

    with Session(db) as session:
        session.add(Ping())
        session.commit()

    assert ear.heard() == 1


def test_a_failed_commit_suppresses_nothing(
    db: Engine, ear: Ear, clock: FakeClock
) -> None:
    """A transaction that notified and then failed leaves no trace."""

    def fail(session: Session) -> None:
        raise RuntimeError("a listener's error")

    with Session(db) as session:
        session.add(Ping())
        session.flush()
        event.listen(session, "before_commit", fail)
        with executed(db) as seen, pytest.raises(RuntimeError, match="listener"):
            session.commit()
        assert seen == ["NOTIFY"]
        session.rollback()
    with Session(db) as session:
        session.add(Ping())
        session.commit()

    assert ear.heard() == 1


def mixed(amount: int) -> list[Any]:
    """Return jobs of many classes and column sets, in turns."""
    later = datetime.now(UTC) + HOUR
    invoice = Invoice(title="one")
    kinds: list[Callable[[int], Any]] = [
        lambda i: Send(subject=f"s{i}"),
        lambda i: Ping(),
        lambda i: Bill(invoice=invoice, note=f"n{i}"),
        lambda i: Report(title=f"t{i}"),
        lambda i: Send(subject="low", priority=-i),
        lambda i: Ping(timeout=HOUR, tags=["a"]),
        lambda i: Send(subject="later", run_at=later),
        lambda i: Report(title="bytes", payload_bytes=b"x"),
    ]
    return [kinds[i % len(kinds)](i) for i in range(amount)]


def test_add_all_of_mixed_jobs_stays_in_batches(session: Session, db: Engine) -> None:
    """1,000 jobs are one INSERT per table and set of columns, not one per job."""
    with executed(db) as seen:
        session.add_all(mixed(1000))
        session.commit()

    # invoices; jobs: of the plain classes, of Bill, with run_at, with payload_bytes;
    # reports.
    assert seen == ["INSERT"] * 6 + ["NOTIFY"]


def test_regrouping_keeps_the_order_inside_a_group(session: Session) -> None:
    """Jobs with the same columns get their ids in the order they were added."""
    jobs = mixed(100)
    session.add_all(jobs)
    session.commit()

    sent = [job.id for job in jobs if type(job) is Send and job.subject[0] == "s"]
    assert sent == sorted(sent)
    assert len({job.id for job in jobs}) == 100


def test_other_objects_keep_their_order(session: Session) -> None:
    """Regrouping moves nothing but jobs."""
    invoices = [Invoice(title=str(i)) for i in range(10)]
    for invoice in invoices:
        session.add_all([Ping(), invoice, Send(subject="a")])
    session.commit()

    ids = [invoice.id for invoice in invoices]
    assert ids == sorted(ids)


def test_delay_reads_the_databases_clock_once(session: Session, db: Engine) -> None:
    """A flush with delayed jobs costs exactly one statement more."""
    clock = select(cast(func.clock_timestamp(), DateTime(timezone=True)))
    before = session.scalars(clock).one()
    with executed(db) as seen:
        jobs = [Ping(delay=HOUR), Send(subject="x", delay=2 * HOUR), Ping()]
        session.add_all(jobs)
        session.flush()
    after = session.scalars(clock).one()

    assert seen == ["SELECT", "INSERT", "INSERT"]
    assert before + HOUR < jobs[0].run_at < after + HOUR
    assert jobs[1].run_at - jobs[0].run_at == HOUR
    assert [job.state for job in jobs] == ["scheduled", "scheduled", "available"]


def test_a_flush_checks_new_jobs(session: Session) -> None:
    """What the constructor could not see is refused before any SQL."""
    job = Ping()
    job.payload = {"x": float("nan")}
    session.add(job)

    with pytest.raises(PayloadError, match=r"Ping\.payload\.x: nan is not finite"):
        session.commit()


def test_a_flush_names_the_class_of_a_missing_column(session: Session) -> None:
    """A required column of a shared table is checked by us, as it is nullable there."""
    session.add(Bill())

    with pytest.raises(JobValueError, match=r"Bill\.invoice_id is None"):
        session.commit()


def test_a_flush_checks_a_changed_payload(session: Session) -> None:
    """An assignment to a loaded job is checked as well."""
    job = Ping()
    session.add(job)
    session.commit()
    job.payload = {"x": {1, 2}}

    with pytest.raises(PayloadError, match="is a set"):
        session.commit()


def test_other_changes_do_not_check_the_payload(session: Session, db: Engine) -> None:
    """A row of earlier days can be edited, whatever limit its class has now."""
    job = Ping(payload={"x": "y" * 100})
    session.add(job)
    session.commit()
    Ping.__payload_limit__ = 10
    try:
        assert job.payload["x"]
        job.priority = 3
        session.commit()
    finally:
        del Ping.__payload_limit__

    assert job.priority == 3


def test_async_sessions_do_the_same(
    dsn: str, schema: str, db: Engine, ear: Ear
) -> None:
    """An AsyncSession adds, delays, rolls back and wakes as a Session does."""

    async def main() -> list[str]:
        engine = in_schema(create_async_engine(dsn), schema)
        with executed(engine.sync_engine) as seen:
            async with AsyncSession(engine) as session:
                session.add_all([Ping(), Send(subject="x", delay=HOUR)])
                await session.commit()
                session.add(Ping())
                await session.flush()
                await session.rollback()
        await engine.dispose()
        return seen

    seen = asyncio.run(main())

    assert seen == ["SELECT", "INSERT", "INSERT", "NOTIFY", "INSERT"]
    assert ear.heard() == 1
    with Session(db) as session:
        states = session.scalars(select(Job.state).order_by(Job.state)).all()
    assert states == [JobState.AVAILABLE, JobState.SCHEDULED]
