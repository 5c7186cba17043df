"""What a runner refuses, and what it says."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    JobDefinitionError,
    JobValueError,
    MissingTables,
    UnsupportedDialect,
    handles,
)
from sqla_jobs.handlers import Handler
from sqla_jobs.runner.aio import AsyncRunner
from sqla_jobs.runner.threads import Runner
from sqla_jobs.testing import DatabaseServer
from tests.runner.harness import Job, Kit, Other, Task, ok


async def nothing(job: Any, ctx: Any) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lease": timedelta(seconds=2)}, "lease must be 3 s or more, got 2 s"),
        ({"poll": timedelta(0)}, "poll must be above zero, got 0:00:00"),
        ({"grace": timedelta(seconds=-1)}, "grace must be zero or more, got -1 day"),
        ({"max_crashes": 0}, "max_crashes must be 1 or more, got 0"),
        ({"concurrency": 0}, "concurrency must be a whole number of 1 or more, got 0"),
        ({"concurrency": -4}, "got -4"),
        ({"threads": 0}, "threads must be a whole number of 1 or more, got 0; None"),
        ({"threads": True}, "threads must be a whole number of 1 or more, got True"),
        ({"threads": "3"}, "threads must be a whole number of 1 or more, got '3'"),
        ({"queues": {"a": -1}}, r"queues\['a'\] must be a whole number .*, got -1"),
        ({"queues": "mail"}, "queues must be a list or a mapping, got 'mail'"),
        ({"kinds": "task"}, "kinds must be a list, got 'task'"),
        (
            {"kinds": ["tusk"]},
            "names 'tusk', which is not mapped; known: .*task",
        ),
        ({"lease": 30}, "lease must be a timedelta of 3 s or more, got 30"),
        ({"poll": 1}, "poll must be a timedelta, e.g. .*got 1"),
        ({"grace": 1.5}, "grace must be a timedelta, e.g. .*got 1.5"),
    ],
    ids=str,
)
def test_bad_option_is_refused_with_its_value(
    kit: Kit, options: dict[str, Any], message: str
) -> None:
    """When the runner is made, not when it runs."""
    kit.handle(nothing)

    with pytest.raises(JobValueError, match=message):
        kit.make(**options)


def test_kind_without_a_handler_is_refused_when_named(kit: Kit) -> None:
    """`kinds=` that names what this runner cannot run is an error, with the fix."""
    kit.handle(nothing)
    with pytest.raises(JobDefinitionError, match=r"Other has no handler; give .* run"):
        kit.make(kinds=[Other])

    other_way = Handler(nothing, is_async=kit.shell == "threads")
    kit.handle(nothing, Other)
    Other.__job_handler__ = other_way
    why = "an AsyncRunner runs" if kit.shell == "threads" else "sync_session="
    with pytest.raises(JobDefinitionError, match=why):
        kit.make(kinds=["other"])


def test_second_handler_of_a_kind_is_refused(threads: Kit) -> None:
    """Which of two would run must not depend on the order of imports."""
    threads.handle(nothing)

    with pytest.raises(JobDefinitionError, match="kind 'task' would have two handlers"):
        handles(Task)(lambda job, ctx: None)


@pytest.mark.parametrize("maker", [Session, "dsn", None])
def test_sessionmaker_is_asked_for(kit: Kit, maker: Any) -> None:
    """Something that makes no sessions is named, with what was wanted."""
    make: Any = Runner if kit.shell == "threads" else AsyncRunner
    with pytest.raises(JobValueError, match=r"needs a sqlalchemy.*sessionmaker, got"):
        make(maker, Job)


def test_engine_or_the_other_sessionmaker_is_refused(threads: Kit) -> None:
    """An Engine is no sessionmaker; nor does an async one serve threads."""
    engine = create_async_engine("postgresql+psycopg://")
    wrong: list[tuple[Any, Any]] = [
        (Runner, threads.engine),
        (Runner, async_sessionmaker(engine)),
        (AsyncRunner, sessionmaker(threads.engine)),
        (AsyncRunner, engine),
    ]
    for make, maker in wrong:
        with pytest.raises(JobValueError, match="sessionmaker, got"):
            make(maker, Job)
    with pytest.raises(JobValueError, match="needs a sync engine, got"):
        Runner(sessionmaker(engine.sync_engine), Job)


def test_session_bound_to_a_connection_is_refused(kit: Kit) -> None:
    """A runner needs several connections, so an Engine."""
    with kit.engine.connect() as connection:
        if kit.shell == "threads":
            with pytest.raises(JobValueError, match=r"bound to an Engine, got <.*Conn"):
                Runner(sessionmaker(connection), Job)
            return

    async def main() -> None:
        engine = create_async_engine(kit.dsn)
        async with engine.connect() as connection:
            with pytest.raises(JobValueError, match=r"bound to an Engine, got <.*Conn"):
                AsyncRunner(async_sessionmaker(connection), Job)
        await engine.dispose()

    asyncio.run(main())


def test_unbound_sessionmaker_is_refused(kit: Kit) -> None:
    """Sessions that know no database are refused in the same words."""
    make: Any = Runner if kit.shell == "threads" else AsyncRunner
    maker: Any = sessionmaker() if kit.shell == "threads" else async_sessionmaker()
    with pytest.raises(JobValueError, match="needs sessions bound to an Engine"):
        make(maker, Job)


def test_unsupported_database_is_refused(threads: Kit) -> None:
    """The error names the database and what is supported."""
    engine = create_engine("sqlite://")
    with pytest.raises(UnsupportedDialect, match=r"sqlite.*postgresql"):
        Runner(sessionmaker(engine), Job)
    engine.dispose()


@pytest.mark.parametrize("verb", ["run", "run_until_idle", "run_one", "start"])
def test_missing_tables_are_named_with_the_command_that_makes_them(
    kit: Kit, sqla_jobs_server: DatabaseServer, verb: str
) -> None:
    """However it is started; and no connection stays open."""
    kit.handle(nothing)
    with sqla_jobs_server.temporary_database("empty") as dsn:
        kit.dsn = dsn
        with pytest.raises(MissingTables, match=MISSING):
            kit.call(verb)
        engine = create_engine(dsn)
        kit.until(lambda: others(engine) == 0)
        engine.dispose()


def others(engine: Engine) -> Any:
    """Return how many connections to the database there are beside this one."""
    with engine.connect() as connection:
        return connection.scalar(text(OTHERS))


MISSING = "no table jobs, jobs_attempts, .*alembic upgrade head.*create_all"
OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def test_undecodable_payload_is_discarded_and_its_batch_mates_run(kit: Kit) -> None:
    """A row whose payload does not fit the class can never run; the others do."""
    seen: list[int] = []

    async def run(job: Any, ctx: Any) -> None:
        seen.append(job.n)

    kit.handle(run)
    good, wrong, none, also = kit.add(*[Task(n=n) for n in range(4)])
    kit.sql('UPDATE jobs SET payload = \'{"n": "two"}\' WHERE id = :i', i=wrong)
    kit.sql("UPDATE jobs SET payload = '[1]' WHERE id = :i", i=none)

    kit.drain()

    assert sorted(seen) == [0, 3]
    assert kit.states() == ["completed", "discarded", "discarded", "completed"]
    assert kit.job(wrong).reason.startswith("payload does not decode: ")
    assert "two" in kit.job(wrong).reason
    assert kit.job(wrong).attempt == 1
    assert (kit.job(good).reason, kit.job(also).reason) == (None, None)


def test_broken_state_is_discarded_too(kit: Kit) -> None:
    """A checkpoint that is no mapping could never be `ctx.state`."""

    async def run(job: Any, ctx: Any) -> None:
        ctx.state["x"] = 1
        await ok(ctx.checkpoint())

    kit.handle(run)
    (job,) = kit.add(Task(max_attempts=2))
    kit.sql("UPDATE jobs SET checkpoint = '[1, 2]'")

    kit.drain()

    assert kit.job(job).state == "discarded"
