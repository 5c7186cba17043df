"""LISTEN through psycopg 3, sync and async."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from sqla_jobs._core.clock import SystemClock

if TYPE_CHECKING:
    import psycopg

# How soon a stop is noticed.
STEP = 0.25
# A peer that vanished without a word is noticed by asking it now and then.
CHECK_EVERY = 15.0
CHECK_TIMEOUT = 10.0


class PsycopgListener:
    """A `Listener` for ``postgresql+psycopg://`` engines."""

    def listen(
        self,
        engine: Engine,
        channel: str,
        on_wake: Callable[[], None],
        stop: threading.Event,
    ) -> None:
        """
        Block until *stop* is set, which is noticed within 0.5 s.

        Raises:
            psycopg.Error: If the connection cannot be made or is lost.
        """
        clock = SystemClock()
        with _listening(engine, channel) as raw:
            on_wake()
            check_at = clock.monotonic() + CHECK_EVERY
            while not stop.is_set():
                for _ in raw.notifies(timeout=STEP):
                    on_wake()
                if clock.monotonic() >= check_at:
                    with _hearing(raw, on_wake):
                        raw.execute("SELECT 1")
                    check_at = clock.monotonic() + CHECK_EVERY

    async def listen_async(
        self, engine: Engine, channel: str, on_wake: Callable[[], None]
    ) -> None:
        """
        Run until cancelled; *engine* is the ``sync_engine`` of an async one.

        Raises:
            psycopg.Error: If the connection cannot be made or is lost.
            TimeoutError: If the server no longer answers.
        """
        async with _listening_async(engine, channel) as raw:
            on_wake()
            while True:
                async for _ in raw.notifies(timeout=CHECK_EVERY):
                    on_wake()
                with _hearing(raw, on_wake):
                    async with asyncio.timeout(CHECK_TIMEOUT):
                        await raw.execute("SELECT 1")


@contextmanager
def _listening(engine: Engine, channel: str) -> Iterator[psycopg.Connection[Any]]:
    raw = _connect(engine)
    try:
        raw.rollback()
        raw.autocommit = True
        raw.execute(_listen(channel))
        yield raw
    finally:
        raw.close()


@asynccontextmanager
async def _listening_async(
    engine: Engine, channel: str
) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    raw = await greenlet_spawn(_connect, engine)
    try:
        await raw.rollback()
        await raw.set_autocommit(True)
        await raw.execute(_listen(channel))
        yield raw
    finally:
        await raw.close()


@contextmanager
def _hearing(raw: Any, on_wake: Callable[[], None]) -> Iterator[None]:
    # Before psycopg 3.2.4 what arrives with an answer reaches handlers only.
    def handle(notification: psycopg.Notify) -> None:
        on_wake()

    raw.add_notify_handler(handle)
    try:
        yield
    finally:
        raw.remove_notify_handler(handle)


def _connect(engine: Engine) -> Any:
    """Return a new driver connection, made as the engine makes its own."""
    # A pool of the same making: the user's may be exhausted, and a connection that
    # listens must never go back into it.
    fairy = engine.pool.recreate().connect()
    # Detaching forgets the driver's connection.
    raw = fairy.driver_connection
    fairy.detach()
    assert raw is not None
    _fail_fast(raw.fileno())
    return raw


def _listen(channel: str) -> Any:
    from psycopg import sql

    return sql.SQL("LISTEN {}").format(sql.Identifier(channel))


def _fail_fast(fd: int) -> None:
    # Without this a query to a vanished peer waits for about 15 minutes.
    option = getattr(socket, "TCP_USER_TIMEOUT", None)
    if option is None:
        return
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            milliseconds = int(CHECK_TIMEOUT * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, option, milliseconds)
