"""Wake-ups on every driver: from the commit to the handler, over lost connections."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs._notify import ListenerTask, connect, listener_for
from sqla_jobs._notify.stop import Stop
from sqla_jobs._store import wake
from tests.drivers.proxy import Proxy
from tests.runner.harness import Kit, Task

MINUTE = timedelta(minutes=1)
ASYNC = ("psycopg", "asyncpg")


def enqueue(kit: Kit, job: Any) -> int:
    """Enqueue *job* on the kit's own driver, as an application does."""
    wake.forget_recent()
    if kit.shell == "threads":
        engine = create_engine(kit.dsn)
        with Session(engine) as session:
            session.add(job)
            session.commit()
            made: int = job.id
        engine.dispose()
        return made

    async def main() -> int:
        engine = create_async_engine(kit.dsn)
        async with AsyncSession(engine, expire_on_commit=False) as session:
            session.add(job)
            await session.commit()
        await engine.dispose()
        made: int = job.id
        return made

    return asyncio.run(main())


def listeners(kit: Kit) -> list[int]:
    """Return the process ids of the connections that listen."""
    query = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND query LIKE 'LISTEN%'"
    )
    with kit.engine.connect() as connection:
        return list(connection.execute(query).scalars())


def test_commit_wakes_and_a_killed_listener_comes_back(kit: Kit) -> None:
    """With a poll of a minute, only LISTEN finds a job within seconds."""

    async def run(job: Any, ctx: Any) -> None:
        pass

    kit.handle(run)
    others = connections(kit)
    running = kit.run(poll=MINUTE)
    for _ in range(3):
        found = kit.until(lambda: listeners(kit))
        kit.until_state(enqueue(kit, Task()), "completed")
        for pid in found:
            kit.sql("SELECT pg_terminate_backend(:pid, 9000)", pid=pid)
    found = kit.until(lambda: listeners(kit))
    kit.until_state(enqueue(kit, Task()), "completed")
    assert len(found) == 1

    running.stop()

    kit.until(lambda: connections(kit) <= others)


def connections(kit: Kit) -> int:
    """Return how many connections to the database there are, beside the test's."""
    kit.engine.dispose()
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid()"
    )
    return int(kit.sql(query))


def test_listener_stops_within_half_a_second(dsn: str) -> None:
    """A runner that shuts down does not wait for its listener."""
    engine = create_engine(dsn)
    listener = listener_for(engine)
    assert listener is not None
    awake, stop = threading.Event(), Stop()
    args = (engine, "any", awake.set, stop)
    thread = threading.Thread(target=listener.listen, args=args)
    thread.start()
    assert awake.wait(20)
    stop.set()
    thread.join(0.5)

    assert not thread.is_alive()
    stop.close()
    engine.dispose()


def test_silent_server_is_noticed(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that answers no more is asked, and given up."""
    monkeypatch.setattr(connect, "CHECK_EVERY", 0.05)
    monkeypatch.setattr(connect, "CHECK_TIMEOUT", 0.3)

    async def main() -> None:
        url = make_url(proxy.dsn).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url).sync_engine
        listener = listener_for(engine)
        assert listener is not None
        connected = asyncio.Event()
        work = listener.listen_async(engine, "silent", connected.set)
        task = asyncio.ensure_future(work)
        await connected.wait()
        proxy.silent.set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(task), 20)
        assert task.done()

    asyncio.run(main())


@pytest.mark.parametrize("driver", ASYNC)
def test_stop_at_any_moment_leaves_no_connection(
    driver: str, dsn: str, engine: Engine
) -> None:
    """However far a listener is when it is cancelled, what it opened is closed."""
    mark = f"leak_{uuid4().hex[:8]}"
    url = make_url(dsn).set(drivername=f"postgresql+{driver}")
    query = text("SELECT count(*) FROM pg_stat_activity WHERE application_name = :mark")
    option: dict[str, Any] = {"application_name": mark}
    if driver == "asyncpg":
        option = {"server_settings": option}

    async def main() -> None:
        own = create_async_engine(url, connect_args=option).sync_engine
        listener = listener_for(own)
        assert listener is not None
        steps, listening = 0, False
        while not listening:
            steps += 1 + steps // 8
            woken = asyncio.Event()
            task = ListenerTask(listener, own, "leak", on_wake=woken.set)
            task.start()
            for _ in range(steps):
                await asyncio.sleep(0)
            listening = woken.is_set()
            await task.stop()

    asyncio.run(main())
    left = None
    with engine.connect() as connection:
        for _ in range(1000):
            left = connection.execute(query, {"mark": mark}).scalar()
            connection.rollback()
            if not left:
                break
    assert left == 0


def test_listener_is_heard_when_events_of_the_engine_begin_a_transaction(
    dsn: str,
) -> None:
    """Whatever a connect event leaves open does not hold the LISTEN back."""
    url = make_url(dsn).set(drivername="postgresql+asyncpg")

    async def main() -> bool:
        own = create_async_engine(url)

        def begin(connection: Any, _: Any) -> None:
            connection.cursor().execute("SELECT 1", ())

        event.listen(own.sync_engine, "connect", begin)
        raw = await greenlet_spawn(connect.connect, own.sync_engine)
        inside: bool = raw.is_in_transaction()
        await raw.close()
        await own.dispose()
        return inside

    assert asyncio.run(main()) is False
