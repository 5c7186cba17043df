"""The runner's own connections neither hang nor hold locks, whatever happens."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Self
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError

from sqla_jobs._dialects import sockets
from sqla_jobs.runner.control import Control, Limits
from tests.drivers.portal import portal
from tests.drivers.proxy import Proxy
from tests.pooler.pgbouncer import PgBouncer, why_not
from tests.runner.harness import LEASE, POLL, Kit, Task, effects, ok, wait_for

DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2", "pg8000")
MINUTE = timedelta(minutes=1)
TIMEOUTS = {
    "idle_in_transaction_session_timeout": "6s",
    "statement_timeout": "200ms",
    "lock_timeout": "100ms",
    "idle_session_timeout": "7s",
}
"""What an administrator may set for all sessions of an application."""


@contextmanager
def engine_on(dsn: str, driver: str, **options: Any) -> Iterator[Engine]:
    """Yield an engine; an async driver works there too."""
    if driver == "pg8000":
        pytest.importorskip("pg8000")
    url = make_url(dsn).set(drivername=f"postgresql+{driver}")
    folder = str(url.host or url.query.get("host"))
    if driver == "pg8000" and folder.startswith("/"):
        options["connect_args"] = {"unix_sock": f"{folder}/.s.PGSQL.5432"}
        url = url.set(query={})
    with ExitStack() as stack:
        if url.get_dialect().is_async:
            stack.enter_context(portal())
        engine = create_engine(url, **options)
        yield engine
        engine.dispose()


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    """Yield a way to the server by TCP."""
    proxy = Proxy(dsn)
    yield proxy
    proxy.close()


@pytest.fixture
def stingy(kit: Kit) -> Iterator[Kit]:
    """Yield the application with a role that may not wait for anything."""
    role = f"stingy_{uuid4().hex[:8]}"
    kit.sql(f"CREATE ROLE {role} SUPERUSER LOGIN")
    for setting, value in TIMEOUTS.items():
        kit.sql(f"ALTER ROLE {role} SET {setting} = '{value}'")
    url = make_url(kit.dsn).set(username=role)
    kit.dsn = url.render_as_string(hide_password=False)
    yield kit
    kit.sql(f"DROP ROLE {role}")


def settings(connection: Any) -> dict[str, str]:
    """Return the timeouts of a connection."""
    names = ", ".join(f"'{name}'" for name in TIMEOUTS)
    query = text(
        "SELECT name, current_setting(name) AS value FROM pg_settings"
        f" WHERE name IN ({names}) ORDER BY name"
    )
    return {row.name: row.value for row in connection.execute(query)}


@pytest.mark.direct("what the server sets for a session of ours alone")
@pytest.mark.parametrize("driver", DRIVERS)
def test_connections_are_limited_on_both_sides(proxy: Proxy, driver: str) -> None:
    """Ours alone, not those of the application, on the socket and in the session."""
    with engine_on(proxy.dsn, driver) as engine:
        control = Control(engine, Limits(timedelta(seconds=9)))

        with control.engine.connect() as own, engine.connect() as theirs:
            assert settings(own) == {
                "idle_in_transaction_session_timeout": "9s",
                "idle_session_timeout": "0",
                "lock_timeout": "0",
                "statement_timeout": "18s",
            }
            assert set(settings(theirs).values()) == {"0"}
            found = [patience(each) for each in (own, theirs)]

        assert found[0] == (1, 3, 1, 3, 3000)
        assert found[1][-1] == 0
        control.close()


def patience(connection: Any) -> tuple[int, ...]:
    """Return the keepalives and the time-out of a connection's socket."""
    tcp = socket.IPPROTO_TCP
    with sockets.socket_of(connection.connection.driver_connection) as sock:
        assert sock is not None
        return (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
            sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
            sock.getsockopt(tcp, socket.TCP_KEEPCNT),
            sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT),
        )


def test_limits_of_others_do_not_stop_the_runner(
    stingy: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim waits for a lock longer than the role's statements may take."""
    kit = stingy

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    with caplog.at_level(logging.WARNING, "sqla_jobs"):
        slow(kit)
        running = kit.running[0]
        running.stop()

    assert [m for m in caplog.messages if "does not answer" in m] == []


def slow(kit: Kit) -> None:
    """Run a job while the job table is locked for a while."""
    running = kit.run(listen=False)
    kit.until(lambda: kit.sql("SELECT count(*) FROM jobs_runners"))
    (job,) = kit.add()
    with kit.engine.begin() as connection:
        connection.execute(text("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE"))
        waits = text(
            "SELECT count(*) FROM pg_locks WHERE NOT granted"
            " AND relation = 'jobs'::regclass AND waitstart < clock_timestamp()"
            " - interval '300 ms'"
        )
        kit.until(lambda: connection.scalar(waits))
    kit.until_state(job, "completed")
    assert running.alive


@pytest.mark.direct("it puts a pooler of its own between")
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_limits_behind_a_pooler_are_the_transactions(
    stingy: Kit, caplog: pytest.LogCaptureFixture
) -> None:
    """There a session belongs to many: its settings stay the administrator's."""
    kit, direct = stingy, stingy.dsn
    pooler = PgBouncer(direct, size=3)
    try:
        kit.dsn = pooler.dsn
        kit.engine_options |= {"connect_args": {"prepare_threshold": None}}

        async def run(job: Any, ctx: Any) -> None:
            pass

        kit.handle(run)
        with caplog.at_level(logging.WARNING, "sqla_jobs"):
            slow(kit)
        kit.running[0].stop()
        engine = create_engine(pooler.dsn, **kit.engine_options)
        with ExitStack() as stack:
            found = [settings(stack.enter_context(engine.connect())) for _ in range(3)]
        engine.dispose()
    finally:
        pooler.close()

    assert found == [dict(sorted(TIMEOUTS.items()))] * 3
    assert [m for m in caplog.messages if "does not answer" in m] == []


@pytest.mark.parametrize("driver", DRIVERS)
def test_refusal_of_a_standby_drops_the_whole_pool(dsn: str, driver: str) -> None:
    """Other connections lead to the same server, so none of them is used again."""
    with engine_on(dsn, driver) as engine:
        control = Control(engine)
        for own in (control.engine, engine):
            before = pids(own)
            with own.connect() as connection:
                connection.execute(text("SET TRANSACTION READ ONLY"))
                with pytest.raises(DBAPIError) as caught:
                    connection.execute(text("CREATE TABLE nowhere ()"))

            assert caught.value.connection_invalidated
            assert before.isdisjoint(pids(own))
        control.close()


def pids(engine: Engine) -> set[int]:
    """Return the server's process ids of two connections."""
    with ExitStack() as stack:
        connections = [stack.enter_context(engine.connect()) for _ in range(2)]
        query = text("SELECT pg_backend_pid()")
        return {connection.execute(query).scalar_one() for connection in connections}


@pytest.mark.parametrize("commit", ["checkpoint", "outcome"])
def test_client_that_stops_between_fence_and_commit_lets_go(
    kit: Kit, commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The server ends the transaction, and with it the row's lock, long before TCP would;
    nothing was written, and the effect happens once.
    """
    monkeypatch.setattr("sqla_jobs.runner.guard.COMMIT_SECONDS", 1.0)
    stops, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")
        if commit == "checkpoint":
            await ok(ctx.checkpoint(half=True))

    def spoil(engine: Engine) -> None:
        real = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            if not stops.is_set() and fenced(connection.dbapi_connection):
                stops.set()
                go.wait(20)
            real(connection)

        setattr(engine.dialect, "do_commit", do_commit)  # noqa: B010

    kit.on_engine = spoil
    kit.handle(run)
    (job,) = kit.add()
    kit.run()
    assert stops.wait(20)

    kit.sql("SELECT 1 FROM jobs FOR UPDATE")
    go.set()

    kit.until_state(job, "completed")
    assert kit.notes() == ["attempt 2"]


def fenced(connection: Any) -> bool:
    """Return whether the fence has bounded the transaction of a connection."""
    cursor = connection.cursor()
    cursor.execute("SELECT current_setting('idle_in_transaction_session_timeout')", ())
    (value,) = cursor.fetchone()
    cursor.close()
    return bool(value == "1s")


class Frozen:
    """Server processes of the runner that are stopped, though their kernel answers."""

    def __init__(self, kit: Kit) -> None:
        kit.engine.dispose()
        query = (
            "SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND backend_type = 'client backend'"
        )
        self.pids: list[int] = kit.sql(query)

    def __enter__(self) -> Self:
        self._tell(signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self.pids:
            try:
                os.kill(pid, number)
            except (PermissionError, ProcessLookupError):
                if number is signal.SIGSTOP:
                    pytest.skip("the server's processes are not ours to stop")


@pytest.fixture
def waiting(kit: Kit) -> Iterator[tuple[Kit, threading.Event, list[str]]]:
    """Yield the application, a flag that ends its first job, and how attempts ended."""
    over, ended = threading.Event(), list[str]()

    async def run(job: Any, ctx: Any) -> None:
        if job.n:
            return
        try:
            await wait_for(over, ctx)
        except BaseException as exc:
            ended.append(type(exc).__name__)
            raise
        ended.append("returned")

    kit.handle(run)
    yield kit, over, ended
    over.set()


def freeze(kit: Kit, poll: timedelta = MINUTE) -> Frozen:
    """Start a runner with a job at work, all of its connections idle; stop these."""
    (job,) = kit.add()
    running = kit.run(lease=LEASE, poll=poll)
    kit.until(lambda: running.runner._heartbeat and running.runner._heartbeat.renewals)
    assert kit.job(job).state == "running"
    return Frozen(kit)


def test_server_that_stops_is_waited_for(
    waiting: tuple[Kit, threading.Event, list[str]],
) -> None:
    """Handlers are told before their lease ends; all goes on when the server does."""
    kit, over, ended = waiting
    frozen = freeze(kit)

    with frozen:
        kit.until(lambda: ended)

    assert ended[0] in {"AttemptInterrupted", "CancelledError"}
    over.set()
    (job,) = kit.add(Task(n=1))
    kit.until_state(job, "completed")


def test_server_that_never_goes_on_is_given_up(
    waiting: tuple[Kit, threading.Event, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    As after a failover from a machine that hangs: new connections lead elsewhere, the
    old ones never answer again, and no time-out of TCP counts.
    """
    kit, _, ended = waiting
    monkeypatch.setattr(Limits, "transaction", timedelta(seconds=1))

    with freeze(kit, POLL), caplog.at_level(logging.WARNING, "sqla_jobs"):
        kit.until(lambda: ended)
        jobs = kit.add(Task(n=1), Task(n=1))
        for job in jobs:
            kit.until_state(job, "completed")

    assert [m for m in caplog.messages if "is given up" in m]


def test_stop_does_not_wait_for_a_server_that_hangs(
    waiting: tuple[Kit, threading.Event, list[str]],
) -> None:
    """A stop ends within its grace and a few seconds."""
    kit, over, _ = waiting

    with freeze(kit):
        over.set()
        kit.running[0].stop(grace=timedelta(0))
