"""The runner's own connections under asyncio; needs greenlet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from sqla_jobs.runner.control import (
    CONFLICT_RETRIES,
    Control,
    Limits,
    conflict_pause,
)

T = TypeVar("T")


class AsyncControl:
    """Short transactions on connections of the runner's own."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self._control = Control(engine, limits)
        self.engine = AsyncEngine(self._control.engine)
        self.dialect = self._control.dialect

    async def run(self, work: Callable[[Session], T], *, single: bool = False) -> T:
        """Do as `Control.run` does."""
        once = partial(self._control.once, work, single=single)
        for attempt in range(CONFLICT_RETRIES):
            try:
                # All of it in one greenlet: an AsyncSession makes one for each step.
                return await greenlet_spawn(once)
            except DBAPIError as exc:
                if not self.dialect.is_conflict(exc) or attempt + 1 == CONFLICT_RETRIES:
                    raise
                await asyncio.sleep(conflict_pause(attempt))
        raise AssertionError  # pragma: no cover

    async def close(self) -> None:
        """Close the connections."""
        await greenlet_spawn(self._control.close)
