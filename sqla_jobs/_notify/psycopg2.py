"""LISTEN through psycopg2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from sqla_jobs._core.clock import SystemClock
from sqla_jobs._notify import connect as connecting
from sqla_jobs._notify.stop import Stop


class Psycopg2Listener:
    """A `Listener` for ``postgresql+psycopg2://`` engines."""

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
            psycopg2.Error: If the connection cannot be made or is lost.
        """
        clock = SystemClock()
        with _listening(engine, channel) as raw, stop.beside(raw) as wait:
            on_wake()
            check_at = clock.monotonic() + connecting.CHECK_EVERY
            while not stop.is_set():
                wait(check_at - clock.monotonic())
                raw.poll()
                if clock.monotonic() >= check_at:
                    _execute(raw, "SELECT 1")
                    check_at = clock.monotonic() + connecting.CHECK_EVERY
                _pass_on(raw, on_wake)

    async def listen_async(
        self, engine: Engine, channel: str, on_wake: Callable[[], None]
    ) -> None:
        """
        Refuse: no async engine has this driver.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("psycopg2 listens in a thread only")


@contextmanager
def _listening(engine: Engine, channel: str) -> Iterator[Any]:
    raw = connecting.connect(engine)
    try:
        connecting.fail_fast(raw)
        raw.autocommit = True
        quoted = channel.replace('"', '""')
        _execute(raw, f'LISTEN "{quoted}"')
        yield raw
    finally:
        raw.close()


def _execute(raw: Any, statement: str) -> None:
    with raw.cursor() as cursor:
        cursor.execute(statement)


def _pass_on(raw: Any, on_wake: Callable[[], None]) -> None:
    # Those that came with an answer are here too.
    while raw.notifies:
        raw.notifies.pop(0)
        on_wake()
