"""LISTEN through asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine

from sqla_jobs._notify import connect as connecting
from sqla_jobs._notify.stop import Stop


class AsyncpgListener:
    """A `Listener` for ``postgresql+asyncpg://`` engines."""

    def listen(
        self,
        engine: Engine,
        channel: str,
        on_wake: Callable[[], None],
        stop: Stop,
    ) -> None:
        """
        Refuse: a sync runner has no asyncpg engine.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("asyncpg listens in an event loop only")

    async def listen_async(
        self, engine: Engine, channel: str, on_wake: Callable[[], None]
    ) -> None:
        """
        Run until cancelled; *engine* is the ``sync_engine`` of an async one.

        Raises:
            asyncpg.PostgresError: If the connection cannot be made.
            ConnectionError: If it is lost.
            TimeoutError: If the server no longer answers.
        """
        lost = asyncio.Event()
        async with connecting.connected(engine, _close) as raw:
            raw.add_termination_listener(lambda *_: lost.set())
            await raw.add_listener(channel, lambda *_: on_wake())
            on_wake()
            while not raw.is_closed():
                with suppress(TimeoutError):
                    async with asyncio.timeout(connecting.CHECK_EVERY):
                        await lost.wait()
                    break
                # Not asyncpg's own time-out, which would ask the server to cancel.
                async with asyncio.timeout(connecting.CHECK_TIMEOUT):
                    await raw.fetchval("SELECT 1")
        raise ConnectionError("the server closed the connection")


async def _close(raw: Any) -> None:
    # At once: saying goodbye to a server that is away takes as long as asking it.
    raw.terminate()
