"""pgqueuer, as its documentation advises for speed."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
from pgqueuer import PgQueuer, Queries
from pgqueuer.db import AsyncpgDriver

from tests.benchmarks.systems.effects import Effects
from tests.benchmarks.systems.program import TEXT, Facts, System, main, parts

BATCH = 500
POOL = 4


def payload_of(number: int) -> bytes:
    """Return the payload of a job."""
    return json.dumps({"number": number, "text": TEXT}).encode()


class Peer(System):
    """Handlers are async only."""

    facts = Facts(
        packages=("pgqueuer", "asyncpg", "uvloop"),
        config=(
            f"asyncpg pool of {POOL}, uvloop, batch_size {BATCH}, durable tables, its"
            " autovacuum settings; bulk: enqueue(lists), 5,000 per statement"
        ),
        pending="SELECT EXISTS (SELECT FROM pgqueuer WHERE execute_after < now())",
        stored="SELECT count(*) FROM pgqueuer",
        completed="SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
        scheduled=(
            (
                "INSERT INTO pgqueuer (priority, status, entrypoint, payload,"
                " execute_after) SELECT 0, 'queued', 'noop', NULL, now() + interval"
                " '10 years' FROM generate_series(1, 1000000)"
            ),
            (
                "INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority)"
                " SELECT id, 'queued', 'noop', 0 FROM pgqueuer"
            ),
        ),
        finished=(
            (
                "INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority,"
                " aggregated) SELECT n, s::pgqueuer_status, 'noop', 0, true FROM"
                " generate_series(1, 1000000) n,"
                " unnest(ARRAY['queued', 'picked', 'successful']) s"
            ),
        ),
    )

    async def queries(self) -> Any:
        """Return its statements, on a connection of their own."""
        return Queries(AsyncpgDriver(await asyncpg.connect(self.options.dsn)))

    async def setup(self) -> None:
        """Make the tables, with the autovacuum settings it advises."""
        queries = await self.queries()
        await queries.install()
        connection = await asyncpg.connect(self.options.dsn)
        await connection.execute(queries.qbe.build_optimize_autovacuum_query())
        await connection.close()

    async def fill(self) -> None:
        """Enqueue the jobs of a drain."""
        await self.bulk(await self.queries())

    async def bulk(self, queries: Any) -> None:
        """Enqueue all, 5,000 per statement."""
        for part in parts(self.numbers, 5_000):
            count = len(part)
            payloads = [payload_of(number) for number in part]
            await queries.enqueue([self.options.kind] * count, payloads, [0] * count)

    async def enqueue(self) -> None:
        """Enqueue as told."""
        queries = await self.queries()
        if self.options.how == "bulk":
            with self.watch:
                await self.bulk(queries)
        else:
            await self.one_by_one(self.sender(queries))

    def sender(self, queries: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues one job."""
        kind = self.options.kind
        return lambda number: queries.enqueue(kind, payload_of(number))

    async def tell(self) -> list[tuple[float, float]]:
        """Enqueue jobs at intervals."""
        return await self.pace(self.sender(await self.queries()))

    async def work(self) -> None:
        """Run jobs until killed."""
        logging.disable(logging.INFO)
        pool = await asyncpg.create_pool(self.options.dsn, min_size=POOL, max_size=POOL)
        app = PgQueuer.from_asyncpg_pool(pool)
        effects = await Effects.opened(self.options, "asyncpg")

        async def noop(job: Any) -> None:
            self.counter.hit()

        async def tell(job: Any) -> None:
            self.counter.tell(json.loads(job.payload)["number"])

        async def effect(job: Any) -> None:
            self.counter.hit()
            await effects.write(json.loads(job.payload)["number"])

        for handler in (noop, tell, effect):
            app.entrypoint(handler.__name__)(handler)
        await app.run(batch_size=BATCH)


if __name__ == "__main__":
    main(Peer)
