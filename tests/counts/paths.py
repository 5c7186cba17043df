"""The plain ways of a job, each as a loop that is counted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from unittest.mock import patch

from sqlalchemy import create_engine, func, select, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_jobs import (
    Arg,
    AsyncContext,
    AsyncRunner,
    BatchContext,
    Context,
    JobMixin,
    JobState,
    Runner,
    arg,
    claim,
    enqueue,
    enqueue_many,
)
from sqla_jobs._store import wake
from tests.counts.server import Counted, Counts

PAYLOAD = "x" * 180
HOUR = timedelta(hours=1)


class Base(DeclarativeBase):
    """Of these tables only."""


class Effect(Base):
    """What a handler writes."""

    __tablename__ = "counted_effects"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int]


class Job(JobMixin, Base):
    """The root."""

    __tablename__ = "counted_jobs"
    text: Arg[str] = arg(default=PAYLOAD)


class AsyncNoop(Job, kind="counted_async_noop"):
    """Does nothing, on the loop."""

    async def run(self, ctx: AsyncContext) -> None:
        """Do nothing."""


class Noop(Job, kind="counted_noop"):
    """Does nothing, in a thread."""

    def run(self, ctx: Context) -> None:
        """Do nothing."""


class Write(Job, kind="counted_write"):
    """Adds one row."""

    def run(self, ctx: Context) -> None:
        """Add the row that commits with the outcome."""
        ctx.session.add(Effect(job_id=self.id))


class WriteMany(Job, kind="counted_write_many", batch=100):
    """Adds one row per job."""

    @classmethod
    def run_many(cls, jobs: list[WriteMany], ctx: BatchContext) -> None:
        """Add the rows that commit with the outcomes."""
        ctx.session.add_all([Effect(job_id=job.id) for job in jobs])


@dataclass(frozen=True)
class Path:
    """
    A loop that is counted.

    Args:
        run: Does it for so many units.
        units: Jobs, or claims.
        fill: The class of the jobs that are there before, if any.
        jobs: How many of them per unit.
        runner: Whether one is started and ends, which is not counted.
        notifies: Whether each commit wakes the runners, as when they are rare.
    """

    run: Callable[[Ways, int], object]
    units: int
    fill: type[Job] | None = None
    jobs: int = 1
    runner: bool = False
    notifies: bool = False


class Ways:
    """The application, on a counted server."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.engine = create_engine(counted.dsn, pool_size=100)
        self.Session = sessionmaker(self.engine)

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[Ways]:
        """Yield the application on a server of its own."""
        with Counted.start() as counted:
            ways = cls(counted)
            yield ways
            ways.engine.dispose()

    def measure(self, path: Path) -> Counts:
        """Return what a unit of *path* costs."""
        seconds = 0.0 if path.notifies else math.inf
        with patch.object(wake, "COALESCE_SECONDS", seconds):
            idle = self._count(path, 0) if path.runner else None
            found = self._count(path, path.units)
        if idle is not None:
            assert self._left() == 0
            found = found.less(idle)
        return found.per(path.units)

    def _count(self, path: Path, units: int) -> Counts:
        Base.metadata.drop_all(self.engine)
        Base.metadata.create_all(self.engine)
        if path.fill is not None and units:
            with self.Session() as session:
                enqueue_many(session, path.fill, [{}] * (units * path.jobs))
                session.commit()
        # One connection that is warm: a pool hands out the one that rested longest.
        self.engine.dispose()
        with self.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text("VACUUM ANALYZE counted_jobs, counted_effects"))
        return self.counted.count(lambda: path.run(self, units))

    def _left(self) -> int:
        live = select(func.count()).where(Job.state != JobState.COMPLETED)
        with self.Session() as session:
            return session.scalar(live.select_from(Job)) or 0

    # Enqueueing

    def add(self, count: int) -> None:
        """Add and commit one job at a time."""
        for _ in range(count):
            with self.Session() as session:
                session.add(Noop())
                session.commit()

    def enqueue(self, count: int) -> None:
        """The same by the function that tells what became of it."""
        for _ in range(count):
            with self.Session() as session:
                enqueue(session, Noop())
                session.commit()

    def add_all(self, count: int) -> None:
        """Add all, and commit once."""
        with self.Session() as session:
            session.add_all([Noop() for _ in range(count)])
            session.commit()

    def enqueue_many(self, count: int) -> None:
        """Enqueue all in bulk."""
        with self.Session() as session:
            enqueue_many(session, Noop, ({} for _ in range(count)))
            session.commit()

    # Running

    def drain_async(self, kind: type[Job], slots: int) -> None:
        """Run what is there in tasks."""

        async def main() -> None:
            engine = create_async_engine(self.counted.dsn, pool_size=slots)
            maker = async_sessionmaker(engine)
            runner = AsyncRunner(maker, Job, kinds=[kind], concurrency=slots)
            await runner.run_until_idle()
            await engine.dispose()

        asyncio.run(main())

    def drain(self, kind: type[Job], slots: int) -> None:
        """Run what is there in threads."""
        Runner(self.Session, Job, kinds=[kind], concurrency=slots).run_until_idle()

    def claim(self, count: int, limit: int) -> None:
        """Claim so many times."""
        for _ in range(count):
            with self.Session() as session:
                assert len(claim(session, Job, limit=limit, lease=HOUR)) == limit
                session.commit()


def _runs(kind: type[Job], units: int, slots: int) -> Path:
    drain = Ways.drain_async if kind is AsyncNoop else Ways.drain
    return Path(lambda ways, _: drain(ways, kind, slots), units, kind, runner=True)


def _claims(limit: int) -> Path:
    return Path(lambda ways, count: ways.claim(count, limit), 20, Noop, limit)


PATHS = {
    "session.add + commit": Path(Ways.add, 100),
    "session.add + commit, waking": Path(Ways.add, 100, notifies=True),
    "enqueue() + commit": Path(Ways.enqueue, 100),
    "add_all of 1,000": Path(Ways.add_all, 1_000),
    "enqueue_many of 1,000": Path(Ways.enqueue_many, 1_000),
    "AsyncRunner, no-op": _runs(AsyncNoop, 2_000, slots=500),
    "Runner, no-op": _runs(Noop, 500, slots=100),
    "Runner, one row each": _runs(Write, 100, slots=10),
    "Runner, one row each, in batches": _runs(WriteMany, 500, slots=100),
    "claim of 10": _claims(10),
    "claim of 100": _claims(100),
}
"""By what they are called in the table of limits."""
