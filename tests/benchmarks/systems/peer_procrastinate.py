"""procrastinate, as its documentation advises for speed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
from psycopg_pool import AsyncConnectionPool

from tests.benchmarks.systems.effects import Effects
from tests.benchmarks.systems.program import TEXT, Client, Facts, main, parts

SLOTS = 20
_HUSH = "ALTER TABLE procrastinate_jobs DISABLE TRIGGER USER"
_SPEAK = "ALTER TABLE procrastinate_jobs ENABLE TRIGGER USER"
_LIVE = "status IN ('todo', 'doing') AND scheduled_at IS NULL"


def unchecked_pool(**options: Any) -> Any:
    """Return a pool that sends no statement at each checkout, which costs a quarter."""
    return AsyncConnectionPool(**{**options, "check": None})


class Peer(Client):
    """Async tasks on the loop, sync ones in threads."""

    facts = Facts(
        packages=("procrastinate", "psycopg", "uvloop"),
        config=(
            f"concurrency {SLOTS}, pool of {SLOTS + 2} without its check at checkout,"
            " uvloop, jobs kept (default), listen_notify; bulk: batch_defer_async,"
            " 1,000 a call"
        ),
        pending=f"SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE {_LIVE})",
        stored="SELECT count(*) FROM procrastinate_jobs",
        completed="SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
        scheduled=(
            _HUSH,
            (
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status,"
                " scheduled_at) SELECT 'default', 'noop', '{}', 'todo', now() +"
                " interval '10 years' FROM generate_series(1, 1000000)"
            ),
            (
                "INSERT INTO procrastinate_events (job_id, type, at)"
                " SELECT id, 'deferred', now() FROM procrastinate_jobs"
            ),
            _SPEAK,
        ),
        finished=(
            _HUSH,
            (
                "INSERT INTO procrastinate_jobs (queue_name, task_name, args, status,"
                " attempts) SELECT 'default', 'noop', '{}', 'succeeded', 1 FROM"
                " generate_series(1, 1000000)"
            ),
            (
                "INSERT INTO procrastinate_events (job_id, type, at)"
                " SELECT id, t::procrastinate_job_event_type, now() FROM"
                " procrastinate_jobs,"
                " unnest(ARRAY['deferred', 'started', 'succeeded']) t"
            ),
            _SPEAK,
        ),
    )

    @asynccontextmanager
    async def opened(self, size: int = 1) -> AsyncIterator[Any]:
        """Yield the app, connected."""
        connector = procrastinate.PsycopgConnector(
            conninfo=self.options.dsn,
            min_size=1,
            max_size=size,
            pool_factory=unchecked_pool,
        )
        app = procrastinate.App(connector=connector)
        effects = await Effects.opened(self.options, "psycopg")

        async def noop(number: int, text: str) -> None:
            self.counter.hit()

        def sync(number: int, text: str) -> None:
            self.counter.hit_in_thread()

        async def tell(number: int, text: str) -> None:
            self.counter.tell(number)

        async def effect(number: int, text: str) -> None:
            self.counter.hit()
            await effects.write(number)

        handlers: list[Callable[..., Any]] = [noop, sync, tell, effect]
        for handler in handlers:
            app.task(name=handler.__name__)(handler)
        async with app.open_async():
            yield app

    @property
    def task(self) -> str:
        """The name of the task to defer."""
        return "sync" if self.options.how == "sync" else self.options.kind

    async def setup(self) -> None:
        """Make the tables."""
        async with self.opened() as app:
            await app.schema_manager.apply_schema_async()

    async def bulk(self, app: Any) -> None:
        """Defer all, 1,000 a call."""
        task = app.tasks[self.task]
        for part in parts(self.numbers, 1_000):
            calls = [{"number": number, "text": TEXT} for number in part]
            await task.batch_defer_async(*calls)

    def sender(self, app: Any) -> Callable[[int], Awaitable[object]]:
        """Return what enqueues one job."""
        task = app.tasks[self.task]
        return lambda number: task.defer_async(number=number, text=TEXT)

    async def work(self) -> None:
        """Run jobs until killed."""
        logging.disable(logging.INFO)
        async with self.opened(SLOTS + 2) as app:
            await app.run_worker_async(
                concurrency=SLOTS, delete_jobs="never", install_signal_handlers=False
            )


if __name__ == "__main__":
    main(Peer)
