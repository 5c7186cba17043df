"""What drivers say about faults, and what becomes of jobs then; the faults are real."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    Engine,
    create_engine,
    func,
    make_url,
    select,
    text,
)

from sqla_jobs._dialects import JobDialect, dialect_of
from sqla_jobs.testing import PostgresServer
from tests.drivers.portal import portal
from tests.drivers.proxy import Proxy
from tests.runner.harness import Base, Kit, Task, effects, ok, wait_for

ASYNCPG = "postgresql+asyncpg"
DRIVERS = ("psycopg", "psycopg_async", "asyncpg", "psycopg2")


@pytest.fixture(params=DRIVERS)
def own(request: pytest.FixtureRequest, dsn: str) -> Iterator[Engine]:
    """Yield an engine of each driver."""
    yield from engine_on(dsn, request.param)


def engine_on(dsn: str, driver: str) -> Iterator[Engine]:
    """Yield an engine; an async driver works there too."""
    url = make_url(dsn).set(drivername=f"postgresql+{driver}")
    with ExitStack() as stack:
        if url.get_dialect().is_async:
            stack.enter_context(portal())
        engine = create_engine(url)
        yield engine
        engine.dispose()


def killed(connection: Connection, other: Connection) -> None:
    """Lose the connection."""
    pid = connection.scalar(select(func.pg_backend_pid()))
    other.execute(select(func.pg_terminate_backend(pid, 9000)))
    connection.execute(text("SELECT 1"))


def unanswered_commit(connection: Connection, other: Connection) -> None:
    """Lose the connection before its COMMIT."""
    pid = connection.scalar(select(func.pg_backend_pid()))
    other.execute(select(func.pg_terminate_backend(pid, 9000)))
    connection.commit()


def read_only(connection: Connection, other: Connection) -> None:
    """Write where a standby would refuse it."""
    connection.execute(text("SET TRANSACTION READ ONLY"))
    connection.execute(text("CREATE TABLE nowhere ()"))


def serialization(connection: Connection, other: Connection) -> None:
    """Update a row that somebody updated after the snapshot."""
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    connection.execute(text("SELECT * FROM faults"))
    other.execute(text("UPDATE faults SET n = n + 1"))
    other.commit()
    connection.execute(text("UPDATE faults SET n = n + 1"))


def lock_timeout(connection: Connection, other: Connection) -> None:
    """Wait for a lock in vain."""
    other.execute(text("LOCK faults"))
    connection.execute(text("SET LOCAL lock_timeout = '20ms'"))
    connection.execute(text("SELECT * FROM faults"))


def statement_timeout(connection: Connection, other: Connection) -> None:
    """Run for too long."""
    connection.execute(text("SET LOCAL statement_timeout = '20ms'"))
    connection.execute(text("SELECT pg_sleep(9)"))


def duplicate(connection: Connection, other: Connection) -> None:
    """Break a unique constraint."""
    connection.execute(text("INSERT INTO faults SELECT n FROM faults"))


def too_late(connection: Connection, other: Connection) -> None:
    """Store a time beyond the calendar."""
    connection.execute(text("SELECT now() + interval '400000 years'"))


def nul(connection: Connection, other: Connection) -> None:
    """Store a character that no text of the database can hold."""
    connection.execute(select(func.upper("\0")))


def surrogate(connection: Connection, other: Connection) -> None:
    """Store half a character."""
    connection.execute(select(func.upper("\ud800")))


def too_large(connection: Connection, other: Connection) -> None:
    """Store a number in a column that is too small."""
    connection.execute(
        text("INSERT INTO faults VALUES (CAST(:n AS int8))"), {"n": 2**40}
    )


def syntax(connection: Connection, other: Connection) -> None:
    """Say nothing that means anything."""
    connection.execute(text("SELEKT 1"))


FAULTS: dict[Callable[[Connection, Connection], None], str] = {
    killed: "outage",
    unanswered_commit: "outage",
    read_only: "outage",
    serialization: "conflict",
    lock_timeout: "",
    statement_timeout: "",
    duplicate: "refusal",
    too_late: "refusal",
    nul: "refusal",
    surrogate: "refusal",
    too_large: "refusal",
    syntax: "",
}


@pytest.fixture
def faults(engine: Engine) -> Iterator[None]:
    """Make a table for what goes wrong."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS faults"))
        connection.execute(text("CREATE TABLE faults (n int PRIMARY KEY)"))
        connection.execute(text("INSERT INTO faults VALUES (1)"))
    yield
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE faults"))


def meaning(dialect: JobDialect, exc: BaseException) -> str:
    """Return what the dialect says that *exc* is."""
    questions = {
        "outage": dialect.is_outage,
        "conflict": dialect.is_conflict,
        "refusal": dialect.is_refusal,
    }
    return " ".join(name for name, ask in questions.items() if ask(exc))


@pytest.mark.usefixtures("faults")
def test_drivers_errors_are_told_apart(own: Engine, engine: Engine) -> None:
    """Each fault means the same to the runner, whichever driver reports it."""
    found = {}
    for fault in FAULTS:
        with engine.connect() as other, own.connect() as connection:
            with pytest.raises(Exception) as caught:  # noqa: PT012
                fault(connection, other)
                pytest.fail(f"{fault.__name__} raised nothing")
            found[fault] = meaning(dialect_of(own), caught.value)
            if "outage" in found[fault] and fault is not read_only:
                connection.invalidate()

    assert found == FAULTS


def test_servers_that_refuse_connections_are_away(own: Engine) -> None:
    """Nobody there, no such database, too many clients: it may be better later."""
    nobody = own.url.set(host="127.0.0.1", port=1, query={})
    no_database = own.url.set(database="no_such_database")
    for url in (nobody, no_database):
        engine = create_engine(url)
        with pytest.raises(Exception) as caught:
            engine.connect()
        assert meaning(dialect_of(engine), caught.value) == "outage", caught.value
        engine.dispose()


def test_server_that_goes_while_a_connection_is_set_up_is_away(proxy: Proxy) -> None:
    """Its last words are there, the end of the connection is not yet."""
    words = b"SFATAL\0C57P01\0Mterminating connection\0\0"
    proxy.parting = b"E" + (len(words) + 4).to_bytes(4, "big") + words
    with portal():
        engine = create_engine(make_url(proxy.dsn).set(drivername=ASYNCPG))
        with pytest.raises(Exception, match="cannot switch to state") as caught:
            engine.connect()
        assert meaning(dialect_of(engine), caught.value) == "outage"
        engine.dispose()


@pytest.mark.parametrize("happens", [True, False])
def test_commit_without_an_answer_is_resolved(
    proxy: Proxy, kit: Kit, happens: bool
) -> None:
    """The wire breaks at COMMIT: effects happen once, whether it arrived or not."""
    url = make_url(proxy.dsn).set(drivername=make_url(kit.dsn).drivername)
    kit.dsn = url.render_as_string(hide_password=False)
    proxy.happens, proxy.cut_after = happens, b"INTO effects"

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"attempt {ctx.attempt}")

    kit.handle(run)
    (job,) = kit.add()
    kit.run()

    kit.until(lambda: kit.job(job).state == "completed")
    assert proxy.cuts == [happens]
    assert kit.notes() == [f"attempt {1 if happens else 2}"]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Yield a server that may be stopped."""
    with PostgresServer() as server:
        yield server


def restart(server: PostgresServer) -> None:
    """Restart the server on its data, as an upgrade does."""
    assert server._close is not None
    alive = server._close.peek()
    assert alive is not None
    cluster: Any = alive[1]
    cluster = cluster.__self__
    wait = ["-m", "fast", "-w", "-s"]
    assert cluster._run("pg_ctl", "restart", "-D", str(cluster._data), *wait) == 0


def test_runner_survives_a_restart_of_the_server(
    request: pytest.FixtureRequest, kit: Kit, server: PostgresServer
) -> None:
    """What was written when the server went is written once; wake-ups come again."""
    engine = create_engine(server.dsn, pool_pre_ping=True)
    request.addfinalizer(engine.dispose)
    Base.metadata.create_all(engine)
    shell = kit.shell if kit.driver == "psycopg" else f"{kit.shell}-{kit.driver}"
    kit = Kit(server.dsn, engine, shell)
    request.addfinalizer(kit.close)
    wrote, go = threading.Event(), threading.Event()

    async def run(job: Any, ctx: Any) -> None:
        effects(ctx.session, job, f"{job.n}, attempt {ctx.attempt}")
        await ok(ctx.session.flush())
        wrote.set()
        await wait_for(go)

    kit.handle(run)
    (job,) = kit.add(Task(n=1))
    kit.run()
    assert wrote.wait(20)
    restart(server)
    go.set()

    kit.until_state(job, "completed")
    (later,) = kit.add(Task(n=2))
    kit.until_state(later, "completed")
    assert kit.notes() == ["1, attempt 2", "2, attempt 1"]
