"""LISTEN through psycopg 3, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from sqla_jobs._core.clock import SystemClock
from sqla_jobs._notify import connect as connecting
from sqla_jobs._notify.stop import Stop

if TYPE_CHECKING:
    import psycopg


class PsycopgListener:
    """A `Listener` for ``postgresql+psycopg://`` engines."""

    def listen(
        self,
        engine: Engine,
        channel: str,
        on_wake: Callable[[], None],
        stop: Stop,
    ) -> None:
        """
        Block until *stop* is set.

        Raises:
            psycopg.Error: If the connection cannot be made or is lost.
        """
        clock = SystemClock()
        with _listening(engine, channel) as raw, stop.beside(raw) as wait:
            on_wake()
            check_at = clock.monotonic() + connecting.CHECK_EVERY
            while not stop.is_set():
                wait(check_at - clock.monotonic())
                if clock.monotonic() >= check_at:
                    with _hearing(raw, on_wake):
                        raw.execute("SELECT 1")
                    check_at = clock.monotonic() + connecting.CHECK_EVERY
                raw.pgconn.consume_input()
                while raw.pgconn.notifies():
                    on_wake()

    async def listen_async(
        self, engine: Engine, channel: str, on_wake: Callable[[], None]
    ) -> None:
        """
        Run until cancelled; *engine* is the ``sync_engine`` of an async one.

        Raises:
            psycopg.Error: If the connection cannot be made or is lost.
            TimeoutError: If the server no longer answers.
        """
        async with connecting.connected(engine, _close) as raw:
            connecting.fail_fast(raw)
            await raw.set_autocommit(True)
            await raw.execute(_listen(channel))
            on_wake()
            while True:
                async for _ in raw.notifies(timeout=connecting.CHECK_EVERY):
                    on_wake()
                with _hearing(raw, on_wake):
                    async with asyncio.timeout(connecting.CHECK_TIMEOUT):
                        await raw.execute("SELECT 1")


@contextmanager
def _listening(engine: Engine, channel: str) -> Iterator[psycopg.Connection[Any]]:
    raw = connecting.connect(engine)
    try:
        connecting.fail_fast(raw)
        raw.autocommit = True
        raw.execute(_listen(channel))
        yield raw
    finally:
        raw.close()


async def _close(raw: psycopg.AsyncConnection[Any]) -> None:
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


def _listen(channel: str) -> Any:
    from psycopg import sql

    return sql.SQL("LISTEN {}").format(sql.Identifier(channel))
