"""Through PgBouncer in transaction mode: what the documentation says to set works."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from tests.pooler.conftest import behind
from tests.pooler.pgbouncer import PgBouncer
from tests.runner.harness import Kit, Task, effects, ok, wait_for

MINUTE = timedelta(minutes=1)
SESSION_STATE = """
SELECT 'setting ' || name FROM pg_settings WHERE source = 'session' AND name NOT IN (
  'application_name', 'client_encoding', 'DateStyle', 'TimeZone',
  'standard_conforming_strings')
UNION ALL SELECT 'prepared ' || name FROM pg_prepared_statements
UNION ALL SELECT 'listening to ' || channel FROM pg_listening_channels() AS channel
UNION ALL SELECT 'lock ' || objid FROM pg_locks
  WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""


@pytest.fixture
def threads(pooler: PgBouncer, engine: Engine) -> Iterator[Kit]:
    """Yield the application behind the pooler, run by threads."""
    yield from behind(pooler, engine, "threads")


def listeners(kit: Kit) -> Any:
    """Return how many connections listen."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE 'LISTEN%'"
    )
    return kit.sql(query)


def test_jobs_run_and_leave_nothing_on_the_servers_connection(
    kit: Kit, pooler: PgBouncer
) -> None:
    """
    Claims, checkpoints, effects, heartbeats and outcomes share one connection with
    everybody else, so nothing of a session may stay there.
    """
    renewed = threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        waits = job.n == 0
        effects(ctx.session, job, "first")
        await ok(ctx.checkpoint(step=1))
        if waits:
            ctx.progress(1, 2)  # which the next heartbeat writes
            await wait_for(renewed, ctx)
        effects(ctx.session, job, "last")

    kit.handle(run)
    jobs = [Task(n=n, ordered=n % 3 == 1, channel="c") for n in range(12)]
    kit.add(*jobs)
    running = kit.run(listen=False)
    kit.until(lambda: running.runner._heartbeat and running.runner._heartbeat.renewals)
    renewed.set()
    kit.until(lambda: set(kit.states()) == {"completed"})
    running.stop()

    assert sorted(kit.notes()) == ["first"] * 12 + ["last"] * 12
    engine = create_engine(pooler.dsn)
    with engine.connect() as connection:
        left = connection.execute(text(SESSION_STATE)).scalars().all()
    engine.dispose()
    # asyncpg leaves its own: docs/how-to/pgbouncer.md says so.
    theirs = ("setting jit", "prepared s_") if kit.driver == "asyncpg" else ()
    assert [each for each in left if not each.startswith(theirs)] == []


def test_direct_listen_url_wakes_a_runner_behind_the_pooler(
    kit: Kit, sqla_jobs_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A job that the pooler's own clients enqueue starts long before the next poll."""

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    caplog.set_level(logging.INFO, "sqla_jobs")
    running = kit.run(poll=MINUTE, listen_url=sqla_jobs_dsn)
    kit.until(lambda: listeners(kit))
    kit.until(lambda: running.runner._plan._claimed_at > 0)
    (job,) = kit.add()

    kit.until_state(job, "completed")
    assert "is a pooler" not in caplog.text


def test_log_says_that_a_pooler_may_not_wake(
    kit: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever forgets listen_url= is told so when the runner starts."""
    caplog.set_level(logging.INFO, "sqla_jobs")

    running = kit.run()
    kit.until(lambda: "give the runner listen_url=" in caplog.text)
    running.stop()


def test_runner_behind_a_restarted_pooler_goes_on(
    threads: Kit, pooler: PgBouncer, sqla_jobs_dsn: str
) -> None:
    """All its connections are lost at once; jobs go on when the pooler is back."""
    started, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        started.set()
        await wait_for(go)
        effects(ctx.session, job, "done")

    threads.handle(run)
    (first,) = threads.add()
    threads.run(listen_url=sqla_jobs_dsn)
    assert started.wait(10)

    pooler.restart()
    go.set()

    (second,) = threads.add()
    for job in (first, second):
        threads.until_state(job, "completed")
    assert threads.notes() == ["done", "done"]


def test_prepared_statements_are_what_the_settings_are_for(pooler: PgBouncer) -> None:
    """Two clients that prepare statements meet on one connection, and collide."""
    url = make_url(pooler.dsn).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"prepare_threshold": 0})
    with engine.connect() as one, engine.connect() as two:
        for number in range(10):
            one.execute(text(f"SELECT {number}"))
        one.commit()
        numbers = (two.scalar(text(f"SELECT {number} + 1")) for number in range(10))
        with pytest.raises(DBAPIError, match="already exists"):
            list(numbers)
    engine.dispose()
