"""Waiting for a job: no end is missed, and nothing is held meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_jobs import JobNotFound, JobState, JobStatus, JobValueError, wait
from sqla_jobs._core.states import FINAL
from sqla_jobs._store.retention import apply_retention
from sqla_jobs.runner.wait import _Watch
from tests.conformance.factories import NOW, Elsewhere, at_once, make_job
from tests.conformance.operators.kit import TABLES, Filed, Job, Send

LONG = timedelta(seconds=60)
SHORT = timedelta(milliseconds=50)
NOTHING = timedelta(0)
QUICK = timedelta(milliseconds=5)


def end(
    session: Session, job: int, /, state: str = "completed", **columns: Any
) -> None:
    """Write how a job ended."""
    table = TABLES.table
    session.execute(
        table.update().where(table.c.id == job).values(state=state, **columns)
    )


Waiting = Callable[..., JobStatus]


@pytest.fixture(params=["sync", "async"])
def waiting(request: pytest.FixtureRequest, job_engine: Engine) -> Waiting:
    """Return `wait` on a sessionmaker of either kind, as an ordinary function."""
    known: dict[str, Any] = {"job_class": Job}
    if request.param == "sync":
        maker = sessionmaker(job_engine)
        return lambda *args, **options: wait(maker, *args, **{**known, **options})
    return lambda *args, **options: asyncio.run(
        _in_loop(job_engine, args, {**known, **options})
    )


async def _in_loop(engine: Engine, args: Any, options: Any) -> JobStatus:
    url = engine.url.set(drivername="postgresql+asyncpg")
    own = create_async_engine(url, execution_options=engine.get_execution_options())
    try:
        return await wait(async_sessionmaker(own), *args, **options)
    finally:
        await own.dispose()


@contextmanager
def after_a_look(engine: Engine, then: Callable[[], object]) -> Iterator[None]:
    """Do *then* once a wait on *engine* has looked."""
    looked = threading.Event()

    def returned(*args: Any) -> None:
        looked.set()

    def work() -> None:
        assert looked.wait(30)
        event.remove(engine, "checkin", returned)
        then()

    event.listen(engine, "checkin", returned)
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(30)


# What ends a wait


@pytest.mark.parametrize("state", sorted(FINAL))
def test_ended_job_is_answered_at_once(
    elsewhere: Elsewhere, waiting: Waiting, state: JobState
) -> None:
    """With what its handler returned, and why it ended."""
    columns = {"result": {"n": 1}, "reason": "why", "last_error": "E: x"}
    job = elsewhere(make_job, Send, state=state, **columns)

    assert waiting(job, NOTHING) == JobStatus(job, state, {"n": 1}, "why", "E: x")


def test_end_after_the_first_look_is_seen(
    app_engine: Engine, sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A job that ends while somebody waits ends the wait."""
    job = elsewhere(make_job, Send, state="running")

    with after_a_look(app_engine, lambda: elsewhere(end, job, result=[1])):
        status = wait(sessions, job, LONG, job_class=Job)

    assert (status.state, status.result) == (JobState.COMPLETED, [1])


def test_end_is_seen_by_an_async_wait(elsewhere: Elsewhere, job_engine: Engine) -> None:
    """The loop goes on meanwhile: here it is what ends the job."""
    job = elsewhere(make_job, Send, state="running")

    async def both() -> JobStatus:
        url = job_engine.url.set(drivername="postgresql+psycopg")
        options = job_engine.get_execution_options()
        engine = create_async_engine(url, execution_options=options)
        maker = async_sessionmaker(engine)
        waiter = asyncio.create_task(wait(maker, job, LONG, job_class=Job))
        await asyncio.sleep(0)
        async with maker.begin() as session:
            await session.run_sync(end, job, "discarded", reason="no")
        status = await waiter
        await engine.dispose()
        return status

    status = asyncio.run(both())

    assert (status.state, status.reason) == (JobState.DISCARDED, "no")


def test_no_end_is_missed(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Jobs that end at any moment around the looks of their waiters are all seen."""
    jobs = [elsewhere(make_job, Send, state="running") for _ in range(24)]

    def finish() -> None:
        for job in jobs:
            elsewhere(end, job)

    def await_all(part: list[int]) -> Callable[[], None]:
        def run() -> None:
            for job in part:
                status = wait(sessions, job, LONG, job_class=Job, poll=QUICK)
                assert status.state == JobState.COMPLETED

        return run

    at_once([finish, *(await_all(jobs[n::3]) for n in range(3))])


def test_wait_may_be_until_another_state(
    elsewhere: Elsewhere, waiting: Waiting
) -> None:
    """The given states end it; the final ones do so in any case."""
    job = elsewhere(make_job, Send, state="running")

    assert waiting(job, NOTHING, until=["running"]).state == JobState.RUNNING
    assert waiting(job, NOTHING, until="running").state == JobState.RUNNING
    elsewhere(end, job, "cancelled")
    assert waiting(job, NOTHING, until=["completed"]).state == JobState.CANCELLED


def test_wait_takes_the_job_itself(elsewhere: Elsewhere, waiting: Waiting) -> None:
    """Its class says which table is meant, also when its session is gone."""
    job = Send()
    elsewhere(lambda session: session.add(job))

    with pytest.raises(TimeoutError, match="is still available after 0 s"):
        waiting(job, NOTHING, job_class=None)
    with pytest.raises(JobValueError, match="needs a job that is committed, got <Send"):
        waiting(Send(), NOTHING)


def test_archived_job_is_answered(elsewhere: Elsewhere, waiting: Waiting) -> None:
    """Retention that moves the job away during the wait hides nothing."""
    job = elsewhere(make_job, Filed, state="completed", result=7, finished_at=NOW)
    assert elsewhere(apply_retention, TABLES, now=NOW + timedelta(days=9)) == 1

    assert waiting(job, NOTHING) == JobStatus(job, JobState.COMPLETED, 7, None, None)


# What else happens


def test_time_is_up(elsewhere: Elsewhere, waiting: Waiting) -> None:
    """The error is Python's own and says in which state the job is."""
    job = elsewhere(make_job, Send, state="scheduled")

    with pytest.raises(TimeoutError, match=rf"job {job} is still scheduled after 0 s"):
        waiting(job, NOTHING)
    with pytest.raises(TimeoutError, match=r"is still scheduled after 0\.05 s"):
        waiting(job, SHORT)


def test_unknown_job_is_an_error(elsewhere: Elsewhere, waiting: Waiting) -> None:
    """At once; both as a lookup that failed and as an error of this library."""
    for kind in (LookupError, JobValueError, JobNotFound):
        with pytest.raises(kind, match="jobs has no job 123456; wait for jobs whose"):
            waiting(123456, LONG)


def test_job_deleted_during_the_wait_is_an_error(
    app_engine: Engine, sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """Nobody knows how it ended; the error says what was known."""
    job = elsewhere(make_job, Send, state="running")

    def remove() -> None:
        elsewhere(lambda session: session.execute(delete(TABLES.table)))

    with (
        pytest.raises(JobNotFound, match=f"job {job} was deleted .*; it was last runn"),
        after_a_look(app_engine, remove),
    ):
        wait(sessions, job, LONG, job_class=Job)


def test_nothing_is_held_between_looks(
    app_engine: Engine, sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """A hundred waiters must not empty the pool: each look gives its own back."""
    job = elsewhere(make_job, Send, state="running")
    lent = {"now": 0, "looks": 0}

    def out(*args: Any) -> None:
        lent["now"] += 1
        lent["looks"] += 1

    def back(*args: Any) -> None:
        lent["now"] -= 1

    event.listen(app_engine, "checkout", out)
    event.listen(app_engine, "checkin", back)
    pauses = _Watch.pauses

    def watched(self: _Watch) -> Iterator[float]:
        for pause in pauses(self):
            assert lent["now"] == 0
            yield pause

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Watch, "pauses", watched)
        with pytest.raises(TimeoutError):
            wait(sessions, job, SHORT, job_class=Job)
    event.remove(app_engine, "checkout", out)
    event.remove(app_engine, "checkin", back)

    assert lent["looks"] >= 2


def test_scoped_session_of_the_caller_is_left_alone(
    sessions: sessionmaker[Session], elsewhere: Elsewhere
) -> None:
    """What the caller has in its own session, uncommitted, stays there."""
    job = elsewhere(make_job, Send, state="completed")
    scoped = scoped_session(sessions)
    mine = Send()
    scoped.add(mine)

    assert wait(scoped, job, NOTHING, job_class=Job).state == JobState.COMPLETED

    assert mine in scoped.new
    scoped.remove()


def test_pauses_grow_to_the_poll() -> None:
    """Short at first, since most waits are; then no more often than asked."""

    def pauses(timeout: float, poll: float, count: int) -> list[float]:
        watch = _Watch(TABLES, 1, FINAL, timeout=timeout, poll=poll)
        return [round(one, 3) for one in islice(watch.pauses(), count)]

    assert pauses(60, 0.5, 4) == [0.02, 0.03, 0.045, 0.068]
    assert pauses(60, 0.5, 12)[-3:] == [0.5, 0.5, 0.5]
    assert pauses(60, 0.01, 3) == [0.01, 0.01, 0.01]
    assert 0 < pauses(0.015, 0.5, 1)[0] <= 0.015


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"timeout": 30}, r"timeout must be a timedelta .*timedelta\(seconds=30\), got 30"),
    ({"timeout": -SHORT}, "timeout must be a timedelta of zero or more"),
    ({"poll": 0.5}, "poll must be a timedelta"),
    ({"job_id": "7"}, "ids must be a list of ids of jobs, got '7'"),
    ({"until": ["done"]}, "'done' is not a valid JobState; states are scheduled,"),
    ({"session_factory": 3}, r"wait\(\) needs a sessionmaker, got 3"),
    ({"session_factory": dict}, r"wait\(\) needs a sessionmaker, got <class 'dict'>"),
    ({"job_class": None}, r"needs job_class= unless .* one root class; known: .*Job"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_bad_wait_is_refused(
    sessions: sessionmaker[Session], options: dict[str, Any], message: str
) -> None:
    """Before anything is read; the error says what to give."""
    given: dict[str, Any] = {
        "session_factory": sessions,
        "job_id": 1,
        "timeout": LONG,
    } | {
        "job_class": Job,
        **options,
    }

    with pytest.raises(JobValueError, match=message):
        wait(**given)


def test_types_of_a_wait(sessions: sessionmaker[Session]) -> None:
    """An async maker gives a coroutine, to be awaited; a sync one the status."""
    maker = async_sessionmaker[AsyncSession]()
    coroutine: Coroutine[Any, Any, JobStatus] = wait(maker, 1, LONG, job_class=Job)

    assert asyncio.iscoroutine(coroutine)
    coroutine.close()
