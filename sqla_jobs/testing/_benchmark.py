"""The loops of ``sqla-jobs bench``: ours and plain ones, in a schema of their own."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from sqlalchemy import (
    ARRAY,
    DDL,
    URL,
    BigInteger,
    Engine,
    Index,
    MetaData,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.schema import CreateSchema, DropSchema

from sqla_jobs._core.states import JobState
from sqla_jobs._store.enqueue import enqueue_many
from sqla_jobs.models import Arg, JobMixin, arg
from sqla_jobs.runner.context import AsyncContext, Context
from sqla_jobs.runner.threads import Runner

PAYLOAD = "x" * 180
CLAIM = 100  # rows per claim of the plain loop
WRITERS = 10  # handlers that write at once: each needs a connection
GAP_SECONDS = 0.02  # between two jobs whose pick-up is measured, +-25 %
WARM_UP = 5  # jobs whose pick-up does not count
PATIENCE_SECONDS = 30.0
GRACE = timedelta(seconds=2)  # after a signal: what runs is of no use to anybody
ANALYZE = DDL("ANALYZE %(fullname)s")  # type: ignore[no-untyped-call]
FACTS = text(
    "SELECT current_database() AS database, version() AS server,"
    " current_setting('server_version') AS version,"
    " current_setting('fsync') AS fsync,"
    " current_setting('synchronous_commit') AS synchronous_commit,"
    " current_setting('full_page_writes') AS full_page_writes,"
    " current_setting('shared_buffers') AS shared_buffers,"
    " pg_is_in_recovery() AS standby,"
    " has_database_privilege(current_database(), 'CREATE') AS may_create,"
    " EXISTS (SELECT FROM pg_namespace WHERE nspname = :schema) AS taken"
)
WAL = text("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")


@dataclass(frozen=True)
class Tables:
    """The classes that are mapped to the schema's tables."""

    metadata: MetaData
    job: type[Any]
    async_noop: type[Any]
    noop: type[Any]
    write: type[Any]
    tell: type[Any]
    row: type[Any]
    effect: type[Any]
    plain_job: type[Any]
    begun: list[float]  # when the first handler of a drain did


def tables_in(schema: str) -> Tables:
    """Return classes whose tables, the job tables too, are in *schema*."""
    begun: list[float] = []

    def begin() -> None:
        if not begun:
            begun.append(time.perf_counter())

    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)

    class Row(Base):
        __tablename__ = "rows"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        payload: Mapped[str]

    class Effect(Base):
        __tablename__ = "effects"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[int]

    class PlainJob(Base):
        __tablename__ = "plain_jobs"
        id: Mapped[int] = mapped_column(primary_key=True)
        state: Mapped[str] = mapped_column(server_default="available")
        payload: Mapped[str]
        available = text("state = 'available'")
        __table_args__ = (Index("plain_jobs_idx", "id", postgresql_where=available),)

    class Job(JobMixin, Base):
        __tablename__ = "jobs"

    class AsyncNoop(Job, kind="async_noop"):
        text: Arg[str] = arg(default=PAYLOAD)

        async def run(self, ctx: AsyncContext) -> None:
            begin()

    class Noop(Job, kind="noop"):
        text: Arg[str] = arg(default=PAYLOAD)

        def run(self, ctx: Context) -> None:
            begin()

    class Write(Job, kind="write"):
        def run(self, ctx: Context) -> None:
            begin()
            ctx.session.add(Effect(job_id=self.id))

    class Tell(Job, kind="tell"):
        def run(self, ctx: Context) -> None:
            ctx.resources.put(time.perf_counter())

    kinds = (AsyncNoop, Noop, Write, Tell)
    return Tables(Base.metadata, Job, *kinds, Row, Effect, PlainJob, begun)


class Loops:
    """
    A database and the loops over tables in *schema*, which is removed by `remove`.

    Args:
        url: The database. Where its driver is of one kind only, psycopg does the rest.
        schema: Made by `create`.
        slots: Of the runners whose handlers do nothing.
    """

    def __init__(self, url: URL, schema: str, *, slots: int) -> None:
        asynchronous = url.get_dialect().is_async
        psycopg = url.set(drivername="postgresql+psycopg")
        if url.drivername in ("postgresql", "postgres"):
            url = psycopg
        self.url = psycopg if asynchronous else url
        self.async_url = url if asynchronous else psycopg
        self.schema, self.slots = schema, slots
        # No connection is made for a handler that does not use its session.
        self.engine: Engine = create_engine(self.url, pool_size=max(slots, WRITERS))
        self.session = sessionmaker(self.engine)
        self.created = self._filled = False

    @cached_property
    def tables(self) -> Tables:
        """The classes; made on first use, for they are known to the whole process."""
        return tables_in(self.schema)

    # The schema

    def facts(self) -> dict[str, Any]:
        """Return what matters of the server, and the seconds of a round trip."""
        with self.engine.connect() as connection:
            found = dict(
                connection.execute(FACTS, {"schema": self.schema}).one()._mapping
            )
            trips = []
            for _ in range(10):
                begun = time.perf_counter()
                connection.execute(select(1))
                trips.append(time.perf_counter() - begun)
            return found | {"round_trip": min(trips)}

    def create(self) -> None:
        """Create the schema; fails if it exists."""
        with self.engine.begin() as connection:
            connection.execute(CreateSchema(self.schema))
            self.created = True  # also if the answer to COMMIT is lost

    def remove(self) -> None:
        """Drop the schema, if `create` made it, with all that is in it."""
        if self.created:
            self.engine.dispose()  # also of connections that are broken
            with self.engine.begin() as connection:
                connection.execute(text("SET LOCAL lock_timeout = '10s'"))
                connection.execute(
                    DropSchema(self.schema, cascade=True, if_exists=True)
                )
            self.created = False

    def reset(self) -> None:
        """Make every table anew."""
        made = self.tables.metadata
        with self.engine.begin() as connection:
            if self._filled:
                made.drop_all(connection, checkfirst=False)
            made.create_all(connection, checkfirst=False)
        self._filled = True
        self.tables.begun.clear()

    def wal(self) -> int | None:
        """Return the position in the server's WAL; None if that is not permitted."""
        with self.engine.connect() as connection, suppress(DBAPIError):
            return int(connection.execute(WAL).scalar_one())
        return None

    def _analyze(self, table: type[Any]) -> None:
        with self.engine.begin() as connection:
            connection.execute(ANALYZE.against(table.__table__))

    # Plain loops

    def add_rows(self, count: int) -> None:
        """Add and commit one mapped row with three columns at a time."""
        for _ in range(count):
            with self.session() as session:
                session.add(self.tables.row(kind="k", payload=PAYLOAD))
                session.commit()

    def insert_rows(self, count: int) -> None:
        """INSERT a list of rows in one transaction."""
        rows = [{"kind": "k", "payload": PAYLOAD} for _ in range(count)]
        with self.engine.begin() as connection:
            connection.execute(insert(self.tables.row), rows)

    def add_effects(self, count: int) -> None:
        """Add and commit one effect at a time, with no queue."""
        for number in range(count):
            with self.session() as session:
                session.add(self.tables.effect(job_id=number))
                session.commit()

    def fill_plain(self, count: int) -> None:
        """Insert rows for `drain_plain`."""
        rows = [{"payload": PAYLOAD} for _ in range(count)]
        with self.engine.begin() as connection:
            connection.execute(insert(self.tables.plain_job), rows)
        self._analyze(self.tables.plain_job)

    def drain_plain(self, count: int) -> None:
        """Claim 100 rows and delete them, until none is left; no handlers."""
        row = self.tables.plain_job
        due = select(row.id).where(text("state = 'available'")).order_by(row.id)
        due = due.limit(CLAIM).with_for_update(skip_locked=True)
        chosen = due.cte("due")
        claim = update(row).where(row.id == chosen.c.id).values(state="running")
        claim = claim.returning(row.id, row.payload)
        ended = func.any(bindparam("ids", type_=ARRAY(BigInteger())))
        remove = delete(row).where(row.id == ended)
        with self.engine.connect() as connection:
            while count > 0:
                ids = [one.id for one in connection.execute(claim)]
                connection.commit()
                connection.execute(remove, {"ids": ids})
                connection.commit()
                count -= len(ids)

    # Ours

    def add_jobs(self, count: int) -> None:
        """Add and commit one job at a time."""
        for _ in range(count):
            with self.session() as session:
                session.add(self.tables.noop())
                session.commit()

    def enqueue_jobs(self, count: int) -> None:
        """Enqueue all jobs in one transaction."""
        with self.session() as session:
            rows = ({"text": PAYLOAD} for _ in range(count))
            enqueue_many(session, self.tables.noop, rows)
            session.commit()

    def fill(self, name: str, count: int) -> None:
        """Enqueue jobs of the class that has this *name* among the tables."""
        with self.session() as session:
            enqueue_many(session, getattr(self.tables, name), [{}] * count)
            session.commit()
        self._analyze(self.tables.job)

    def drain_async(self, _count: int) -> None:
        """Run jobs that do nothing in tasks."""
        kept = signal.getsignal(signal.SIGTERM)
        try:
            asyncio.run(self._drain_async())
        finally:
            signal.signal(signal.SIGTERM, kept)  # a loop leaves the default behind

    async def _drain_async(self) -> None:
        from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

        from sqla_jobs.runner.aio import AsyncRunner

        engine = create_async_engine(self.async_url, pool_size=self.slots)
        maker = async_sessionmaker(engine)
        try:
            job, kinds = self.tables.job, [self.tables.async_noop]
            runner = AsyncRunner(
                maker, job, kinds=kinds, concurrency=self.slots, grace=GRACE
            )
            await runner.run_until_idle()
            _pass_on_stop(runner)
        finally:
            await engine.dispose()

    def drain(self, _count: int) -> None:
        """Run jobs that do nothing in threads."""
        self._drain(self.tables.noop, self.slots)

    def drain_writing(self, _count: int) -> None:
        """Run jobs that write one row each in threads."""
        self._drain(self.tables.write, min(self.slots, WRITERS))

    def _drain(self, kind: type[Any], slots: int) -> None:
        job = self.tables.job
        runner = Runner(self.session, job, kinds=[kind], concurrency=slots, grace=GRACE)
        runner.run_until_idle()
        _pass_on_stop(runner)

    def left(self) -> int:
        """Return how many jobs are not completed."""
        job = self.tables.job
        statement = select(func.count()).where(job.state != JobState.COMPLETED)
        with self.session() as session:
            return session.execute(statement.select_from(job)).scalar_one()

    def pick_up(self, count: int) -> list[float]:
        """Return seconds from the return of COMMIT to the handler, of *count* jobs."""
        told: SimpleQueue[float] = SimpleQueue()
        job, kinds = self.tables.job, [self.tables.tell]
        spent = []
        runner = Runner(
            self.session, job, kinds=kinds, concurrency=1, grace=GRACE, resources=told
        )
        with runner:
            for _ in range(WARM_UP + count):
                with self.session() as session:
                    session.add(self.tables.tell())
                    session.commit()
                    committed = time.perf_counter()
                spent.append(told.get(timeout=PATIENCE_SECONDS) - committed)
                time.sleep(GAP_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311
        return spent[WARM_UP:]


def _pass_on_stop(runner: Any) -> None:
    """Raise KeyboardInterrupt if a signal stopped *runner*: it was for us all."""
    if runner._stopping:
        raise KeyboardInterrupt
