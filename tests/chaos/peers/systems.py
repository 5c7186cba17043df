"""The job systems, each set up as its own documentation recommends."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from tests.chaos.app import Job
from tests.chaos.peers.errand import TRANSIENT, Bank, Errand, TooLate


@dataclass(frozen=True)
class Options:
    """What the scene tells a worker."""

    dsn: str
    driver: str
    name: str
    ledger: str
    seed: str
    lease: float
    poll: float
    grace: float
    concurrency: int

    @property
    def bank(self) -> Bank:
        """What the errands know."""
        return Bank(self.name, self.ledger, self.seed)


class System(Protocol):
    """A job system, on one side of the queue at a time."""

    finals: str
    """SQL: job, whether it succeeded, and the seconds since 1970 of each outcome."""
    left: str
    """SQL: the jobs without an outcome."""

    async def open(self, dsn: str) -> None:
        """Connect a sender, and install the tables."""

    async def send(self, errand: Errand) -> int:
        """Enqueue an errand; return the job's id."""

    async def close(self) -> None:
        """Close the sender."""

    async def work(self, options: Options) -> None:
        """Run jobs until the process ends."""


def plain(dsn: str, **more: str) -> str:
    """Return the address as libpq and asyncpg take it."""
    url = make_url(dsn).set(drivername="postgresql")
    return url.update_query_dict(more).render_as_string(hide_password=False)


def engine_of(dsn: str, driver: str = "psycopg", **options: Any) -> AsyncEngine:
    """Return the application's engine."""
    url = make_url(dsn).set(drivername=f"postgresql+{driver}")
    return create_async_engine(url, pool_pre_ping=True, **options)


REFEREE = {"application_name": "referee"}


class SqlaJobs:
    """This library: the writes of a handler commit with its job's completion."""

    finals = (
        "SELECT id, state = 'completed', extract(epoch FROM finished_at) FROM jobs"
        " WHERE state IN ('completed', 'cancelled', 'discarded')"
    )
    left = (
        "SELECT id FROM jobs WHERE state NOT IN ('completed', 'cancelled', 'discarded')"
    )

    async def open(self, dsn: str) -> None:
        """Its tables are the application's: they are there."""
        self.engine = engine_of(dsn, connect_args=REFEREE)
        self.sessions = async_sessionmaker(self.engine)

    async def send(self, errand: Errand) -> int:
        """Add the job and commit."""
        async with self.sessions.begin() as session:
            job = Run(payload=errand.facts())
            session.add(job)
            await session.flush()
            return int(job.id)

    async def close(self) -> None:
        """Close the connections."""
        await self.engine.dispose()

    async def work(self, options: Options) -> None:
        """Run an AsyncRunner."""
        from sqla_jobs import AsyncRunner

        engine = engine_of(options.dsn)
        runner = AsyncRunner(
            async_sessionmaker(engine),
            Job,
            kinds=[Run],
            name=options.name,
            concurrency=options.concurrency,
            lease=timedelta(seconds=options.lease),
            poll=timedelta(seconds=options.poll),
            max_crashes=100_000,
            resources=options.bank,
        )
        await runner.run()


class Run(Job, kind="errand", max_attempts=100_000):
    """An errand, for this library."""

    async def run(self, ctx: Any) -> None:
        """Run it; what may not be tried again is discarded."""
        from sqla_jobs import Discard

        bank: Bank = ctx.resources
        errand = Errand(**self.payload_of())
        async with bank.attempt(self.id):
            try:
                await bank.work(errand)
            except TooLate as exc:
                raise Discard(str(exc)) from exc
            await bank.move(ctx.session, errand)

    def payload_of(self) -> dict[str, Any]:
        """Return the arguments alone."""
        names = Errand.__dataclass_fields__
        return {name: self.payload[name] for name in names}


class Procrastinate:
    """
    Procrastinate, with the periodic task of its page "Retry stalled jobs".

    That page has a heartbeat of 10 s, jobs stalled after 30 s, and a look every 10
    minutes; here it is 1 s, the lease, and a look each second.
    """

    finals = (
        "SELECT job.id, job.status = 'succeeded', extract(epoch FROM max(event.at))"
        " FROM procrastinate_jobs job JOIN procrastinate_events event"
        " ON event.job_id = job.id AND event.type::text = job.status::text"
        " WHERE job.task_name = 'errand' AND job.status NOT IN ('todo', 'doing')"
        " GROUP BY job.id"
    )
    left = (
        "SELECT id FROM procrastinate_jobs"
        " WHERE task_name = 'errand' AND status IN ('todo', 'doing')"
    )

    def app(self, dsn: str, size: int) -> Any:
        """Return an app that knows its tasks once they are declared."""
        import procrastinate

        connector = procrastinate.PsycopgConnector(
            conninfo=plain(dsn), min_size=1, max_size=size
        )
        return procrastinate.App(connector=connector)

    async def open(self, dsn: str) -> None:
        """Install the schema."""
        self.stack = AsyncExitStack()
        self.sender = self.app(plain(dsn, **REFEREE), 2)
        await self.stack.enter_async_context(self.sender.open_async())
        await self.sender.schema_manager.apply_schema_async()

    async def send(self, errand: Errand) -> int:
        """Defer it."""
        task = self.sender.configure_task("errand")
        return int(await task.defer_async(**errand.facts()))

    async def close(self) -> None:
        """Close the connections."""
        await self.stack.aclose()

    async def work(self, options: Options) -> None:
        """Run a worker."""
        app = self.app(options.dsn, options.concurrency + 4)
        self.declare(app, options)
        async with app.open_async():
            await app.run_worker_async(
                name=options.name,
                concurrency=options.concurrency,
                fetch_job_polling_interval=options.poll,
                update_heartbeat_interval=options.lease / 3,
                stalled_worker_timeout=options.lease,
            )

    def declare(self, app: Any, options: Options) -> None:
        """Declare the errand, and what takes stalled ones back."""
        from procrastinate import RetryStrategy

        bank = options.bank
        sessions = async_sessionmaker(engine_of(options.dsn))

        @app.task(  # type: ignore[untyped-decorator]
            name="errand",
            pass_context=True,
            retry=RetryStrategy(wait=1, retry_exceptions=TRANSIENT),
        )
        async def run(context: Any, **facts: Any) -> None:
            errand = Errand(**facts)
            async with bank.attempt(context.job.id):
                await bank.work(errand)
                async with sessions.begin() as session:
                    await bank.move(session, errand)

        @app.periodic(cron="* * * * * *")  # type: ignore[untyped-decorator]
        @app.task(queueing_lock="retry_stalled_jobs", pass_context=True)  # type: ignore[untyped-decorator]
        async def retry_stalled_jobs(context: Any, timestamp: int) -> None:
            stalled = await app.job_manager.get_stalled_jobs(
                seconds_since_heartbeat=options.lease
            )
            for job in stalled:
                await app.job_manager.retry_job(job)


class PgQueuer:
    """
    PGQueuer with a heartbeat timeout, retries, and its own supervisor's restarts.

    Its default timeout is 30 s; here it is the lease.
    """

    finals = (
        "SELECT job_id, status = 'successful', extract(epoch FROM created)"
        " FROM pgqueuer_log WHERE status NOT IN ('queued', 'picked')"
        " AND entrypoint = 'errand'"
    )
    left = "SELECT id FROM pgqueuer WHERE status IN ('queued', 'picked')"

    async def open(self, dsn: str) -> None:
        """Install the schema."""
        import asyncpg
        from pgqueuer import Queries
        from pgqueuer.db import AsyncpgDriver

        self.connection = await asyncpg.connect(plain(dsn, **REFEREE))
        self.sender = Queries(AsyncpgDriver(self.connection))
        await self.sender.install()

    async def send(self, errand: Errand) -> int:
        """Enqueue it."""
        payload = json.dumps(errand.facts()).encode()
        (job,) = await self.sender.enqueue("errand", payload)
        return int(job)

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def work(self, options: Options) -> None:
        """Run a queue manager."""
        import asyncpg
        from pgqueuer import PgQueuer as Manager

        size = options.concurrency + 4
        async with asyncpg.create_pool(plain(options.dsn), max_size=size) as pool:
            manager = Manager.from_asyncpg_pool(pool)
            self.declare(manager, options)
            await manager.run(
                dequeue_timeout=timedelta(seconds=options.poll),
                batch_size=options.concurrency // 2,
                max_concurrent_tasks=options.concurrency,
                heartbeat_timeout=timedelta(seconds=options.lease),
            )

    def declare(self, manager: Any, options: Options) -> None:
        """Declare the errand; what may not be tried again fails."""
        from pgqueuer.errors import RetryRequested

        bank = options.bank
        sessions = async_sessionmaker(engine_of(options.dsn, "asyncpg"))

        @manager.entrypoint("errand")  # type: ignore[untyped-decorator]
        async def run(job: Any) -> None:
            errand = Errand(**json.loads(job.payload))
            async with bank.attempt(job.id):
                try:
                    await bank.work(errand)
                    async with sessions.begin() as session:
                        await bank.move(session, errand)
                except TRANSIENT as exc:
                    again = timedelta(seconds=1)
                    raise RetryRequested(delay=again, reason=repr(exc)) from exc


SYSTEMS: dict[str, Callable[[], System]] = {
    "sqla_jobs": SqlaJobs,
    "procrastinate": Procrastinate,
    "pgqueuer": PgQueuer,
}
