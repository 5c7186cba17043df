"""The runner's own connections under asyncio; needs greenlet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqla_jobs._dialects import dialect_of
from sqla_jobs.runner.control import (
    CONFLICT_RETRIES,
    Limits,
    clone_engine,
    conflict_pause,
)

T = TypeVar("T")


class AsyncControl:
    """Short transactions on connections of the runner's own."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = AsyncEngine(clone_engine(engine, limits))
        self.dialect = dialect_of(self.engine.sync_engine)

    async def run(self, work: Callable[[Session], T]) -> T:
        """Run *work* in one transaction; conflicts are retried in place."""
        for attempt in range(CONFLICT_RETRIES):
            try:
                async with AsyncSession(self.engine, expire_on_commit=False) as session:
                    result = await session.run_sync(work)
                    await session.commit()
                    return result
            except DBAPIError as exc:
                if not self.dialect.is_conflict(exc) or attempt + 1 == CONFLICT_RETRIES:
                    raise
                await asyncio.sleep(conflict_pause(attempt))
        raise AssertionError  # pragma: no cover

    async def close(self) -> None:
        """Close the connections."""
        await self.engine.dispose()
