"""sqla_jobs, in every way it has."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, insert
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from sqla_jobs import (
    Arg,
    AsyncBatchContext,
    AsyncContext,
    AsyncRunner,
    BatchContext,
    Context,
    JobMixin,
    Runner,
    arg,
    enqueue,
    enqueue_many,
    notify_runners,
)
from tests.benchmarks.systems.program import (
    SOAK_TICK,
    TEXT,
    WARM_UP,
    Counter,
    Facts,
    Options,
    System,
    main,
    parts,
)
from tests.benchmarks.systems.rows import Base, Effect

SLOTS = 500
THREADS = 100
WRITERS = 20  # jobs that write, at once
WRITING_THREADS = 2  # of a Runner: more fight for the interpreter's lock
BATCH = 500
counter: Counter


class Job(JobMixin, Base):
    """The root; its subclasses take a payload of 200 bytes."""

    __tablename__ = "jobs"


class AsyncNoop(Job, kind="async_noop"):
    """Does nothing, on the loop."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    async def run(self, ctx: AsyncContext) -> None:
        """Count."""
        counter.hit()


class Noop(Job, kind="noop"):
    """Does nothing, in a thread."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    def run(self, ctx: Context) -> None:
        """Count."""
        counter.hit_in_thread()


class Write(Job, kind="write"):
    """Adds one row, which commits with its completion."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    def run(self, ctx: Context) -> None:
        """Add the row."""
        counter.hit_in_thread()
        ctx.session.add(Effect(job=self.number))


class AsyncWrite(Job, kind="async_write"):
    """Adds one row, on the loop."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    async def run(self, ctx: AsyncContext) -> None:
        """Add the row."""
        counter.hit()
        ctx.session.add(Effect(job=self.number))


class BatchWrite(Job, kind="batch_write", batch=BATCH):
    """Adds the rows of many jobs, which commit with their completion."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    @classmethod
    def run_many(cls, jobs: list[BatchWrite], ctx: BatchContext) -> None:
        """Add a row for each."""
        counter.hit(len(jobs))
        ctx.session.add_all([Effect(job=job.number) for job in jobs])


class AsyncBatchWrite(Job, kind="async_batch_write", batch=BATCH):
    """Adds the rows of many jobs, on the loop."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    @classmethod
    async def run_many(
        cls, jobs: list[AsyncBatchWrite], ctx: AsyncBatchContext
    ) -> None:
        """Add a row for each."""
        counter.hit(len(jobs))
        ctx.session.add_all([Effect(job=job.number) for job in jobs])


class Tell(Job, kind="tell"):
    """Notes when it began, in a thread."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    def run(self, ctx: Context) -> None:
        """Note the time."""
        counter.tell(self.number)


class AsyncTell(Job, kind="async_tell"):
    """Notes when it began, on the loop."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    async def run(self, ctx: AsyncContext) -> None:
        """Note the time."""
        counter.tell(self.number)


class Soaked(Job, kind="soak", retention=timedelta(minutes=1)):
    """Notes when it began, and does not stay long: rows come and go."""

    number: Arg[int]
    text: Arg[str] = arg(default=TEXT)

    async def run(self, ctx: AsyncContext) -> None:
        """Note the time."""
        counter.tell(self.number)


INSERT = insert(Job)


class SqlaJobs(System):
    """The options' `how` says which runner, or which way to enqueue."""

    _ADD = (
        "INSERT INTO jobs (kind, payload, state, run_at, finished_at, attempt)"
        " SELECT 'async_noop', '{}', "
    )
    facts = Facts(
        packages=("sqla-jobs", "sqlalchemy", "psycopg", "asyncpg", "uvloop"),
        config=(
            f"AsyncRunner with {SLOTS} slots on uvloop and asyncpg; Runner with"
            f" {THREADS} threads and psycopg; jobs that write a row: {WRITERS} slots,"
            f" in {WRITING_THREADS} threads; batches of {BATCH}; jobs kept (default"
            " retention)"
        ),
        pending=(
            "SELECT EXISTS (SELECT FROM jobs WHERE state = 'available' AND NOT ordered)"
            " OR EXISTS (SELECT FROM jobs WHERE state = 'running')"
        ),
        stored="SELECT count(*) FROM jobs",
        completed="SELECT count(*) FROM jobs WHERE state = 'completed'",
        scheduled=(
            _ADD + "'scheduled', now() + interval '10 years', NULL, 0"
            " FROM generate_series(1, 1000000)",
        ),
        finished=(
            _ADD + "'completed', now(), now(), 1 FROM generate_series(1, 1000000)",
        ),
    )

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        logging.getLogger("sqla_jobs").setLevel(logging.ERROR)
        self.asynchronous = options.how.startswith("async")

    def engine(self) -> Engine:
        """Return an engine of psycopg, with a connection per writer."""
        url = self.options.dsn.replace("://", "+psycopg://", 1)
        return create_engine(url, pool_size=WRITERS)

    def async_engine(self) -> AsyncEngine:
        """Return an engine of asyncpg, or of psycopg if told so."""
        driver = "psycopg" if self.options.how == "async-psycopg" else "asyncpg"
        url = self.options.dsn.replace("://", f"+{driver}://", 1)
        return create_async_engine(url, pool_size=WRITERS)

    def setup(self) -> None:
        """Make the tables."""
        Base.metadata.create_all(self.engine())

    def job_class(self) -> type[Any]:
        """Return the class of the kind, for the runner that is told."""
        sync, asynchronous = {
            "noop": (Noop, AsyncNoop),
            "effect": (Write, AsyncWrite),
            "batch": (BatchWrite, AsyncBatchWrite),
            "tell": (Tell, AsyncTell),
            "soak": (Soaked, Soaked),
        }[self.options.kind]
        return asynchronous if self.asynchronous else sync

    def fill(self) -> None:
        """Enqueue the jobs of a drain."""
        with Session(self.engine()) as session:
            rows = ({"number": number} for number in self.numbers)
            enqueue_many(session, self.job_class(), rows)
            session.commit()

    def enqueue(self) -> None:
        """Enqueue as told."""
        maker = sessionmaker(self.engine())
        if self.options.how in ("many", "add_all"):
            self.all_at_once(maker)
            return
        one = {"add": self.add, "enqueue": self.enqueue_one}
        if self.options.how == "core":
            engine = self.engine().execution_options(isolation_level="AUTOCOMMIT")
            send = partial(self.core, engine.connect())
        else:
            send = partial(one[self.options.how], maker)
        for number in range(WARM_UP):
            send(number)
        with self.watch:
            for number in self.numbers:
                send(number)

    def all_at_once(self, maker: sessionmaker[Session]) -> None:
        """Enqueue all in one transaction."""
        with maker() as session:
            session.connection()
            with self.watch:
                if self.options.how == "many":
                    rows = ({"number": number, "text": TEXT} for number in self.numbers)
                    enqueue_many(session, AsyncNoop, rows)
                else:
                    session.add_all(AsyncNoop(number=number) for number in self.numbers)
                session.commit()

    def add(self, maker: sessionmaker[Session], number: int) -> None:
        """Add one job and commit."""
        with maker() as session:
            session.add(self.job_class()(number=number))
            session.commit()

    def enqueue_one(self, maker: sessionmaker[Session], number: int) -> None:
        """Call `enqueue` and commit."""
        with maker() as session:
            enqueue(session, self.job_class()(number=number))
            session.commit()

    def core(self, connection: Connection, number: int) -> None:
        """Insert by Core in autocommit, as drivers do, and wake runners."""
        payload = {"number": number, "text": TEXT}
        connection.execute(INSERT, {"kind": "async_noop", "payload": payload})
        notify_runners(connection, Job)

    def work(self) -> Any:
        """Run jobs until killed."""
        global counter  # noqa: PLW0603 - handlers have no other way to it
        counter = self.counter
        slots = {"effect": WRITERS, "batch": BATCH}.get(self.options.kind)
        if self.asynchronous:
            return self.work_on_loop(slots or SLOTS)
        maker = sessionmaker(self.engine())
        threads = WRITING_THREADS if self.options.kind == "effect" else None
        Runner(maker, Job, concurrency=slots or THREADS, threads=threads).run()
        return None

    async def work_on_loop(self, slots: int) -> None:
        """Run jobs in tasks."""
        maker = async_sessionmaker(self.async_engine())
        await AsyncRunner(maker, Job, concurrency=slots).run()

    async def tell(self) -> list[tuple[float, float]]:
        """Add and commit jobs at intervals."""
        maker = sessionmaker(self.engine())
        with maker() as session:  # connected, and everything compiled
            session.add(self.job_class()(number=0))
            session.flush()
            session.rollback()
        return await self.pace(lambda number: self.add(maker, number))

    async def soak(self) -> None:
        """Enqueue at a constant rate, and note each COMMIT."""
        maker = sessionmaker(self.engine())
        due = time.monotonic()
        for part in parts(self.numbers, self.options.size):
            due += SOAK_TICK
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            with maker() as session:
                session.add_all(Soaked(number=number) for number in part)
                session.commit()
            for number in part:
                self.counter.tell(number)


if __name__ == "__main__":
    main(SqlaJobs)
