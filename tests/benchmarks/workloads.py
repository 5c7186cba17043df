"""What is measured: each workload beside the plain loop that is its limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_jobs import (
    Arg,
    AsyncContext,
    AsyncRunner,
    Context,
    JobMixin,
    Runner,
    arg,
    enqueue_many,
)

PAYLOAD = "x" * 180


class Base(DeclarativeBase):
    """The benchmark's own metadata."""


class Plain(Base):
    """A row with three columns, to compare an enqueue with."""

    __tablename__ = "bench_plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    payload: Mapped[str]


class Effect(Base):
    """What a handler writes."""

    __tablename__ = "bench_effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int]


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "bench_jobs"


class AsyncNoop(Job, kind="async_noop"):
    """Does nothing, on the loop."""

    text: Arg[str] = arg(default=PAYLOAD)

    async def run(self, ctx: AsyncContext) -> None:
        """Do nothing."""


class SyncNoop(Job, kind="sync_noop"):
    """Does nothing, in a thread."""

    text: Arg[str] = arg(default=PAYLOAD)

    def run(self, ctx: Context) -> None:
        """Do nothing."""


class WriteOne(Job, kind="write_one"):
    """Adds one row through its session."""

    def run(self, ctx: Context) -> None:
        """Add the row that commits with the outcome."""
        ctx.session.add(Effect(job_id=self.id))


class Bench:
    """One database with the benchmark's tables, and every loop over it."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.libpq = dsn.replace("+psycopg", "")
        self.engine: Engine = create_engine(dsn, pool_size=20)
        self.session = sessionmaker(self.engine)

    def reset(self) -> None:
        """Make every table anew."""
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS bench_raw"))
            connection.execute(
                text(
                    "CREATE TABLE bench_raw (id bigserial PRIMARY KEY,"
                    " state text NOT NULL DEFAULT 'available', payload text)"
                )
            )
            connection.execute(
                text(
                    "CREATE INDEX bench_raw_idx ON bench_raw (id)"
                    " WHERE state = 'available'"
                )
            )

    def fill(self, job_class: type[Job], count: int) -> None:
        """Enqueue *count* jobs, unmeasured, and let the statistics follow."""
        with self.session() as session:
            enqueue_many(session, job_class, ({} for _ in range(count)))
            session.commit()
        self.analyze(Job.__tablename__)

    def analyze(self, table: str) -> None:
        """Bring the planner's statistics up to date."""
        with psycopg.connect(self.libpq, autocommit=True) as connection:
            connection.execute(f"VACUUM ANALYZE {table}".encode())

    # The plain loops

    def raw_insert(self, count: int) -> None:
        """Insert one row per transaction with psycopg."""
        with psycopg.connect(self.libpq, autocommit=True) as connection:
            for _ in range(count):
                connection.execute(
                    "INSERT INTO bench_raw (payload) VALUES (%s)", (PAYLOAD,)
                )

    def plain_rows(self, count: int) -> None:
        """Add and commit one mapped row with three columns at a time."""
        for _ in range(count):
            with self.session() as session:
                session.add(Plain(kind="k", payload=PAYLOAD))
                session.commit()

    def raw_copy(self, count: int) -> None:
        """COPY all rows in one transaction."""
        with (
            psycopg.connect(self.libpq) as connection,
            connection.cursor() as cursor,
            cursor.copy("COPY bench_raw (payload) FROM STDIN") as copy,
        ):
            for _ in range(count):
                copy.write_row((PAYLOAD,))

    def raw_drain(self, count: int) -> None:
        """Claim 100 and delete them, until none is left; no handlers."""
        claim = (
            "UPDATE bench_raw SET state = 'running' WHERE id IN (SELECT id FROM"
            " bench_raw WHERE state = 'available' ORDER BY id LIMIT 100"
            " FOR UPDATE SKIP LOCKED) RETURNING id, payload"
        )
        with psycopg.connect(self.libpq, autocommit=True) as connection:
            while count > 0:
                rows = connection.execute(claim).fetchall()
                ids = [row[0] for row in rows]
                connection.execute("DELETE FROM bench_raw WHERE id = ANY(%s)", (ids,))
                count -= len(ids)

    def raw_drain_setup(self, count: int) -> None:
        """Fill the raw table."""
        self.raw_copy(count)
        self.analyze("bench_raw")

    def bare_loop(self, count: int) -> None:
        """Add and commit one effect at a time, with no queue."""
        for number in range(count):
            with self.session() as session:
                session.add(Effect(job_id=number))
                session.commit()

    # sqla_jobs

    def add(self, count: int) -> None:
        """Add and commit one job at a time."""
        for _ in range(count):
            with self.session() as session:
                session.add(SyncNoop())
                session.commit()

    def add_all(self, count: int) -> None:
        """Add all jobs and commit once."""
        with self.session() as session:
            session.add_all([SyncNoop() for _ in range(count)])
            session.commit()

    def bulk(self, count: int) -> None:
        """Enqueue all jobs with `enqueue_many`."""
        with self.session() as session:
            enqueue_many(session, SyncNoop, ({"text": PAYLOAD} for _ in range(count)))
            session.commit()

    def drain_threads(self, _count: int) -> None:
        """Run no-op jobs in 100 threads."""
        Runner(self.session, Job, concurrency=100).run_until_idle()

    def drain_tasks(self, _count: int) -> None:
        """Run no-op jobs in 500 tasks."""

        async def main() -> None:
            engine = create_async_engine(self.dsn, pool_size=20)
            maker = async_sessionmaker(engine)
            await AsyncRunner(maker, Job, concurrency=500).run_until_idle()
            await engine.dispose()

        asyncio.run(main())

    def write_one(self, _count: int) -> None:
        """Run jobs that write one row each, in 20 threads."""
        Runner(self.session, Job, concurrency=20).run_until_idle()

    def leftovers(self) -> int:
        """Return how many jobs are not completed: 0, or the run counts for nothing."""
        statement = text("SELECT count(*) FROM bench_jobs WHERE state <> 'completed'")
        with self.engine.connect() as connection:
            return int(connection.execute(statement).scalar_one())


@dataclass(frozen=True)
class Side:
    """One loop: how to prepare *count* rows, and the measured part."""

    name: str
    run: Callable[[Bench, int], None]
    prepare: Callable[[Bench, int], None] | None = None
    drains: bool = False


@dataclass(frozen=True)
class Workload:
    """A loop of ours beside the plain one, and how many rows a round has."""

    name: str
    ours: Side
    plain: Side
    count: int


def _filled(job_class: type[Job]) -> Callable[[Bench, int], None]:
    return lambda bench, count: bench.fill(job_class, count)


RAW_DRAIN = Side("psycopg claim 100 + DELETE", Bench.raw_drain, Bench.raw_drain_setup)
WORKLOADS = (
    Workload(
        "enqueue, one per transaction",
        Side("session.add + commit", Bench.add),
        Side("3-column mapped row", Bench.plain_rows),
        2_000,
    ),
    Workload(
        "enqueue, one per transaction",
        Side("session.add + commit", Bench.add),
        Side("psycopg INSERT", Bench.raw_insert),
        2_000,
    ),
    Workload(
        "bulk enqueue",
        Side("enqueue_many", Bench.bulk),
        Side("psycopg COPY", Bench.raw_copy),
        20_000,
    ),
    Workload(
        "bulk enqueue",
        Side("session.add_all", Bench.add_all),
        Side("psycopg COPY", Bench.raw_copy),
        20_000,
    ),
    Workload(
        "drain no-op, 500 tasks",
        Side("AsyncRunner", Bench.drain_tasks, _filled(AsyncNoop), drains=True),
        RAW_DRAIN,
        20_000,
    ),
    Workload(
        "drain no-op, 100 threads",
        Side("Runner", Bench.drain_threads, _filled(SyncNoop), drains=True),
        RAW_DRAIN,
        20_000,
    ),
    Workload(
        "one write per job, atomic",
        Side("Runner, 20 threads", Bench.write_one, _filled(WriteOne), drains=True),
        Side("SQLAlchemy add + commit", Bench.bare_loop),
        2_000,
    ),
)


def timed(run: Callable[[], None]) -> float:
    """Return the seconds that *run* takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
