"""Sends to ordered channels: in the order of commits, and without an error."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs._dialects import JobDialect
from sqla_jobs._store.locks import MOST_NAMES
from tests.conformance.enqueue_kit import in_schema, schema_for
from tests.conformance.factories import at_once, freed_when_awaited, sent
from tests.conformance.ordered_kit import Base, Job, Note, Send, Step

ROUNDS = 50


@pytest.fixture(scope="module")
def schema(engine: Engine) -> Iterator[str]:
    """Yield the schema of this module's tables."""
    with schema_for(Base, engine) as name:
        yield name


@pytest.fixture
def db(engine: Engine, schema: str) -> Iterator[Engine]:
    """Yield an engine on empty tables."""
    own: Engine = in_schema(engine, schema)
    yield own
    with own.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())


@pytest.fixture
def sessions(db: Engine) -> sessionmaker[Session]:
    """Return a maker of sessions that may commit."""
    return sessionmaker(db)


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session."""
    with sessions() as session:
        yield session


@contextmanager
def impatient(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """Yield a session that does not wait for locks; it is rolled back."""
    with sessions() as session:
        session.execute(text("SET LOCAL lock_timeout = '200ms'"))
        yield session


def locks_of(session: Session) -> int:
    """Return how many names the session's transaction has locked."""
    query = text(
        "SELECT count(*) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
    )
    return int(session.connection().execute(query).scalar_one())


def send(session: Session, *channels: str, **options: Any) -> list[Step]:
    """Flush an ordered job to each of *channels* and return them."""
    jobs = [Step(channel=channel, **options) for channel in channels]
    session.add_all(jobs)
    session.flush()
    return jobs


# Several senders


def test_late_sender_is_not_overtaken(sessions: sessionmaker[Session]) -> None:
    """The next sender waits for the commit, does not fail, and has the later id."""
    with sessions() as late, sessions() as next_one:
        (first,) = send(late, "a")
        with freed_when_awaited(next_one, late):
            (second,) = send(next_one, "a")
        next_one.commit()

        assert late.scalar(select(Job.id).order_by(Job.id)) == first.id < second.id


def test_sender_that_rolls_back_lets_the_next_one_go(
    sessions: sessionmaker[Session],
) -> None:
    """What never was sent leaves its place to the one who waited."""
    with sessions() as late, sessions() as next_one:
        send(late, "a")
        with freed_when_awaited(next_one, late, lambda s: s.rollback()):
            (job,) = send(next_one, "a")
        next_one.commit()

        assert late.scalars(select(Job.id)).all() == [job.id]


def test_ids_are_in_the_order_of_commits(sessions: sessionmaker[Session]) -> None:
    """Many senders to one channel: no error, and each id is above the earlier ones."""
    committed: list[int] = []

    def sender(seed: int) -> Callable[[], None]:
        rand = random.Random(seed)

        def run() -> None:
            for _ in range(ROUNDS):
                with sessions() as session:
                    jobs = send(session, *["a"] * rand.randint(1, 3))
                    session.execute(select(func.pg_sleep(rand.random() / 500)))
                    # Still alone in the channel, so the list has the commits' order.
                    committed.extend(job.id for job in jobs)
                    session.commit()

        return run

    at_once([sender(seed) for seed in range(3)])

    assert len(committed) >= 3 * ROUNDS
    assert all(one < other for one, other in pairwise(committed))


def test_reader_never_sees_an_earlier_job_come_later(
    sessions: sessionmaker[Session],
) -> None:
    """What a claim would take as the head of a channel stays the first one."""
    done: list[int] = []

    def sender() -> None:
        for _ in range(ROUNDS):
            with sessions() as session:
                send(session, "a")
                session.execute(select(func.pg_sleep(0.001)))
                session.commit()
        done.append(1)

    def reader() -> None:
        seen: list[int] = []
        while len(done) < 2:
            with sessions() as session:
                found = list(session.scalars(select(Job.id).order_by(Job.id)))
            assert found[: len(seen)] == seen
            seen = found

    at_once([sender, sender, reader])


def test_senders_of_other_channels_do_not_wait(sessions: sessionmaker[Session]) -> None:
    """The lock is on the pair of queue and channel, and on ordered jobs only."""
    with sessions() as busy:
        send(busy, "a")

        with impatient(sessions) as session:
            send(session, "b")
            send(session, "a", queue="other")
            session.add(Send(channel="a"))
            session.flush()
        with (
            impatient(sessions) as session,
            pytest.raises(DBAPIError, match="lock timeout"),
        ):
            send(session, "a")


def test_senders_to_several_channels_do_not_deadlock(
    sessions: sessionmaker[Session],
) -> None:
    """Locks are taken in one order, whatever the order of the jobs."""
    names = [f"channel {number}" for number in range(8)]

    def sender(seed: int) -> Callable[[], None]:
        rand = random.Random(seed)

        def run() -> None:
            for _ in range(ROUNDS // 2):
                with sessions() as session:
                    send(session, *rand.sample(names, 6))
                    session.commit()

        return run

    at_once([sender(seed) for seed in range(4)])

    with sessions() as session:
        assert session.scalar(select(func.count(Job.id))) == 2 * ROUNDS * 6


def test_flushes_in_opposite_orders_are_an_ordinary_deadlock(
    sessions: sessionmaker[Session],
) -> None:
    """One of the two gets the database's error, as documented; the other goes on."""

    def sender(*names: str) -> Callable[[], str | None]:
        def run() -> str | None:
            with sessions() as session:
                try:
                    send(session, names[0])
                    both.wait(20)
                    send(session, names[1])
                    session.commit()
                except DBAPIError as exc:
                    return JobDialect.sqlstate(exc)
            return None

        return run

    both = threading.Barrier(2)
    answers = at_once([sender("a", "b"), sender("b", "a")])

    assert set(answers) == {None, "40P01"}


def test_tenants_do_not_wait_for_each_other(
    engine: Engine, sessions: sessionmaker[Session]
) -> None:
    """The same channel of another schema's table is another channel."""
    with schema_for(Base, engine) as name, sessions() as busy:
        send(busy, "a")
        with impatient(sessionmaker(in_schema(engine, name))) as session:
            send(session, "a")


def test_flush_of_many_channels_takes_one_lock(sessions: sessionmaker[Session]) -> None:
    """Not one of each, which the server has no room for; others wait for it."""
    with sessions() as big:
        send(big, *map(str, range(MOST_NAMES + 1)))

        assert locks_of(big) == 1
        with (
            impatient(sessions) as session,
            pytest.raises(DBAPIError, match="lock timeout"),
        ):
            send(session, "unheard of")
    with sessions() as small, impatient(sessions) as session:
        send(small, "a")
        with pytest.raises(DBAPIError, match="lock timeout"):
            send(session, *map(str, range(MOST_NAMES + 1)))


# Ends of transactions


def test_savepoint_rollback_frees_its_channels(
    sessions: sessionmaker[Session],
) -> None:
    """Others may send then; what is outside the savepoint keeps its channel."""
    with sessions() as outer:
        send(outer, "a")
        savepoint = outer.begin_nested()
        send(outer, "b")
        savepoint.rollback()

        with impatient(sessions) as session:
            send(session, "b")
        with (
            impatient(sessions) as session,
            pytest.raises(DBAPIError, match="lock timeout"),
        ):
            send(session, "a")
        send(outer, "b")
        outer.commit()

        assert outer.scalar(select(func.count(Job.id))) == 2


@pytest.mark.parametrize("end", ["commit", "rollback", "close"])
def test_end_of_the_transaction_frees_the_channel(
    sessions: sessionmaker[Session], end: str
) -> None:
    """No lock outlives its transaction."""
    with sessions() as first:
        send(first, "a")
        getattr(first, end)()
        with impatient(sessions) as session:
            send(session, "a")
            assert locks_of(session) == 2


def test_repeatable_read_sends_in_order_too(db: Engine) -> None:
    """Ids come from a sequence, which no snapshot hides."""
    strict = sessionmaker(db.execution_options(isolation_level="REPEATABLE READ"))
    with strict() as late, strict() as next_one:
        (first,) = send(late, "a")
        with freed_when_awaited(next_one, late):
            (second,) = send(next_one, "a")
        next_one.commit()

        assert first.id < second.id


# Whatever adds them


def test_job_that_a_later_listener_adds_takes_its_lock(
    sessions: sessionmaker[Session],
) -> None:
    """Wherever in the flush a job comes from, its channel is locked first."""
    watched = type("Watched", (Session,), {})

    def add(session: Session, *_: Any) -> None:
        if any(isinstance(one, Note) for one in session.new):
            session.add(Step(channel="late"))

    event.listen(watched, "before_flush", add)
    with watched(sessions.kw["bind"]) as session:
        session.add(Note())
        session.flush()
        with (
            impatient(sessions) as other,
            pytest.raises(DBAPIError, match="lock timeout"),
        ):
            send(other, "late")


# Cost


def test_unordered_jobs_cost_no_statement(session: Session) -> None:
    """Who does not use it does not pay for it."""
    with sent(session) as statements:
        session.add_all([Send(), Step(ordered=False), Send(channel="a")])
        session.flush()

    assert not any("lock" in one for one in statements)
    assert locks_of(session) == 0


def test_ordered_jobs_cost_one_statement_per_flush(session: Session) -> None:
    """However many jobs and channels there are."""
    with sent(session) as statements:
        send(session, "a", "b", "c", "a")

    assert [one.split()[0] for one in statements] == ["SELECT", "INSERT"]
    assert locks_of(session) == 4  # the channels, and a shared one of the table
