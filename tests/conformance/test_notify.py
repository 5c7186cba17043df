"""Listeners: they wake, stop at once, and come back when their connection is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, create_mock_engine, event, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqla_jobs._notify import ListenerTask, ListenerThread, base, connect, listener_for

pytestmark = pytest.mark.direct("listens without listen_url")
LIMIT = 20.0


class Wakes:
    """Counts wake-ups; waits for more of them."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def __call__(self) -> None:
        """Count one."""
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until there were *count*."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.count >= count, LIMIT)


@pytest.fixture
def channel() -> str:
    """Return a channel that no other test uses, and that needs quotes."""
    return f'Sqla "jobs" \'{uuid4().hex[:8]}'


@pytest.fixture
def own(dsn: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Yield an engine whose connections can be told apart; its pool holds one."""
    # connect() waits 10 s for a slot, so a listener that takes one is noticed.
    name = f"listen {uuid4().hex[:8]}"
    driver = "psycopg"
    if "run" in request.fixturenames:
        driver = DRIVERS[request.getfixturevalue("run")]
    url = make_url(dsn).update_query_dict({"application_name": name})
    engine = create_engine(url.set(drivername=f"postgresql+{driver}"), **ONE)
    yield engine
    engine.dispose()


def backends(engine: Engine, own: Engine) -> list[int]:
    """Return the process ids of *own*'s connections to the server."""
    name = own.url.query["application_name"]
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = :name"
    with engine.connect() as connection:
        return list(connection.execute(text(query), {"name": name}).scalars())


def kill(engine: Engine, own: Engine) -> None:
    """End *own*'s connections from the server's side."""
    with engine.connect() as connection:
        for pid in backends(engine, own):
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


def notify(engine: Engine, channel: str) -> None:
    """Wake whoever listens."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_notify(:c, '')"), {"c": channel})


ONE: dict[str, Any] = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 10}
Run = Callable[[Engine, str, Callable[[Wakes, Any], None]], None]


def run_thread(own: Engine, channel: str, act: Callable[[Wakes, Any], None]) -> None:
    """Call *act* while a thread listens."""
    wakes = Wakes()
    listener = listener_for(own)
    assert listener is not None
    thread = ListenerThread(listener, own, channel, on_wake=wakes)
    thread.start()
    try:
        act(wakes, thread)
    finally:
        thread.stop()
        assert not thread.healthy
        assert not thread._thread.is_alive()
        assert thread._stop._read.fileno() == thread._stop._write.fileno() == -1


def run_psycopg2(own: Engine, channel: str, act: Callable[[Wakes, Any], None]) -> None:
    """Call *act* while a thread listens through psycopg2."""
    run_thread(own, channel, act)


def run_task(own: Engine, channel: str, act: Callable[[Wakes, Any], None]) -> None:
    """Call *act*, in a thread, while a task listens."""
    task(create_async_engine(own.url, **ONE), channel, act)


def run_asyncpg(own: Engine, channel: str, act: Callable[[Wakes, Any], None]) -> None:
    """Call *act*, in a thread, while a task listens through asyncpg."""
    settings = {"application_name": own.url.query.get("application_name", "")}
    url = own.url.difference_update_query(["application_name", "connect_timeout"])
    url = url.set(drivername="postgresql+asyncpg")
    connect_args = {"server_settings": settings}
    task(create_async_engine(url, connect_args=connect_args, **ONE), channel, act)


def task(engine: AsyncEngine, channel: str, act: Callable[[Wakes, Any], None]) -> None:
    """Call *act*, in a thread, while a task listens on *engine*."""

    async def main() -> None:
        wakes = Wakes()
        listener = listener_for(engine.sync_engine)
        assert listener is not None
        task = ListenerTask(listener, engine.sync_engine, channel, on_wake=wakes)
        task.start()
        try:
            await asyncio.to_thread(act, wakes, task)
        finally:
            await task.stop()
            assert not task.healthy
            assert task._task is not None
            assert task._task.done()
            await engine.dispose()

    asyncio.run(main())


DRIVERS: dict[Run, str] = {
    run_thread: "psycopg",
    run_task: "psycopg",
    run_asyncpg: "psycopg",
    run_psycopg2: "psycopg2",
}
"""What listens, and the driver of the sync engine beside it."""

each = pytest.mark.parametrize("run", DRIVERS, ids=lambda run: run.__name__[4:])


@each
def test_wakes_once_connected_and_at_each_notification(
    run: Run, engine: Engine, own: Engine, channel: str
) -> None:
    """The first wake-up says that it listens; then one for each commit."""

    def act(wakes: Wakes, service: Any) -> None:
        wakes.wait_for(1)
        assert service.healthy
        notify(engine, channel)
        wakes.wait_for(2)
        notify(engine, channel + "other")
        notify(engine, channel)
        wakes.wait_for(3)
        assert wakes.count == 3

    run(own, channel, act)


@each
def test_takes_no_slot_of_the_pool_and_leaves_nothing_open(
    run: Run, engine: Engine, own: Engine, channel: str
) -> None:
    """The user's pool stays free; after the stop the connection is really closed."""

    def act(wakes: Wakes, service: Any) -> None:
        wakes.wait_for(1)
        assert len(backends(engine, own)) == 1
        with own.connect() as connection:
            connection.execute(text("SELECT 1"))
            listens = connection.execute(text("SELECT pg_listening_channels()"))
            assert listens.all() == []
            connection.rollback()

    run(own, channel, act)
    own.dispose()
    # A closed connection's backend may take a moment to end.
    for _ in range(1000):
        if not backends(engine, own):
            break
    assert backends(engine, own) == []


@each
def test_an_exhausted_pool_is_no_obstacle(
    run: Run, engine: Engine, own: Engine, channel: str
) -> None:
    """A runner may use up the pool before its listener connects, or reconnects."""
    with own.connect():
        run(own, channel, lambda wakes, _: wakes.wait_for(1))


@each
def test_a_killed_connection_comes_back_and_wakes(
    run: Run,
    engine: Engine,
    own: Engine,
    channel: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was missed meanwhile is made up for by a wake-up; each change is logged."""
    caplog.set_level(logging.INFO, "sqla_jobs")

    def act(wakes: Wakes, service: Any) -> None:
        wakes.wait_for(1)
        kill(engine, own)
        wakes.wait_for(2)
        assert service.healthy
        notify(engine, channel)
        wakes.wait_for(3)

    run(own, channel, act)

    levels = [(r.levelname, r.getMessage().split(" on ")[0]) for r in caplog.records]
    assert [level for level, _ in levels] == ["WARNING", "INFO"]
    assert "lost the wake-up connection" in levels[0][1]
    assert levels[1][1] == "listening for wake-ups again"


@each
def test_an_unreachable_database_is_logged_once(
    run: Run, channel: str, own: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps trying, says so once, without the password, and can be stopped."""
    tries = Wakes()
    nowhere = create_engine(
        "postgresql+psycopg://someone:secret@127.0.0.1:1/x?connect_timeout=1"
    )

    original = base._Health.lost

    def counted(self: Any, exc: Exception) -> float:
        tries()
        return min(original(self, exc), 0.01)

    def act(wakes: Wakes, service: Any) -> None:
        tries.wait_for(3)
        assert not service.healthy
        assert wakes.count == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base._Health, "lost", counted)
        run(nowhere, channel, act)

    (record,) = [r for r in caplog.records if r.name == "sqla_jobs"]
    assert "polling until it is back" in record.getMessage()
    assert "secret" not in record.getMessage()
    nowhere.dispose()


@each
def test_a_silent_connection_is_asked_now_and_then(
    run: Run,
    engine: Engine,
    own: Engine,
    channel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Notifications that arrive with the answer are not lost."""
    monkeypatch.setattr(connect, "CHECK_EVERY", 0.01)

    def act(wakes: Wakes, service: Any) -> None:
        wakes.wait_for(1)
        for count in range(2, 30):
            notify(engine, channel)
            wakes.wait_for(count)
        query = text("SELECT query FROM pg_stat_activity WHERE pid = :pid")
        (pid,) = backends(engine, own)
        with engine.connect() as connection:
            found = None
            for _ in range(1000):
                found = connection.execute(query, {"pid": pid}).scalar()
                connection.rollback()
                if found == "SELECT 1":
                    break
        assert found == "SELECT 1"

    run(own, channel, act)


def test_connections_are_made_as_the_engine_makes_its_own(
    dsn: str, channel: str
) -> None:
    """The engine's own events see the connection: credentials may come from there."""
    engine = create_engine(dsn)
    seen: list[str] = []
    event.listen(engine, "do_connect", lambda *args: seen.append("do_connect"))
    event.listen(engine, "connect", lambda *args: seen.append("connect"))

    run_thread(engine, channel, lambda wakes, _: wakes.wait_for(1))
    engine.dispose()

    assert seen == ["do_connect", "connect"]


def test_a_listener_that_never_started_can_be_stopped(own: Engine) -> None:
    """Shutdown paths need not remember what was started."""
    listener = listener_for(own)
    assert listener is not None
    ListenerThread(listener, own, "x", on_wake=Wakes()).stop()

    async def main() -> None:
        await ListenerTask(listener, own, "x", on_wake=Wakes()).stop()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["sqlite://", "postgresql+pg8000://x"])
def test_unknown_drivers_have_no_listener(url: str) -> None:
    """A runner polls there."""
    assert listener_for(create_mock_engine(url, print)) is None  # type: ignore[arg-type]
