"""How few statements outcomes cost, and what becomes of them without a database."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from sqla_jobs import Retry, Snooze
from sqla_jobs.testing import DatabaseServer
from tests.runner.harness import (
    Base,
    Kit,
    Task,
    effects,
    ok,
    raise_lost,
    statements,
    wait_for,
)

HOUR = timedelta(hours=1)


@pytest.mark.parametrize("how", ["complete", "fail", "snooze"])
def test_outcomes_without_a_session_are_written_in_batches(kit: Kit, how: str) -> None:
    """
    1,000 jobs that do nothing cost at most 0.03 statements and transactions each, on
    the runner's connections, and none on the application's; failures and snoozes too.
    """
    used: list[str] = []
    commits: list[int] = []
    kit.on_engine = lambda engine: event.listen(
        engine, "before_cursor_execute", lambda *args: used.append(args[2])
    )

    async def run(job: Any, ctx: Any) -> None:
        if how == "fail":
            raise Retry(after=HOUR)
        if how == "snooze":
            raise Snooze(after=HOUR)

    kit.handle(run)
    kit.add(*[Task() for _ in range(1_000)])

    async def use(runner: Any) -> list[str]:
        control = runner._control.engine
        control = getattr(control, "sync_engine", control)
        event.listen(control, "commit", lambda _: commits.append(1))
        with statements(control) as seen:
            await ok(runner.run_until_idle())
        return list(seen)

    # The default poll: with that of other tests a busy machine would look more often.
    slots = 500 if kit.shell == "aio" else 100
    seen = kit.with_runner(use, concurrency=slots, poll=timedelta(seconds=1))

    states = {"complete": "completed", "fail": "retryable", "snooze": "scheduled"}
    assert set(kit.states()) == {states[how]}
    work = [one for one in seen if "pg_catalog" not in one]
    assert len(work) <= 60, len(work)
    assert len(commits) <= 60, len(commits)
    assert [s for s in used if "jobs" in s] == []


@pytest.mark.read_committed("there is one statement more")
def test_job_with_one_write_costs_two_statements(kit: Kit) -> None:
    """The write and the outcome: no SELECT, no savepoint, one transaction."""
    used: list[str] = []
    kit.on_engine = lambda engine: event.listen(
        engine, "before_cursor_execute", lambda *args: used.append(args[2])
    )

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "one")

    kit.handle(run)
    kit.add(*[Task() for _ in range(10)])

    kit.drain()

    verbs = [one.split()[0] for one in used if "pg_catalog" not in one]
    counted = [verb for verb in verbs if verb in ("INSERT", "UPDATE", "SELECT", "WITH")]
    assert (counted.count("INSERT"), len(counted)) == (10, 20), used[-4:]


@pytest.fixture
def own(
    sqla_jobs_server: DatabaseServer, request: pytest.FixtureRequest
) -> Iterator[Kit]:
    """Yield the application on a database of its own, that may be closed."""
    with sqla_jobs_server.temporary_database("outage") as dsn:
        engine = create_engine(dsn)
        Base.metadata.create_all(engine)
        kit = Kit(dsn, engine, request.param)
        yield kit
        kit.close()
        engine.dispose()


class Gate:
    """Closes a database to everybody, and opens it again."""

    def __init__(self, server: DatabaseServer, kit: Kit) -> None:
        self.name, self.kit = make_url(kit.dsn).database, kit
        self.admin = create_engine(server.dsn, isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Refuse connections and end those there are."""
        with self.admin.connect() as connection:
            connection.exec_driver_sql(
                f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS false'
            )
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{self.name}'"
            )
        self.kit.engine.dispose()

    def open(self) -> None:
        """Accept connections."""
        with self.admin.connect() as connection:
            connection.exec_driver_sql(
                f'ALTER DATABASE "{self.name}" ALLOW_CONNECTIONS true'
            )
        self.admin.dispose()


def test_outcomes_wait_for_a_database_that_is_away(
    own: Kit, sqla_jobs_server: DatabaseServer, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Jobs that end while the database is away are settled once it is back, nobody runs
    them again, and the log says once that it was away and once that it is back.
    """
    kit, gate = own, Gate(sqla_jobs_server, own)
    started: list[int] = []
    go = threading.Event()

    async def run(job: Any, ctx: Any) -> Any:
        started.append(job.id)
        await wait_for(go)
        return job.id

    kit.handle(run)
    ids = kit.add(*[Task() for _ in range(4)])
    running = kit.run(lease=timedelta(minutes=1))
    kit.until(lambda: len(started) == 4)
    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        gate.close()
        go.set()
        kit.until(lambda: running.runner._plan.unsettled == 4)
        kit.until(lambda: "does not answer" in caplog.text)
        gate.open()
        kit.until(lambda: set(kit.states()) == {"completed"})
        kit.until(lambda: "is back" in caplog.text)

    assert sorted(started) == ids
    assert kit.sql("SELECT count(*) FROM jobs WHERE attempt = 1") == 4
    name = running.runner.name
    for who in (name, f"{name}-settler"):
        away = f"{who}: the database does"
        assert len([said for said in caplog.messages if said.startswith(away)]) <= 1


def test_effects_of_a_database_that_goes_away_happen_once(
    own: Kit, sqla_jobs_server: DatabaseServer
) -> None:
    """A handler whose connection breaks before its commit is run again, once."""
    kit, gate = own, Gate(sqla_jobs_server, own)
    wrote, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        await ok(ctx.session.flush())
        wrote.set()
        await wait_for(go)

    kit.handle(run)
    (job,) = kit.add()
    kit.run(lease=timedelta(minutes=1))
    assert wrote.wait(10)
    gate.close()
    go.set()
    gate.open()

    assert kit.until_state(job, "completed").attempt == 2
    assert kit.notes() == ["attempt 2"]


@pytest.mark.direct("its creator connects without what poolers need")
def test_runner_waits_for_a_database_that_is_not_there_yet(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Started too early, a runner says so once and begins when the server answers."""
    there, tries = threading.Event(), []
    nowhere = make_url(kit.dsn).set(host="127.0.0.1", port=1, query={})

    def url() -> str:
        tries.append(1)
        target = make_url(kit.dsn) if there.is_set() else nowhere
        plain = target.set(drivername="postgresql")
        return plain.render_as_string(hide_password=False)

    kit.engine_options = kit.connecting(url)

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, "ran")

    kit.handle(run)
    (job,) = kit.add()
    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.run(listen=False)
        kit.until(lambda: len(tries) >= 3)
        there.set()
        kit.until_state(job, "completed")

    said = [m for m in caplog.messages if "does not answer" in m]
    assert len(said) == 1, said
    assert [m for m in caplog.messages if "is back" in m]


def test_stop_does_not_wait_for_a_database_that_is_away(
    kit: Kit,
) -> None:
    """A runner that cannot write its outcomes stops within its grace nevertheless."""
    started, go, away = threading.Event(), threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        started.set()
        await wait_for(go)

    def refuse(*_: Any) -> None:
        if away.is_set():
            raise OperationalError("", {}, OSError("the connection is lost"))

    kit.handle(run)
    kit.add()
    running = kit.run()
    assert started.wait(10)
    event.listen(running.control_engine, "before_cursor_execute", refuse)
    away.set()
    go.set()

    running.stop(grace=timedelta(seconds=0.5))

    assert not running.alive


def test_runner_that_never_found_its_database_stops(kit: Kit) -> None:
    """A stop is heard while the runner waits for the database to appear."""
    tries: list[int] = []

    def url() -> str:
        tries.append(1)
        raise_lost(kit.driver)

    kit.engine_options = kit.connecting(url)
    running = kit.run()
    kit.until(lambda: tries)

    running.stop(grace=timedelta(0))

    assert not running.alive
