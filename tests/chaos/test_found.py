"""What the bank found: each fault that went wrong once, alone."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_jobs._dialects import dialect_of
from sqla_jobs._dialects.postgresql import PostgreSQLDialect
from sqla_jobs.models import decode_payload
from sqla_jobs.models.arg import Arg, args_of
from sqla_jobs.runner.control import Control, Limits
from tests.runner.harness import LEASE, Base, Kit, Task, effects, ok

DIALECTS = ("psycopg", "psycopg2", "asyncpg")


@pytest.mark.parametrize("shell", ["threads", "aio-asyncpg"])
def test_connection_that_breaks_at_the_fence_is_named(
    dsn: str, engine: Engine, shell: str
) -> None:
    """The error of an attempt says that the connection broke, not what that broke."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, shell)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        await ok(ctx.session.flush())
        if ctx.attempt == 1:
            pid = (
                await ok(ctx.session.execute(select(func.pg_backend_pid())))
            ).scalar()
            with engine.connect() as other:
                other.execute(select(func.pg_terminate_backend(pid, 9000)))

    kit.handle(run)
    (job,) = kit.add()
    try:
        kit.run()
        kit.until_state(job, "completed")
        row = kit.job(job)
        assert kit.notes() == ["attempt 2"]
        assert "connection" in row.last_error
        assert "PendingRollback" not in row.last_error
    finally:
        kit.close()


def test_connection_that_breaks_behind_a_pooler_is_an_outage(
    dsn: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner's connection that dies between two transactions is replaced."""
    monkeypatch.setattr(PostgreSQLDialect, "limit_session", lambda *_, **__: False)
    own = create_engine(dsn)
    control = Control(own)
    pid = control.run(lambda session: session.scalar(select(func.pg_backend_pid())))
    with engine.connect() as other:
        other.execute(select(func.pg_terminate_backend(pid, 9000)))

    with pytest.raises(DBAPIError) as caught:
        control.run(lambda session: session.scalar(text("SELECT 1")))

    assert control.dialect.is_outage(caught.value)
    assert control.run(lambda session: session.scalar(text("SELECT 1"))) == 1
    control.close()
    own.dispose()


def test_broken_set_up_of_asyncpg_is_an_outage(dsn: str) -> None:
    """A server that dies while asyncpg sets a connection up is away, no more."""
    asyncpg = pytest.importorskip("asyncpg")
    own = create_engine(make_url(dsn).set(drivername="postgresql+asyncpg"))
    broken: Any = own.dialect.dbapi
    orig = broken.InternalClientError("cannot switch to state 11")

    exc = DBAPIError.instance(None, None, orig, broken.Error, dialect=own.dialect)

    assert issubclass(asyncpg.InternalClientError, Exception)
    assert dialect_of(own).is_outage(exc)


@pytest.mark.parametrize("jobs", [1, 2])
def test_lock_of_a_stopped_commit_does_not_outlast_the_lease(
    dsn: str, engine: Engine, jobs: int
) -> None:
    """
    A runner that stops between fence and COMMIT, with one job or with a batch, keeps
    the rows locked until its lease ends and no longer, so that others take over.
    """
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, "threads")
    stops, go = threading.Event(), threading.Event()

    async def run(given: Any, ctx: Any) -> None:
        for job in given if jobs > 1 else [given]:
            effects(ctx.session, job, "effect")

    def spoil(own: Engine) -> None:
        real, wrote = own.dialect.do_commit, set[Any]()

        def note(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "INTO effects" in statement:
                wrote.add(connection.connection.dbapi_connection)

        def do_commit(connection: Any) -> None:
            if not stops.is_set() and connection.dbapi_connection in wrote:
                stops.set()
                go.wait(20)
            real(connection)

        event.listen(own, "after_cursor_execute", note)
        setattr(own.dialect, "do_commit", do_commit)  # noqa: B010

    kit.on_engine = spoil
    kit.handle(run, many=jobs > 1)
    added = kit.add(*[Task() for _ in range(jobs)])
    try:
        kit.run(lease=LEASE)
        assert stops.wait(20)
        start = time.monotonic()
        kit.sql("SELECT count(*) FROM (SELECT 1 FROM jobs FOR UPDATE) AS locked")
        seconds = time.monotonic() - start
        go.set()
        for job in added:
            kit.until_state(job, "completed")
        assert seconds < LEASE.total_seconds() + 1
        assert kit.notes() == ["effect"] * jobs
    finally:
        go.set()
        kit.close()


def test_locks_of_a_stopped_runner_do_not_outlast_the_lease(
    dsn: str, engine: Engine
) -> None:
    """A heartbeat, a claim or a sweep that stops before its COMMIT lets go in time."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, "threads")
    kit.add()
    own = create_engine(dsn)
    control = Control(own, Limits(LEASE))
    every = "SELECT 1 FROM jobs FOR UPDATE"
    waited: list[float] = []

    def stop(session: Session) -> None:
        session.execute(text(every))
        start = time.monotonic()
        kit.sql(every)
        waited.append(time.monotonic() - start)

    with pytest.raises(DBAPIError) as caught:
        control.run(stop)

    assert control.dialect.is_outage(caught.value)
    assert waited[0] < LEASE.total_seconds() + 1
    control.close()
    own.dispose()
    kit.close()


def test_arguments_are_found_while_the_class_changes() -> None:
    """The first jobs of a class may be made in several threads at once."""

    class Changing:
        first: Any = Arg(default=1)

    class Meddler:
        @property  # type: ignore[misc]
        def __class__(self) -> type:
            setattr(Changing, f"late_{len(vars(Changing))}", None)
            return Meddler

    setattr(Changing, "meddler", Meddler())  # noqa: B010

    assert list(args_of(Changing)) == ["first"]


@pytest.mark.parametrize("shell", ["threads", "aio"])
def test_failure_before_the_handler_is_one_of_the_attempt(
    dsn: str, engine: Engine, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong on the way to a handler, the job and its slot are free."""
    Base.metadata.create_all(engine)
    kit = Kit(dsn, engine, shell)
    real, failures = decode_payload, [RuntimeError("surprise")]

    def decode(job: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(job)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")

    monkeypatch.setattr("sqla_jobs.runner.execute.decode_payload", decode)
    kit.handle(run)
    (job,) = kit.add()
    try:
        kit.run(concurrency=1)
        kit.until_state(job, "completed")
        assert kit.notes() == ["attempt 2"]
        assert "surprise" in kit.job(job).last_error
    finally:
        kit.close()
