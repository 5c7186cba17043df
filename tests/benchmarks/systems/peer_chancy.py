"""chancy, as its documentation advises for speed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from chancy import Chancy, Job, Queue, Worker

from tests.benchmarks.systems.effects import Effects
from tests.benchmarks.systems.program import TEXT, Client, Counter, Facts, main

SLOTS = 200
THREADS = 10
OUTGOING_SECONDS = 0.1
counter: Counter
effects: Effects


async def noop(*, number: int, text: str) -> None:
    """Count."""
    counter.hit()


def sync(*, number: int, text: str) -> None:
    """Count, in a thread."""
    counter.hit_in_thread()


async def tell(*, number: int, text: str) -> None:
    """Note the time."""
    counter.tell(number)


async def effect(*, number: int, text: str) -> None:
    """Write one row, in a transaction of its own."""
    counter.hit()
    await effects.write(number)


_ADD = (
    "INSERT INTO chancy_jobs (id, queue, func, max_attempts, priority, kwargs, limits,"
    " errors, meta, state, attempts, "
)
_VALUES = (
    " SELECT gen_random_uuid(), 'default', '__main__.noop', 1, 0, '{}', '[]', '[]',"
    " '{}', "
)


class Peer(Client):
    """Async functions on the loop, sync ones in threads."""

    facts = Facts(
        packages=("chancy", "psycopg", "uvloop"),
        config=(
            f"async executor with {SLOTS} slots, threads: {THREADS}; eager_polling,"
            f" polling interval 1 s, send_outgoing_interval {OUTGOING_SECONDS} s,"
            " default plugins, uvloop; bulk: push_many, 1,000 a batch"
        ),
        pending=(
            "SELECT EXISTS (SELECT FROM chancy_jobs WHERE state IN ('pending',"
            " 'running', 'retrying')"
            " AND (scheduled_at IS NULL OR scheduled_at < now()))"
        ),
        stored="SELECT count(*) FROM chancy_jobs",
        completed="SELECT count(*) FROM chancy_jobs WHERE state = 'succeeded'",
        scheduled=(
            (
                f"{_ADD} scheduled_at) {_VALUES} 'pending', 0, now() + interval"
                " '10 years' FROM generate_series(1, 1000000)"
            ),
        ),
        finished=(
            (
                f"{_ADD} started_at, completed_at) {_VALUES} 'succeeded', 1, now(),"
                " now() FROM generate_series(1, 1000000)"
            ),
        ),
    )

    def opened(self, size: int = 1) -> Any:
        """Return the app; entered, it is connected."""
        return Chancy(
            self.options.dsn,
            min_connection_pool_size=1,
            max_connection_pool_size=size,
            log=logging.getLogger("chancy_bench"),
        )

    async def setup(self) -> None:
        """Make the tables and the queues."""
        always: dict[str, Any] = {"eager_polling": True, "polling_interval": 1}
        loop, threads = Chancy.Executor.Async, Chancy.Executor.Threaded
        async with self.opened(2) as app:
            await app.migrate()
            for name, slots, executor in (
                ("default", SLOTS, loop),
                ("threads", THREADS, threads),
            ):
                queue = Queue(name, concurrency=slots, executor=executor, **always)
                await app.declare(queue, upsert=True)

    def job(self, number: int) -> Any:
        """Return a new job."""
        sync = self.options.how == "sync"
        return Job(
            func=f"__main__.{'sync' if sync else self.options.kind}",
            kwargs={"number": number, "text": TEXT},
            queue="threads" if sync else "default",
            max_attempts=1,
        )

    async def bulk(self, app: Any) -> None:
        """Push all, 1,000 a batch."""
        jobs = [self.job(number) for number in self.numbers]
        async for _ in app.push_many(jobs, batch_size=1_000):
            pass

    def sender(self, app: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues one job."""
        return lambda number: app.push(self.job(number))

    async def work(self) -> None:
        """Run jobs until killed."""
        global counter, effects  # noqa: PLW0603 - handlers have no other way to it
        logging.disable(logging.INFO)
        counter = self.counter
        effects = await Effects.opened(self.options, "psycopg")
        async with self.opened(10) as app:
            worker = Worker(app, register_signal_handlers=False)
            worker.send_outgoing_interval = OUTGOING_SECONDS
            async with worker:
                await worker.wait_for_shutdown()


if __name__ == "__main__":
    main(Peer)
