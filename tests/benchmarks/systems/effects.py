"""How handlers of the peers write their row: by the raw driver, or by a Session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from tests.benchmarks.systems.program import Options

POOL = 10


@dataclass(frozen=True)
class Effects:
    """
    The way that the options tell: ``session``, or else the driver.

    None of them commits with the job's completion: no peer offers that.
    """

    write: Callable[[int], Awaitable[object]]

    @classmethod
    async def opened(cls, options: Options, driver: str) -> Self:
        """Return it with a pool of connections of the application's own."""
        if options.kind != "effect":
            return cls(_refuse)
        if options.how == "session":
            return cls(by_session(options.dsn, driver))
        raw = by_asyncpg if driver == "asyncpg" else by_psycopg
        return cls(await raw(options.dsn))


async def _refuse(number: int) -> None:
    raise AssertionError(f"job {number} should not write")


def by_session(dsn: str, driver: str) -> Callable[[int], Awaitable[object]]:
    """Add and commit a mapped row."""
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    from tests.benchmarks.systems.rows import Effect

    url = dsn.replace("://", f"+{driver}://", 1)
    maker = async_sessionmaker(create_async_engine(url, pool_size=POOL))

    async def write(number: int) -> None:
        async with maker() as session:
            session.add(Effect(job=number))
            await session.commit()

    return write


async def by_asyncpg(dsn: str) -> Callable[[int], Awaitable[object]]:
    """INSERT, in a transaction of its own."""
    import asyncpg

    pool = await asyncpg.create_pool(dsn, min_size=POOL, max_size=POOL)
    statement = "INSERT INTO effects (job) VALUES ($1)"
    return lambda number: pool.execute(statement, number)


async def by_psycopg(dsn: str) -> Callable[[int], Awaitable[object]]:
    """INSERT, in a transaction of its own."""
    from psycopg_pool import AsyncConnectionPool

    autocommit: dict[str, Any] = {"autocommit": True}
    pool = AsyncConnectionPool(
        dsn, min_size=POOL, max_size=POOL, open=False, kwargs=autocommit
    )
    await pool.open(wait=True)

    async def write(number: int) -> None:
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO effects (job) VALUES (%s)", (number,))

    return write
