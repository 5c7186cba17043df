"""What a driver's listener does, and the thread and the task that keep one alive."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from sqlalchemy import Engine

from sqla_jobs._core.backoff import exponential
from sqla_jobs._notify.stop import Stop
from sqla_jobs._notify.urls import shown

log = logging.getLogger("sqla_jobs")

RECONNECT = exponential(
    base=timedelta(seconds=0.1), cap=timedelta(seconds=10), jitter=0.5
)
"""The delay before the next try to connect."""

STOP_TIMEOUT = 2.0
CANCEL_TIMEOUT = 5.0  # longer than a listener takes that is still connecting


class Listener(Protocol):
    """
    Listens on one connection of its own until told to stop.

    It calls *on_wake* once as soon as it listens, since a wake-up may have been missed
    before, and then at each wake-up. The connection comes from the engine's pool
    creator, so it is made as the user's are, and takes no slot of the pool.
    """

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
            Exception: Whatever the driver raises when the connection is lost.
        """
        ...

    async def listen_async(
        self, engine: Engine, channel: str, on_wake: Callable[[], None]
    ) -> None:
        """
        Run until cancelled; *engine* is the ``sync_engine`` of an async one.

        Raises:
            Exception: Whatever the driver raises when the connection is lost.
        """
        ...


class _Health:
    """Whether a listener is connected; says so in the log when that changes."""

    def __init__(self, engine: Engine, on_wake: Callable[[], None]) -> None:
        self.healthy = False
        self._away = False
        self._failures = 0
        self._where = shown(engine.url)
        self._on_wake = on_wake

    def woken(self) -> None:
        """Note that the listener is connected, and pass the wake-up on."""
        if not self.healthy:
            self.healthy, self._failures = True, 0
            if self._away:
                self._away = False
                log.info("listening for wake-ups again on %s", self._where)
        self._on_wake()

    def lost(self, exc: Exception) -> float:
        """Note the loss; return the seconds until the next try."""
        self.healthy = False
        if not self._away:
            self._away = True
            log.warning(
                "lost the wake-up connection to %s; polling until it is back: %s",
                self._where,
                next(iter(str(exc).splitlines()), type(exc).__name__),
            )
        self._failures += 1
        rand = random.random()  # noqa: S311  # no secret
        return RECONNECT.delay(self._failures, rand).total_seconds()


class ListenerThread:
    """A thread that keeps *listener* listening, over lost connections, until `stop`."""

    def __init__(
        self,
        listener: Listener,
        engine: Engine,
        channel: str,
        *,
        on_wake: Callable[[], None],
    ) -> None:
        self._listener, self._engine, self._channel = listener, engine, channel
        self._health = _Health(engine, on_wake)
        self._stop = Stop()
        name = f"sqla_jobs-listen-{channel}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def healthy(self) -> bool:
        """Whether it listens at the moment."""
        return self._health.healthy

    def start(self) -> None:
        """Start listening; returns at once."""
        self._thread.start()

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """
        Stop listening and close the connection.

        Args:
            timeout: Most seconds to wait for the thread. Default 2. It is a daemon, so
                a connection attempt that hangs does not keep the process alive.
        """
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        if not self._thread.is_alive():
            self._stop.close()

    def _run(self) -> None:
        health, stop = self._health, self._stop
        while not stop.is_set():
            try:
                self._listener.listen(self._engine, self._channel, health.woken, stop)
            except Exception as exc:  # noqa: BLE001  # any driver's
                # A driver being interrupted by the stop is no loss.
                if not stop.is_set():
                    stop.wait(health.lost(exc))
        health.healthy = False


class ListenerTask:
    """A task that keeps *listener* listening, over lost connections, until `stop`."""

    def __init__(
        self,
        listener: Listener,
        engine: Engine,
        channel: str,
        *,
        on_wake: Callable[[], None],
    ) -> None:
        self._listener, self._engine, self._channel = listener, engine, channel
        self._health = _Health(engine, on_wake)
        self._task: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether it listens at the moment."""
        return self._health.healthy

    def start(self) -> None:
        """Start listening in the running event loop; returns at once."""
        name = f"sqla_jobs-listen-{self._channel}"
        self._task = asyncio.get_running_loop().create_task(self._run(), name=name)

    async def stop(self) -> None:
        """Stop listening and close the connection."""
        while self._task is not None and not self._task.done():
            # Again, since psycopg 3.2.1, cancelled in a statement, may wait for ever.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=CANCEL_TIMEOUT)
        self._health.healthy = False

    async def _run(self) -> None:
        health = self._health
        while True:
            try:
                await self._listener.listen_async(
                    self._engine, self._channel, health.woken
                )
            except Exception as exc:  # noqa: BLE001  # any driver's
                await asyncio.sleep(health.lost(exc))
