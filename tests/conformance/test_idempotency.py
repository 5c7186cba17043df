"""`enqueue`: what became of a job; idempotency keys; and `find_queued`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    DuplicateJob,
    Enqueued,
    JobValueError,
    Runner,
    enqueue,
    find_queued,
    purge,
)
from sqla_jobs._core.states import FINAL, LIVE
from sqla_jobs._store.idempotency import purge_idempotency
from sqla_jobs.models import job_tables
from tests.conformance.factories import (
    DAY,
    NOW,
    SECOND,
    Elsewhere,
    Job,
    Joined,
    Special,
    Work,
    at_once,
    freed_when_awaited,
    make_job,
    sent,
)

Sessions = sessionmaker[Session]
TABLES = job_tables(Job)


def send(session: Session, key: str = "key", **options: Any) -> Enqueued:
    """Enqueue a job with an idempotency key, at `NOW` if nothing else is said."""
    options.setdefault("now", NOW)
    job = Work(queue=options.pop("queue", "default"))
    return enqueue(session, job, idempotency_key=key, **options)


def test_enqueue_tells_the_new_job(session: Session) -> None:
    """It is flushed, not committed, and costs what the flush costs."""
    job = Work()
    with sent(session) as seen:
        made = enqueue(session, job)

    assert made == Enqueued(job.id, created=True, job=job)
    assert [statement.split()[0] for statement in seen] == ["INSERT"]
    session.rollback()
    assert find_queued(session, Work()) is None


@pytest.mark.parametrize("policy", ["skip", "return"])
def test_enqueue_tells_the_job_that_is_there(session: Session, policy: str) -> None:
    """With "return" it is loaded, as its own class; with "skip" it is not."""
    first = make_job(session, Special, unique_key="k")
    job = Work(unique_key="k")
    found = enqueue(session, job, on_conflict=policy)

    assert (found.job_id, found.created) == (first, False)
    assert job.duplicate_of == first
    if policy == "return":
        assert isinstance(found.job, Special)
        assert found.job.id == first
    else:
        assert found.job is None


def test_enqueue_uses_the_policy_of_the_job(session: Session) -> None:
    """Without one of its own it goes by the job's, and raises by default."""
    first = make_job(session, Work, unique_key="k")

    with pytest.raises(DuplicateJob):
        enqueue(session, Work(unique_key="k"))
    found = enqueue(session, Work(unique_key="k", on_conflict="return"))
    assert found.job is not None
    made = enqueue(session, Work(unique_key="k"), on_conflict="replace")
    assert made.created
    assert made.job_id != first


@pytest.mark.parametrize(
    ("job", "options", "message"),
    [
        (Work, {}, "instance of a job class"),
        (Work(), {"on_conflict": "skip"}, "needs a job with a unique_key"),
        (Work(unique_key="k"), {"on_conflict": "no"}, "must be one of"),
        (Work(), {"idempotency_key": ""}, "must not be empty"),
        (Work(), {"idempotency_key": "k" * 201}, "201 bytes"),
        (Work(), {"idempotency_key": "k", "window": timedelta(0)}, "above zero"),
        (Work(), {"idempotency_key": "k", "window": 60}, "must be a timedelta"),
        (Work(), {"idempotency_key": "k", "window": 4_000 * DAY}, "above 3660 days"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_enqueue_checks(
    session: Session, job: Any, options: dict[str, Any], message: str
) -> None:
    """What cannot be meant is refused before anything is written."""
    with pytest.raises(JobValueError, match=message), sent(session) as seen:
        enqueue(session, job, **options)
    assert seen == []


def test_enqueue_refuses_an_enqueued_job(session: Session) -> None:
    """The same object twice is a mistake, not a second job."""
    job = Work()
    enqueue(session, job)

    with pytest.raises(JobValueError, match="enqueued already"):
        enqueue(session, job)


def test_repeat_inside_the_window_answers_the_first(session: Session) -> None:
    """It adds nothing, and the job it was called with is not in the session."""
    first = send(session)
    job = Work()
    session.add(job)
    with session.no_autoflush:
        again = enqueue(session, job, idempotency_key="key", now=NOW + DAY - SECOND)

    assert first.created
    assert (again.job_id, again.created) == (first.job_id, False)
    assert again.job is first.job
    assert job not in session
    assert session.scalar(select(func.count()).select_from(Job)) == 1


def test_keys_are_of_their_queue(session: Session) -> None:
    """The same key in another queue is another one, and so is another key."""
    made = [send(session), send(session, queue="b"), send(session, "other")]

    assert [one.created for one in made] == [True, True, True]


@pytest.mark.parametrize("state", [*sorted(FINAL), None])
def test_repeat_answers_a_job_that_is_final_or_deleted(
    session: Session, state: str | None
) -> None:
    """What became of the first job does not matter inside the window."""
    first = send(session)
    session.execute(update(Job).values(state=state or "completed", finished_at=NOW))
    session.expire_all()
    if state is None:
        session.expunge_all()
        assert purge(session, Job, now=NOW) == 1
    again = send(session)

    assert (again.job_id, again.created) == (first.job_id, False)
    assert (again.job is None) == (state is None)


def test_repeat_after_the_window_enqueues(session: Session) -> None:
    """It never drops the job; from then on the key stands for the new one."""
    first = send(session, window=SECOND)
    second = send(session, now=NOW + SECOND)
    third = send(session, now=NOW + SECOND + DAY - SECOND)
    fourth = send(session, now=NOW + SECOND + DAY)

    assert [one.created for one in (first, second, third, fourth)] == [
        *(True, True, False, True)
    ]
    assert third.job_id == second.job_id


def test_window_counts_by_the_database(session: Session) -> None:
    """Without a time it is the clock of the database, 24 hours by default."""
    send(session, now=None)
    left: Any = session.scalar(select(Job.Idempotency.expires_at - func.now()))

    assert DAY - 10 * SECOND < left <= DAY + 10 * SECOND


def test_rollback_frees_the_key(sessions: Sessions) -> None:
    """What never existed is answered to nobody."""
    with sessions() as session:
        gone = send(session)
        session.rollback()
        made = send(session)

        assert made.created
        assert made.job_id != gone.job_id


def test_failed_enqueue_does_not_use_up_the_key(session: Session) -> None:
    """A key whose job was refused stands for nothing, also when it is committed."""
    make_job(session, Work, unique_key="k")
    with pytest.raises(DuplicateJob):
        enqueue(session, Work(unique_key="k"), idempotency_key="key", now=NOW)
    made = send(session, now=NOW + SECOND, window=2 * SECOND)

    assert made.created
    assert not send(session, now=NOW + 2 * SECOND).created
    assert send(session, now=NOW + 3 * SECOND).created


def test_key_stands_for_a_duplicate(session: Session) -> None:
    """With both keys, the idempotency key stands for what the unique one found."""
    first = make_job(session, Work, unique_key="k")
    job = Work(unique_key="k", on_conflict="skip")
    found = enqueue(session, job, idempotency_key="key", now=NOW)

    assert (found.job_id, found.created) == (first, False)
    assert send(session).job_id == first


def test_idempotent_enqueue_costs_two_statements(session: Session) -> None:
    """One before and one after the INSERT; a repeat costs one if it knows the job."""
    with sent(session) as seen:
        first = send(session)
        assert len(seen) == 3
        assert send(session).job is first.job
        assert len(seen) == 4


def test_second_sender_waits_for_the_first(sessions: Sessions) -> None:
    """It gets the id of the first one's job once that is committed."""
    with sessions() as first, sessions() as second:
        made = send(first)
        with freed_when_awaited(second, first):
            found = send(second)

        assert (found.job_id, found.created) == (made.job_id, False)


def test_second_sender_enqueues_if_the_first_rolls_back(sessions: Sessions) -> None:
    """It waited for nothing, so the job is its own."""
    with sessions() as first, sessions() as second:
        send(first)
        with freed_when_awaited(second, first, Session.rollback):
            found = send(second)

        assert found.created


def test_concurrent_repeats_make_one_job(sessions: Sessions) -> None:
    """In each round one of eight senders enqueues, also when the key has expired."""

    def sender(number: int) -> Callable[[], Enqueued]:
        def run() -> Enqueued:
            with sessions.begin() as session:
                return send(session, now=NOW + number * DAY)

        return run

    for number in range(10):
        made = at_once([sender(number)] * 8)
        assert len({one.job_id for one in made}) == 1
        assert sum(one.created for one in made) == 1
    with sessions() as session:
        assert session.scalar(select(func.count()).select_from(Job)) == 10


def test_expired_keys_are_purged(session: Session) -> None:
    """Oldest first, at most so many; a live key stays."""
    for number in range(5):
        send(session, f"{number}", window=(number + 1) * SECOND)
    now = NOW + 4 * SECOND

    keys = select(Job.Idempotency.key).order_by(Job.Idempotency.key)
    assert purge_idempotency(session, TABLES, limit=3, now=now) == 3
    assert session.scalars(keys).all() == ["3", "4"]
    assert purge_idempotency(session, TABLES, limit=3, now=now) == 1
    assert session.scalars(keys).all() == ["4"]


def test_purge_skips_a_key_in_use(sessions: Sessions) -> None:
    """A key that is just being given to a new job is not deleted under it."""
    with sessions() as first, sessions() as second:
        send(first, window=SECOND)
        first.commit()
        send(first, now=NOW + DAY)

        assert purge_idempotency(second, TABLES, now=NOW + DAY) == 0


def test_runner_purges_expired_keys(sessions: Sessions) -> None:
    """Nobody has to think of it."""
    with sessions.begin() as session:
        session.add(Job.Idempotency(queue="q", key="k", expires_at=func.now()))

    Runner(sessions, Job, kinds=[], listen=False).run_until_idle()

    with sessions() as session:
        assert session.scalars(select(Job.Idempotency.key)).all() == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
def test_async_session(sessions: Sessions, job_engine: Engine, driver: str) -> None:
    """All of it works by `run_sync`."""
    options = job_engine.get_execution_options()

    async def main() -> list[Any]:
        url = job_engine.url.set(drivername=f"postgresql+{driver}")
        engine = create_async_engine(url, execution_options=options)
        async with AsyncSession(engine) as session:
            first = await session.run_sync(enqueue, Work(), idempotency_key="k")
            again = await session.run_sync(enqueue, Work(), idempotency_key="k")
            found = await session.run_sync(find_queued, Work())
            await session.commit()
        await engine.dispose()
        return [again.job_id - first.job_id, again.created, found == first.job_id]

    assert asyncio.run(main()) == [0, False, True]


@pytest.mark.parametrize("state", sorted(LIVE | FINAL))
def test_queued_is_what_is_live(session: Session, state: str) -> None:
    """A running job counts, a final one does not."""
    job_id = make_job(session, Work, state=state, unique_key="k", fingerprint="f")
    found = job_id if state in LIVE else None

    assert find_queued(session, Work()) == found
    assert find_queued(session, Work, unique_key="k") == found
    assert find_queued(session, Work, fingerprint="f") == found


def test_queued_goes_by_the_key_of_the_job(session: Session) -> None:
    """By its unique key, else its fingerprint, else by all that makes it equal."""
    first = make_job(session, Work, unique_key="k", payload={"a": 1})
    second = make_job(session, Work, fingerprint="f", payload={"a": 2})
    third = make_job(session, Work, payload={"a": 3, "b": [1]}, queue="other")
    make_job(session, Work, payload={"a": 3, "b": [1]})

    assert find_queued(session, Work(unique_key="k", fingerprint="f")) == first
    assert find_queued(session, Work(fingerprint="f")) == second
    assert find_queued(session, Work(payload={"b": [1], "a": 3})) == third
    assert find_queued(session, Work(payload={"a": 4})) is None
    assert find_queued(session, Work(unique_key="other", payload={"a": 2})) is None
    assert find_queued(session, Work(payload={"a": 1}, payload_bytes=b"")) is None
    assert find_queued(session, Special(payload={"a": 2})) is None


def test_queued_compares_the_columns_of_the_application(session: Session) -> None:
    """Also those in a table of the class's own."""
    job = Joined(note="a")
    session.add(job)
    session.flush()

    assert find_queued(session, Joined(note="a")) == job.id
    assert find_queued(session, Joined(note="b")) is None


def test_queued_by_class_looks_at_its_kinds(session: Session) -> None:
    """The root class means all of them, another one its own and those below it."""
    job_id = make_job(session, Special, unique_key="k")

    assert find_queued(session, Job, unique_key="k") == job_id
    assert find_queued(session, Work, unique_key="k") == job_id
    assert find_queued(session, Joined, unique_key="k") is None


def test_queued_sees_new_objects(session: Session) -> None:
    """It flushes as a query does, but never the job it is asked about."""
    other, job = Work(), Work(payload={"a": 1})
    session.add(other)

    assert find_queued(session, Work()) == other.id
    session.add(job)
    assert find_queued(session, job) is None
    assert job in session.new


def test_queued_needs_something_to_look_for(session: Session) -> None:
    """A class alone says nothing, and a bad key finds nothing."""
    with pytest.raises(JobValueError, match="needs unique_key="):
        find_queued(session, Work)
    with pytest.raises(JobValueError, match="must be a string"):
        find_queued(session, Work, fingerprint=7)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["unique_key", "fingerprint"])
def test_queued_by_key_reads_an_index(
    sessions: Sessions, elsewhere: Elsewhere, name: str
) -> None:
    """Beside many live jobs, a key is found in the index that is there for it."""
    seen: list[Any] = []
    with sessions() as session:
        numbers = func.generate_series(1, 5_000).column_valued("n")
        rows = select(func.concat("k", numbers), func.concat("work"))
        table = TABLES.table
        session.execute(table.insert().from_select([name, "kind"], rows))
        connection = session.connection()
        connection.exec_driver_sql("ANALYZE")
        event.listen(connection, "before_cursor_execute", lambda *a: seen.append(a))
        assert find_queued(session, Job, **{name: "k7"}) is not None
        _, _, statement, params, *_ = seen[-1]
        found = connection.exec_driver_sql(f"EXPLAIN {statement}", params)
        plan = "\n".join(found.scalars())

    assert ("unique_v1" if name == "unique_key" else "group_v1") in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("verb", [enqueue, find_queued])
def test_needs_a_session(verb: Callable[..., Any]) -> None:
    """What is no Session is told how an AsyncSession does it."""
    with pytest.raises(JobValueError, match="run_sync"):
        verb(object(), Work())
