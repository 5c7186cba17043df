"""The connection of a listener, made as the engine makes its own; for all drivers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.util import greenlet_spawn

from sqla_jobs._dialects import sockets
from sqla_jobs._notify.urls import shown

log = logging.getLogger("sqla_jobs")

SHARED = "sqla_jobs.shared"
"""In the info of a connection that goes through a pooler."""

CHECK_EVERY = 15.0
"""Seconds between questions: a peer that vanished without a word is noticed so."""

CHECK_TIMEOUT = 10.0
"""Seconds an answer may take."""

STOP_TIMEOUT = 2.0
"""Most seconds that a stop waits for a connection in the making."""


def connect(engine: Engine) -> Any:
    """Return a new driver connection, made as the engine makes its own."""
    # A pool of the same making: the user's may be exhausted, and a connection that
    # listens must never go back into it.
    fairy = engine.pool.recreate().connect()
    try:
        # An application's event may have begun a transaction: LISTEN would wait for it.
        fairy.rollback()
        if SHARED in fairy.info:
            log.info(
                "%s is a pooler: wake-ups come through it only if it pools whole"
                " sessions; else give the runner listen_url=",
                shown(engine.url),
            )
    except BaseException:
        fairy.invalidate()
        raise
    # Detaching forgets the driver's connection.
    raw = fairy.driver_connection
    fairy.detach()
    assert raw is not None
    return raw


@asynccontextmanager
async def connected(
    engine: Engine, close: Callable[[Any], Awaitable[None]]
) -> AsyncIterator[Any]:
    """Yield a new driver connection of an async engine; *close* ends it."""
    # Cancelled half way, what the driver has opened would be nobody's to close.
    making = asyncio.ensure_future(greenlet_spawn(connect, engine))
    try:
        raw = await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making], timeout=STOP_TIMEOUT)
        if not making.cancel() and making.exception() is None:
            await close(making.result())
        raise
    try:
        yield raw
    finally:
        await close(raw)


def fail_fast(raw: Any) -> None:
    """Let the driver's connection fail after `CHECK_TIMEOUT` without an answer."""
    sockets.fail_when_silent(raw, CHECK_TIMEOUT)
