"""oban for Python (its open-source edition), as its documentation advises for speed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from oban import Oban, worker
from oban.schema import install

from tests.benchmarks.systems.effects import Effects
from tests.benchmarks.systems.program import TEXT, Client, Counter, Facts, main, parts

LIMIT = 200
counter: Counter
effects: Effects


class Noop:
    """Does nothing."""

    async def process(self, job: Any) -> None:
        """Count."""
        counter.hit()


class Tell:
    """Notes when it began."""

    async def process(self, job: Any) -> None:
        """Note the time."""
        counter.tell(job.args["number"])


class Effect:
    """Writes one row."""

    async def process(self, job: Any) -> None:
        """Write the row, in a transaction of its own."""
        counter.hit()
        await effects.write(job.args["number"])


WORKERS: dict[str, Any] = {
    "noop": worker(queue="default")(Noop),
    "tell": worker(queue="default")(Tell),
    "effect": worker(queue="default")(Effect),
}


class Peer(Client):
    """Handlers are async only."""

    facts = Facts(
        packages=("oban", "psycopg", "uvloop"),
        config=(
            f"queue limit {LIMIT}, pool of 4 to 10, uvloop, its default debounce of"
            " 5 ms; bulk: enqueue_many, 5,000 a call"
        ),
        pending=(
            "SELECT EXISTS (SELECT FROM oban_jobs"
            " WHERE state IN ('available', 'executing'))"
        ),
        stored="SELECT count(*) FROM oban_jobs",
        completed="SELECT count(*) FROM oban_jobs WHERE state = 'completed'",
        scheduled=(
            (
                "INSERT INTO oban_jobs (worker, state, scheduled_at)"
                " SELECT '__main__.Noop', 'scheduled', now() + interval '10 years'"
                " FROM generate_series(1, 1000000)"
            ),
        ),
        finished=(
            (
                "INSERT INTO oban_jobs (worker, state, attempt, attempted_at,"
                " completed_at, attempted_by) SELECT '__main__.Noop', 'completed', 1,"
                " timezone('UTC', now()), timezone('UTC', now()), ARRAY['a', 'b']"
                " FROM generate_series(1, 1000000)"
            ),
        ),
    )

    @asynccontextmanager
    async def opened(
        self, least: int = 1, most: int = 1, **options: Any
    ) -> AsyncIterator[Any]:
        """Yield the client, connected."""
        dsn = self.options.dsn
        pool = await Oban.create_pool(dsn, min_size=least, max_size=most)
        try:
            yield Oban(pool=pool, **options)
        finally:
            await pool.close()

    async def setup(self) -> None:
        """Make the tables."""
        pool = await Oban.create_pool(self.options.dsn, min_size=1, max_size=2)
        await install(pool)
        await pool.close()

    def job(self, number: int) -> Any:
        """Return a new job."""
        args = {"number": number, "text": TEXT}
        return WORKERS[self.options.kind].new(args)

    async def bulk(self, app: Any) -> None:
        """Enqueue all, 5,000 a call."""
        for part in parts(self.numbers, 5_000):
            await app.enqueue_many([self.job(number) for number in part])

    def sender(self, app: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues one job."""
        return lambda number: app.enqueue(self.job(number))

    async def work(self) -> None:
        """Run jobs until killed."""
        global counter, effects  # noqa: PLW0603 - handlers have no other way to it
        logging.disable(logging.INFO)
        counter = self.counter
        effects = await Effects.opened(self.options, "psycopg")
        queues = {"default": {"limit": LIMIT}}
        async with self.opened(4, 10, queues=queues, name="Oban") as app, app:
            await asyncio.Event().wait()


if __name__ == "__main__":
    main(Peer)
