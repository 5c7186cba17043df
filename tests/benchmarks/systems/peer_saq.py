"""SAQ with its PostgreSQL queue, as its documentation advises for speed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg_pool import AsyncConnectionPool
from saq import Worker
from saq.queue.postgres import PostgresQueue

from tests.benchmarks.systems.effects import Effects
from tests.benchmarks.systems.program import TEXT, Client, Facts, main, parts

SLOTS = 10
POOL = 20
_ADD = (
    "INSERT INTO saq_jobs (key, queue, job, status, scheduled, expire_at) SELECT"
    " 'saq:job:default:' || gen_random_uuid(), 'default', "
)


class Peer(Client):
    """Async functions on the loop, sync ones in threads."""

    facts = Facts(
        packages=("saq", "psycopg", "uvloop"),
        config=(
            f"PostgresQueue, concurrency {SLOTS} (more is slower), pool of {POOL}"
            " without a check at checkout, LISTEN, jobs kept 600 s (default), uvloop;"
            " bulk: enqueue on 10 connections at once, as it has nothing for it"
        ),
        pending=(
            "SELECT EXISTS (SELECT FROM saq_jobs WHERE status IN ('queued', 'active')"
            " AND scheduled <= extract(epoch FROM now()))"
        ),
        stored="SELECT count(*) FROM saq_jobs",
        completed="SELECT count(*) FROM saq_jobs WHERE status = 'complete'",
        scheduled=(
            _ADD
            + """convert_to('{"function": "noop", "queue": "default", "key": "x",
            "scheduled": 2095200000, "queued": 1795200000000}', 'utf8'), 'queued',
            extract(epoch FROM now()) + 315360000, NULL
            FROM generate_series(1, 1000000)""",
        ),
        finished=(
            _ADD
            + """convert_to('{"function": "noop", "queue": "default", "key": "x",
            "status": "complete"}', 'utf8'), 'complete',
            extract(epoch FROM now()) - 100, extract(epoch FROM now()) + 100000
            FROM generate_series(1, 1000000)""",
        ),
    )

    @asynccontextmanager
    async def opened(self, size: int = 1) -> AsyncIterator[Any]:
        """Yield the queue, connected."""
        logging.disable(logging.INFO)
        least = min(4, size)
        pool = AsyncConnectionPool(
            self.options.dsn,
            min_size=least,
            max_size=size,
            open=False,
            kwargs={"autocommit": True},
        )
        queue = PostgresQueue(
            pool=pool, manage_pool_lifecycle=True, min_size=least, max_size=size
        )
        await queue.connect()
        try:
            yield queue
        finally:
            await queue.disconnect()

    async def setup(self) -> None:
        """Make the tables."""
        async with self.opened(2):
            pass

    def sender(self, queue: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues one job."""
        name = "sync" if self.options.how == "sync" else self.options.kind
        return lambda number: queue.enqueue(name, number=number, text=TEXT)

    async def fill(self) -> None:
        """Enqueue the jobs of a drain."""
        async with self.opened(10) as queue:
            await self.bulk(queue)

    async def bulk(self, queue: Any) -> None:
        """Enqueue all, 500 at once."""
        send = self.sender(queue)
        for part in parts(self.numbers, 500):
            await asyncio.gather(*map(send, part))

    async def enqueue(self) -> None:
        """Enqueue as told."""
        bulk = self.options.how == "bulk"
        async with self.opened(10 if bulk else 1) as queue:
            if bulk:
                with self.watch:
                    await self.bulk(queue)
            else:
                await self.one_by_one(self.sender(queue))

    async def work(self) -> None:
        """Run jobs until killed."""
        effects = await Effects.opened(self.options, "psycopg")

        async def noop(ctx: Any, *, number: int, text: str) -> None:
            self.counter.hit()

        def sync(ctx: Any, *, number: int, text: str) -> None:
            self.counter.hit_in_thread()

        async def tell(ctx: Any, *, number: int, text: str) -> None:
            self.counter.tell(number)

        async def effect(ctx: Any, *, number: int, text: str) -> None:
            self.counter.hit()
            await effects.write(number)

        async with self.opened(POOL) as queue:
            handlers: list[Any] = [noop, sync, tell, effect]
            # By name: a function inside of another has a longer one.
            named = [(handler.__name__, handler) for handler in handlers]
            await Worker(queue, named, concurrency=SLOTS).start()


if __name__ == "__main__":
    main(Peer)
