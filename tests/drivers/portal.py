"""Lets a sync engine use an async driver: its coroutines run in a thread's loop."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet
import pytest
from sqlalchemy.connectors import asyncio as connector


class Portal:
    """
    Stands in for the greenlet that SQLAlchemy hands its coroutines to.

    So the same tests, with their sessions, threads and blockers, run on an async
    driver: each coroutine is run to its end by one event loop, wherever it comes from.
    """

    __sqlalchemy_greenlet_provider__ = True

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def parent(self) -> Portal:
        """Where `switch` is looked for."""
        return self

    def switch(self, awaitable: Awaitable[Any]) -> Any:
        """Return the result of *awaitable*."""

        async def wait() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def current(self) -> Any:
        """Return the running greenlet if it is one of SQLAlchemy's, else this."""
        found = greenlet.getcurrent()
        is_theirs = getattr(found, "__sqlalchemy_greenlet_provider__", False)
        in_loop = threading.current_thread() is self._thread
        return found if is_theirs or in_loop or _loop_runs() else self

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def portal() -> Iterator[Portal]:
    """Let sync engines use async drivers meanwhile."""
    made = Portal()
    theirs = importlib.import_module("sqlalchemy.util.concurrency")
    shim = getattr(theirs, "_concurrency_shim", None)  # SQLAlchemy 2.1
    if shim is None:
        shim = importlib.import_module("sqlalchemy.util._concurrency_py3k")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shim, "getcurrent", made.current)
        # Closed at once when given up: asyncio.shield needs the loop's own thread.
        monkeypatch.setattr(connector, "in_greenlet", bool)
        try:
            yield made
        finally:
            made.close()
